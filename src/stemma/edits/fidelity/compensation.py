"""What is left after units were cut is refitted: every layer gives again what it gave before, as far as it can."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.groups import Network, Reader
from stemma.edits.editable_network import Asked
from stemma.edits.fidelity import fidelity
from stemma.edits.fidelity.batch_norm import LEAST, by_batch
from stemma.edits.fidelity.importance import centred
from stemma.edits.fidelity.statistics import Collecting, Statistics, products
from stemma.edits.layer_inputs import batch_of, matrix, only_input, unfolded, wide
from stemma.errors import MisuseError

KINDS = ("none", "scalar", "kernel")
"""Nothing; a factor per output and input (the paper's); whole kernels."""


@dataclass(frozen=True, eq=False)
class Target:
    """What a cut layer should give, in second moments.

    Attributes:
        moment: Second moments of the inputs that are left, `[kept, kept]`.
        cross: Wanted output times input, `[outputs, kept]`.
        mean: Mean of the inputs that are left.
        wanted: Mean of the wanted outputs.
    """

    moment: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    wanted: torch.Tensor

    def centred(self) -> "Target":
        """The same without the means."""
        moment = self.moment - torch.outer(self.mean, self.mean)
        return Target(moment, self.cross - torch.outer(self.wanted, self.mean), self.mean, self.wanted)


def from_statistics(weights: torch.Tensor, statistics: Any, kept: torch.Tensor) -> Target:
    """The target where inputs are those of the whole network.

    Args:
        weights: Of the whole layer, `[outputs, inputs * kernel]`.
        statistics: Of its inputs, at level `full`.
        kept: Rows that are left.

    Returns:
        Second moments.
    """
    second, mean = statistics.moment(centred=False), statistics.total / statistics.count
    return Target(second[kept][:, kept], weights @ second[:, kept], mean[kept], weights @ mean)


def solve(kind: str, start: torch.Tensor, target: Target, kernel: int, damping: float) -> torch.Tensor:
    """Weights that give the wanted outputs best, held near the present ones where the inputs say nothing.

    Args:
        kind: One of `KINDS`.
        start: The layer's weights as they were cut, `[outputs, kept]`.
        target: What is wanted.
        kernel: Rows per input that one factor multiplies.
        damping: Share of the diagonal that holds weights where they are.

    Returns:
        `[outputs, kept]`.

    Raises:
        MisuseError: If there is no such kind.
    """
    if kind == "none":
        return start
    if kind == "kernel":
        system = fidelity.damped(target.moment, damping)
        wanted = target.cross + damping * fidelity.levels(target.moment) * start
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            return wanted @ torch.linalg.pinv(system, hermitian=True)
        return torch.cholesky_solve(wanted.T, factor).T
    if kind != "scalar":
        raise MisuseError(f"what is left is compensated by {', '.join(KINDS)}, not {kind!r}")
    index = torch.arange(start.shape[1], device=start.device).reshape(-1, kernel)
    out = start.clone()
    for c in range(len(start)):
        q = fidelity.similarity(start[c], target.moment, index)
        wanted = (start[c] * target.cross[c])[index].sum(1)
        scale = torch.linalg.solve(fidelity.damped(q, damping), wanted + damping * fidelity.levels(q))
        out[c] = (out[c][index] * scale[:, None]).reshape(-1)
    return out


@dataclass(frozen=True)
class Compensating:
    """How cut layers are refitted.

    Attributes:
        kind: One of `KINDS`.
        sequential: Each layer is fitted to what the layers before it give now, towards what it gave in the whole
            network; otherwise to what they gave before.
        damping: Share by which the diagonal of second moments is raised.
        recalibrate: Batch norm will be recalibrated afterwards, so layers are fitted to what it will give.
        collecting: Batches and positions.
    """

    kind: str = "kernel"
    sequential: bool = True
    damping: float = fidelity.DAMPING
    recalibrate: bool = True
    collecting: Collecting = field(default_factory=Collecting)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MisuseError(f"what is left is compensated by {', '.join(KINDS)}, not {self.kind!r}")

    def __call__(
        self,
        whole: Asked,
        smaller: Asked,
        readers: "Sequence[Cut]",
        inputs: np.ndarray,
        statistics: Statistics | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        """Refit layers, in place.

        Cost: with `sequential`, one pass of both networks per layer, up to that layer.

        Args:
            whole: The network before.
            smaller: The network after it was cut; changed.
            readers: Layers that lost inputs, in causal order.
            inputs: Raw inputs.
            statistics: Of the whole network, used where it is not sequential; collected if None.
            progress: Told how far it is.
        """
        if not self.sequential and statistics is None and self.kind != "none":
            at = [cut.reader for cut in readers]
            statistics = self.collecting(whole.module, whole.forward, inputs, at, whole.like, progress)
        for done, cut in enumerate(readers if self.kind != "none" else ()):
            reader = cut.reader
            if progress is not None:
                progress(f"refitting {reader.layer}", done, len(readers))
            old, new = (a.module.get_submodule(reader.layer) for a in (whole, smaller))
            weights = matrix(old).detach().double()
            weights = weights[cut.outputs.to(weights.device)]
            if self.sequential or statistics is None:
                target = self._seen(whole, smaller, reader, weights, inputs)
            else:
                seen = statistics.layers[reader.weight]
                target = from_statistics(weights.to(seen.total.device), seen, cut.inputs.to(seen.total.device))
            shift = centred(reader, smaller.module) and (self.recalibrate or not reader.normed)
            fit(new, reader, target, self.kind, self.damping, shift=shift)

    def _seen(
        self, whole: Asked, smaller: Asked, reader: Reader, weights: torch.Tensor, inputs: np.ndarray
    ) -> Target:  # fmt: skip
        """Second moments of what the layer is given now, and of what it gave in the whole network."""
        old = whole.module.get_submodule(reader.layer)
        total: Any = None
        count = 0
        draw = torch.Generator().manual_seed(self.collecting.seed)
        with torch.no_grad(), ExitStack() as stack:
            if self.recalibrate:
                stack.enter_context(by_batch(smaller.module))
            for start in range(0, len(inputs), self.collecting.batch):
                if start and len(inputs) - start < LEAST:
                    break
                x = batch_of(inputs[start : start + self.collecting.batch], whole.like)
                before, now = (given_to(a, reader.layer, x) for a in (whole, smaller))
                spots = self.collecting.spots(old, before, draw)
                u = unfolded(old, wide(before), spots)
                v = unfolded(smaller.module.get_submodule(reader.layer), wide(now), spots)
                y = u @ weights.T.to(u.dtype)
                count += len(v)
                part = [products(v, v), products(y, v), v.sum(0, dtype=torch.float64), y.sum(0, dtype=torch.float64)]
                total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
        moment, cross, mean, wanted = (z / count for z in total)
        return Target(moment, cross, mean, wanted)


class _ReachedError(Exception):
    """Ends a forward pass when the layer in question is reached."""


def given_to(asked: Asked, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What a layer is given, without running what follows it.

    Args:
        asked: The network.
        layer: Its name.
        x: Raw inputs.

    Returns:
        The layer's input.

    Raises:
        MisuseError: If the layer is not run.
    """
    found: list[torch.Tensor] = []

    def hook(module: Any, given: Any, named: Any) -> None:
        found.append(only_input(given, named))
        raise _ReachedError

    handle = asked.module.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        asked.forward(x)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    if not found:
        raise MisuseError(f"{layer} was not run, so nothing can be fitted there")
    return found[0]


def fit(layer: Any, reader: Reader, target: Target, kind: str, damping: float, *, shift: bool) -> None:
    """Give a layer the weights that fit best, in place; its bias takes up what the mean would change.

    Args:
        layer: As it was cut.
        reader: What it reads.
        target: What is wanted.
        kind: One of `KINDS`.
        damping: Share by which the diagonal is raised.
        shift: Whether only deviations from the mean are fitted, because a norm or the bias takes up the rest.
    """
    device = target.moment.device
    start = matrix(layer).detach().to(device, torch.float64)
    wanted = target.centred() if shift else target
    kernel = start.shape[1] // layer.weight.shape[reader.reads]
    found = solve(kind, start, wanted, kernel, damping)
    with torch.no_grad():
        weight = layer.weight
        new = found.T if type(layer).__name__ == "Conv1D" else found
        weight.copy_(new.reshape(weight.shape).to(weight))
        bias = getattr(layer, "bias", None)
        if bias is not None and shift and not reader.normed:
            bias.add_((target.wanted - found @ target.mean).to(bias))


@dataclass(frozen=True, eq=False)
class Cut:
    """A layer that lost inputs.

    Attributes:
        reader: The layer.
        inputs: Rows of its unfolded inputs that it kept.
        outputs: Outputs that it kept.
    """

    reader: Reader
    inputs: torch.Tensor
    outputs: torch.Tensor


def cut_readers(net: Network, module: torch.nn.Module, rows: Any) -> list[Cut]:
    """Layers that lose inputs, in causal order.

    Args:
        net: What can be removed.
        module: The whole network.
        rows: As `slicing.slices` gives them.

    Returns:
        The layers, with what they keep.
    """
    out = []
    for name, reader in net.readers.items():
        keep = rows.get(name, {}).get(reader.reads)
        if keep is None:
            continue
        layer = module.get_submodule(reader.layer)
        shape = net.shapes[name]
        kernel = matrix(layer).shape[1] // shape[reader.reads]
        wide = keep[:, None] * kernel + np.arange(kernel)
        outputs = rows[name].get(1 - reader.reads, np.arange(shape[1 - reader.reads]))
        out.append(Cut(reader, torch.from_numpy(wide.reshape(-1)), torch.from_numpy(outputs)))
    return out
