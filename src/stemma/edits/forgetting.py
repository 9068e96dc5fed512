"""Making a network forget a class from samples of it, without labels, gradients or a loss: ModHiFi-U and a refit."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
import torch

from stemma.edits import fidelity
from stemma.edits.asking import Asked, own_network, removable
from stemma.edits.coupling import Network, Reader
from stemma.edits.edited import Edited, finished
from stemma.edits.measuring import agreement
from stemma.edits.normalisation import norms
from stemma.edits.samples import recognised, scrambled
from stemma.edits.scores import rows_read
from stemma.edits.statistics import Collecting, Statistics, matrix
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.questioning import questioned
from stemma.models.model import Model
from stemma.probes import Probes
from stemma.types import Plan, Spec

Progress = Callable[[str, int, int | None], None]

ACTIONS = ("auto", "zero", "negate", "refit")
"""What is done to weights: set to zero, to their negative (both as published), or solved for anew."""

OUTPUT = "it is an output of the network"

SPARED = 0.9
"""Share of the other inputs that should be answered as before; below it more layers are tried, and the best taken."""

STRENGTHS = tuple(10.0 ** (k / 4) for k in range(-12, 17))
"""Weights of the forget samples beside the other inputs, tried in this order by `refit`."""


@final
@dataclass(frozen=True)
class Unlearning:
    """Which weights change so that a class is no longer answered.

    Attributes:
        action: One of `ACTIONS`. `auto` refits where other inputs are given; without any it sets to zero in networks
            with batch norm and negates in others.
        score: `fidelity` (as published), `alignment` or `energy` of single entries.
        scope: Whether the highest entries of each `layer` change, or of each `output` of it.
        layers: How many of the last layers that read hidden units are edited, the output layer left alone; 0 takes 6
            in networks with layer norm, whose residual stream brings the class from far, and 4 in others; twice as
            many, then all, where the target is not met.
        head: Edit the output layer too.
        attention: Edit the layers that read attention heads too, not only those that read hidden units.
        only: Patterns of the layers that may be edited, instead of the last ones.
        contrast: Rank entries by how much more they matter to what is to be forgotten than to the other inputs.
        reflect: Of `refit`: by how much the samples' deviation from the others' mean output is turned round, which
            cancels what earlier layers have put into a residual stream; 0 only removes it. None takes 1 in networks
            with layer norm and 0 in others.
        made: Where no other inputs are given, make some from the samples themselves, by exchanging blocks of pixels.
        target: Share of the forget samples that may still be answered.
        most: Largest share of a layer's entries that is changed.
        steps: Shares that are tried on the way to `most`, before the last interval is halved a few times.
        positions: Most positions of a convolution that are looked at for one input.
        batch: Inputs at once.
        damping: Share by which the diagonal of second moments is raised.
        seed: Of the positions and of the blocks.

    Source: Kashyap et al., NeurIPS 2025, algorithm 2. The paper fixes the share of entries by hand; here it is raised
    until the target is met. `refit` and the contrast are Stemma's: both need other inputs.
    """

    action: str = "auto"
    score: str = "fidelity"
    scope: str = "layer"
    layers: int = 0
    head: bool = False
    attention: bool = True
    only: tuple[str, ...] = ()
    contrast: bool = True
    reflect: float | None = None
    made: bool = False
    target: float = 0.01
    most: float = 0.2
    steps: int = 20
    positions: int = 64
    batch: int = 128
    damping: float = fidelity.DAMPING
    seed: int = 0

    name = "modhifi-u"
    version = 1

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise MisuseError(f"weights are changed by {', '.join(ACTIONS)}, not {self.action!r}")
        if self.score not in ("fidelity", "alignment", "energy") or self.scope not in ("layer", "output"):
            raise MisuseError("entries are ranked by fidelity, alignment or energy, within a layer or an output")
        if not 0 < self.most <= 1 or not 0 <= self.target < 1 or self.layers < 0 or self.steps < 1:
            raise MisuseError("most lies in (0, 1], the target in [0, 1), layers are 0 or more and steps 1 or more")

    @classmethod
    def official(cls, action: str = "zero") -> "Unlearning":
        """The published method, as far as the paper says.

        Args:
            action: `zero` for networks with batch norm, `negate` for others.

        Returns:
            Fidelity on the forget samples alone.
        """
        return cls(action=action, contrast=False)

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(
        self, model: Model, forget: Probes, others: Probes | None = None, progress: Progress | None = None
    ) -> Edited:
        """Make a model forget.

        Cost: one pass over both sets for statistics, then one over the forget samples for every share that is tried.

        Args:
            model: The model; it is not changed.
            forget: Samples of the class, real or synthetic.
            others: Inputs of other classes, or generic ones; unlabelled.
            progress: Told how far it is.

        Returns:
            The model with its plan, receipt, and the weights as they were.

        Raises:
            MisuseError: If the model does not recognise the forget samples as one class.
            StemmaError: If the target is not met.
        """
        questioned(model, forget)
        before, after = own_network(model), own_network(model)
        forgotten, known = recognised(before, forget)
        net = removable(model, forget.inputs, before)
        if others is None and self.made:
            others = scrambled(forget, self.seed)
        change, found = self._smallest(before, after, net, forget, others, forgotten, progress)
        readers, action = change.readers, change.action
        plan = Plan(
            "unlearn", model.digest, self.spec, forget.digest, entries=change.entries(found), action=action,
            expected={"class": forgotten, "recognised": known, "strength": found,
                      "layers": [r.layer for r in readers]},
        )  # fmt: skip
        measured = self._measured(before, after, forget, others, forgotten)
        undo = {r.weight: before.module.get_parameter(r.weight).detach().cpu().clone() for r in readers}
        return replace(finished(model, after, plan, forget, measured), undo=undo)

    def _smallest(
        self, before: Asked, after: Asked, net: Network, forget: Probes, others: Probes | None, forgotten: int,
        progress: Progress | None,
    ) -> tuple["_Change", float]:  # fmt: skip
        """Layers in which the target is met and the others are spared, and the smallest strength, left applied."""
        streamed = has_layer_norm(before.module)
        reflect = float(streamed) if self.reflect is None else self.reflect
        collecting = Collecting("full", self.batch, self.positions, self.seed)
        failed: StemmaError | None = None
        best: tuple[float, _Change, float] | None = None
        for readers in self._readers(net, streamed=streamed):
            mine, rest = (
                None
                if p is None
                else collecting(before.module, before.forward, p.inputs, readers, before.like, progress)
                for p in (forget, others)
            )
            assert mine is not None
            change = _Change(self, before, after, readers, mine, rest, self._action(before, rest), reflect)
            try:
                strength = self._searched(change, forget, forgotten, progress)
            except StemmaError as error:
                failed = error
                continue
            kept = 1.0 if others is None else _kept(before, after, others, forgotten)
            if best is None or kept > best[0]:
                best = kept, change, strength
            if kept >= SPARED:
                break
        if best is None:
            assert failed is not None
            raise failed
        after.module.load_state_dict(before.module.state_dict())  # layers of the sets that were not taken
        best[1].tried(best[2], forget, forgotten)
        return best[1], best[2]

    def _readers(self, net: Network, *, streamed: bool) -> list[list[Reader]]:
        """Sets of layers that are edited, each in causal order; a later one holds the earlier ones."""
        heads = {n for n, why in net.refused.items() if why == OUTPUT}
        read = {r.weight for g in net.groups for r in g.readers if self.attention or g.name not in net.heads}
        found = [r for w, r in net.readers.items() if w in read and (self.head or r.layer not in heads)]
        if self.only:
            found = [r for r in found if any(re.search(p, r.layer) for p in self.only)]
        if not found:
            raise MisuseError("no layer reads hidden units but the output layer: say head=True to edit that")
        if self.only or self.layers:
            return [found[-self.layers :]]
        first = 6 if streamed else 4
        return [found[-n:] for n in dict.fromkeys(min(n, len(found)) for n in (first, 2 * first, len(found)))]

    def _action(self, before: Asked, rest: Statistics | None) -> str:
        if self.action == "refit" and rest is None:
            raise MisuseError("refit holds other inputs in place while a class goes: give some, or made=True")
        if self.action != "auto":
            return self.action
        return "refit" if rest is not None else "zero" if norms(before.module) else "negate"

    def _searched(self, change: "_Change", forget: Probes, forgotten: int, progress: Progress | None) -> float:
        """The smallest strength that meets the target, left applied."""
        tried = STRENGTHS if change.action == "refit" else [self.most * (k + 1) / self.steps for k in range(self.steps)]
        low, best, least = 0.0, None, 1.0
        for done, strength in enumerate(tried):
            if progress is not None:
                progress("looking for the smallest change", done, len(tried))
            share = change.tried(strength, forget, forgotten)
            least = min(least, share)
            if share <= self.target:
                best = strength
                break
            low = strength
        if best is None:
            raise StemmaError(
                f"{least:.0%} of the forget samples are still answered after the largest change that is allowed: the "
                f"target is {self.target:.0%}. Allow more (most, layers), or give other inputs too"
            )
        for _ in range(4):
            middle = (low + best) / 2
            if change.tried(middle, forget, forgotten) <= self.target:
                best = middle
            else:
                low = middle
        change.tried(best, forget, forgotten)
        return best

    def _measured(
        self, before: Asked, after: Asked, forget: Probes, others: Probes | None, forgotten: int
    ) -> dict[str, Any]:
        first, second = before.answers(forget.inputs), after.answers(forget.inputs)
        found: dict[str, Any] = {"forget": [float((a.argmax(1) == forgotten).double().mean()) for a in (first, second)]}
        if others is not None:
            a, b = before.answers(others.inputs), after.answers(others.inputs)
            found |= agreement(a, b)
            if others.labels is not None:
                right = torch.from_numpy(np.array(others.labels))
                found["retain"] = [float((x.argmax(1) == right).double().mean()) for x in (a, b)]
        return found


def has_layer_norm(module: torch.nn.Module) -> bool:
    """Whether a network normalises each position of a stream (LayerNorm, RMSNorm under any name)."""
    return any(
        "layernorm" in type(m).__name__.lower() or "rmsnorm" in type(m).__name__.lower() for m in module.modules()
    )


def _kept(before: Asked, after: Asked, others: Probes, forgotten: int) -> float:
    """Share of the other inputs that are answered as before, those that were given to the forgotten class apart."""
    a, b = (x.answers(others.inputs).argmax(1) for x in (before, after))
    rest = a != forgotten
    return float((a == b)[rest].double().mean()) if bool(rest.any()) else 1.0


class _Change:
    """A family of changes to some layers, by strength."""

    def __init__(
        self, method: Unlearning, before: Asked, after: Asked, readers: list[Reader],
        mine: Statistics, rest: Statistics | None, action: str, reflect: float,
    ) -> None:  # fmt: skip
        self.method, self.before, self.after, self.readers, self.action = method, before, after, readers, action
        self.mine, self.rest, self.reflect = mine, rest, reflect
        if action != "refit":
            self.ranked = {r.weight: self._ranked(r) for r in readers}

    def tried(self, strength: float, forget: Probes, forgotten: int) -> float:
        """Apply a strength to the network; the share of the samples that are still answered is returned."""
        for r in self.readers:
            layer: Any = self.after.module.get_submodule(r.layer)
            start = matrix(self.before.module.get_submodule(r.layer)).detach()
            new = self._refitted(r, start, strength) if self.action == "refit" else self._marked(r, start, strength)
            with torch.no_grad():
                new = new.T if type(layer).__name__ == "Conv1D" else new
                layer.weight.copy_(new.reshape(layer.weight.shape))
        answers = self.after.answers(forget.inputs)
        return float((answers.argmax(1) == forgotten).double().mean())

    def entries(self, strength: float) -> dict[str, tuple[tuple[int, int], ...]]:
        """Outputs and inputs whose weights change; empty where whole layers are refitted."""
        if self.action == "refit":
            return {}
        out = {}
        for r in self.readers:
            flat, inputs = self._chosen(r, strength)
            pairs = np.stack(np.divmod(flat.cpu().numpy(), inputs), 1)
            out[r.weight] = tuple((int(a), int(b)) for a, b in sorted(map(tuple, pairs)))
        return out

    def _ranked(self, r: Reader) -> torch.Tensor:
        """The score of every entry, `[outputs, inputs]`."""
        method = self.method
        layer = self.before.module.get_submodule(r.layer)
        found = _entries(layer, r, self.mine, method.score)
        if self.rest is not None and method.contrast:
            found = found - _entries(layer, r, self.rest, method.score)
        return found

    def _chosen(self, r: Reader, share: float) -> tuple[torch.Tensor, int]:
        ranked = self.ranked[r.weight]
        outputs, inputs = ranked.shape
        if self.method.scope == "layer":
            count = max(1, round(share * ranked.numel()))
            return ranked.reshape(-1).argsort(descending=True, stable=True)[:count], inputs
        count = max(1, round(share * inputs))
        top = ranked.argsort(dim=1, descending=True, stable=True)[:, :count]
        return (top + inputs * torch.arange(outputs, device=top.device)[:, None]).reshape(-1), inputs

    def _marked(self, r: Reader, start: torch.Tensor, share: float) -> torch.Tensor:
        flat, inputs = self._chosen(r, share)
        out = start.clone().reshape(len(start), inputs, -1)
        row, column = flat // inputs, flat % inputs
        out[row, column] = 0.0 if self.action == "zero" else -out[row, column]
        return out.reshape(start.shape)

    def _refitted(self, r: Reader, start: torch.Tensor, strength: float) -> torch.Tensor:
        """Weights that give what they gave for the other inputs, and for the samples the others' mean output."""
        assert self.rest is not None
        mine, rest = self.mine.layers[r.weight], self.rest.layers[r.weight]
        s_mine, s_rest = mine.moment(centred=False), rest.moment(centred=False)
        held = fidelity.levels(s_rest)
        scale = strength * (held / fidelity.levels(s_mine)).log().mean().exp()
        weights = start.to(s_rest.device, torch.float64)
        target = weights @ (rest.total / rest.count)
        level_of_mine = torch.outer(target, mine.total / mine.count)
        apart = weights @ s_mine - level_of_mine
        wanted = weights @ s_rest + scale * (level_of_mine - self.reflect * apart)
        held = self.method.damping * held
        system = s_rest + scale * s_mine + torch.diag(held)
        return torch.linalg.solve(system, (wanted + held * weights).T).T.to(start)


def _entries(layer: Any, r: Reader, statistics: Statistics, score: str) -> torch.Tensor:
    moment = statistics.layers[r.weight].moment(centred=False)
    weights = matrix(layer).detach().to(moment.device, torch.float64)
    aligned, squares = fidelity.contributions(weights, moment, rows_read(layer, r).to(moment.device))
    if score == "energy":
        return squares / squares.sum().clamp_min(1e-300)
    if score == "alignment":
        return aligned / aligned.sum().clamp_min(1e-300)
    return fidelity.singleton(aligned, squares)


def undone(model: Model, undo: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The weights of an unlearned model with those of its parent put back.

    Args:
        model: The model after.
        undo: Weights as they were.

    Returns:
        All weights by name.
    """
    arrays = {n: t.array() for n, t in model.tensors.items()}
    return arrays | {n: t.numpy() for n, t in undo.items()}
