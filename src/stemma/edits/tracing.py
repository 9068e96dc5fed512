"""Runs a network on a few inputs and notes, operation by operation, which rows of its weights belong together.

The code of the network is run as it is, whatever its control flow: what is watched are the tensor operations that it
comes down to. An operation that is not known fixes the units that reach it, so that nothing is removed by mistake.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stemma.edits.identities import Identities, Label

Rule = Callable[["Tracing", Any, tuple[Any, ...], dict[str, Any], Any], None]

OUTPUT = "it is an output of the network"
"""Why units of the output stay."""


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution that was run.

    Attributes:
        weight: Name of the weight, empty where two activations were multiplied.
        positions: How often each entry of the weight was used, for one input; else multiplications for one input.
        label: Units on the batch axes of a product of activations (heads), None elsewhere.
    """

    weight: str
    positions: float
    label: Label | None = None


@dataclass
class Use:
    """How a weight is used in products.

    Attributes:
        reads: Axis of the weight that meets the input.
        writes: Axis that is the output's.
        kind: `linear` or `convolution`.
        normed: Whether batch norm takes its output.
        taken: Whether anything else takes it.
        times: How often it was used.
    """

    reads: int
    writes: int
    kind: str
    normed: bool = False
    taken: bool = False
    times: int = 0


class Tracing(TorchDispatchMode):
    """Watches every tensor operation below it.

    Attributes:
        known: The numbers of rows and which are one unit.
        weights: Name by the id of each parameter and buffer.
        axes: Numbers of the rows of every axis of every weight that was met, by name.
        products: Matrix products, in order.
        uses: How weights were used in them.
        uncounted: Weights that went into operations that are not known, with these.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], batch: int) -> None:
        super().__init__()
        self.known, self.batch = Identities(), batch
        self.weights = {id(t): name for name, t in weights.items()}
        self.axes: dict[str, tuple[torch.Tensor, ...]] = {}
        self.products: list[Product] = []
        self.uses: dict[str, Use] = {}
        self.uncounted: dict[str, str] = {}
        self._labels: dict[int, Label | None] = {}
        self._origins: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._outputs: dict[int, str] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and label what it gives."""
        from stemma.edits.operations import rule_of

        out = func(*args, **(kwargs or {}))
        self._alive.append((args, kwargs, out))  # ids name tensors only while they live
        for tensor in flat((args, kwargs)):
            use = self.uses.get(self._outputs.get(id(tensor), ""))
            if use is not None and "batch_norm" in str(func):
                use.normed = True
            elif use is not None:
                use.taken = True
        rule_of(func)(self, func, args, kwargs or {}, out)
        return out

    def label(self, tensor: Any) -> Label | None:
        """What is known of a tensor's rows; of a weight, the numbers of its longest last axis.

        Returns:
            Its label; None where it carries no units.
        """
        if not isinstance(tensor, torch.Tensor):
            return None
        if id(tensor) not in self._origins and id(tensor) not in self.weights:
            return self._labels.get(id(tensor))
        long = [a for a in range(tensor.ndim) if tensor.shape[a] > 1]
        for axis in long[:-1]:
            self.known.fix(self.row_label(tensor, axis), "a weight is used in a way that ties several of its axes")
        return self.row_label(tensor, long[-1]) if long else None

    def set(self, tensor: Any, label: Label | None) -> None:
        """Label a tensor."""
        if isinstance(tensor, torch.Tensor):
            self._labels[id(tensor)] = label

    def origin(self, tensor: Any) -> tuple[str, tuple[int, ...]] | None:
        """The weight that a tensor is, perhaps with its axes in another order.

        Returns:
            Name, and the weight's axis at each of the tensor's.
        """
        if not isinstance(tensor, torch.Tensor):
            return None
        if id(tensor) in self.weights:
            return self.weights[id(tensor)], tuple(range(tensor.ndim))
        return self._origins.get(id(tensor))

    def reorder(self, tensor: torch.Tensor, name: str, axes: tuple[int, ...]) -> None:
        """Say that a tensor is a weight with its axes in this order."""
        self._origins[id(tensor)] = name, axes

    def rows(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """The numbers of a weight's rows.

        Args:
            tensor: A weight, perhaps transposed.
            axis: Of this tensor.

        Returns:
            Integers `[rows]`.
        """
        found = self.origin(tensor)
        assert found is not None
        name, order = found
        if name not in self.axes:
            back = sorted(range(tensor.ndim), key=lambda i: order[i])
            self.axes[name] = tuple(self.known.fresh(tensor.shape[i]) for i in back)
        return self.axes[name][order[axis]]

    def row_label(self, tensor: torch.Tensor, axis: int) -> Label:
        """The same as a label of the tensor."""
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return self.rows(tensor, axis).reshape(shape)

    def used(self, name: str, reads: int, writes: int, kind: str, out: Any, positions: float) -> None:
        """Note a product with a weight."""
        use = self.uses.setdefault(name, Use(reads, writes, kind))
        use.times += 1
        self.products.append(Product(name, positions / self.batch))
        self._outputs[id(out)] = name

    def passed_on(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Say that a tensor is the direct output of a product, only in another shape."""
        if id(before) in self._outputs:
            name = self._outputs[id(before)]
            self._outputs[id(after)] = name

    def unknown(self, func: Any, args: Any, out: Any) -> None:
        """Fix everything that reaches an operation that is not known."""
        for tensor in flat(args):
            self.known.fix(self.label(tensor), f"the operation {func} is not known")
            found = self.origin(tensor)
            if found is not None and tensor.ndim > 1:
                self.uncounted[found[0]] = f"the operation {func} is not known, and what it multiplies is not counted"
        for tensor in flat(out):
            self.set(tensor, None)


@dataclass(frozen=True, eq=False)
class Traced:
    """What one run showed.

    Attributes:
        axes: Unit of every row of every axis, by weight.
        why: Why a unit cannot be removed.
        uses: How weights are used.
        products: Matrix products, in order.
        units: Unit by number, to look up labels.
        shapes: Shape by weight.
        learned: Names of the parameters; the other weights are buffers.
        uncounted: Weights whose multiplications are not counted, with the reason.
    """

    axes: Mapping[str, tuple[Any, ...]]
    why: Mapping[int, str]
    uses: Mapping[str, Use]
    products: tuple[Product, ...]
    units: Any = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]
    learned: frozenset[str]
    uncounted: Mapping[str, str]


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors in arguments or results.

    Returns:
        The tensors, in order.
    """
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


def trace(module: torch.nn.Module, forward: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> Traced:
    """Run a network once and note which rows belong together.

    Cost: one forward pass, every intermediate kept.

    Args:
        module: Holds the weights.
        forward: Runs it, from raw inputs.
        inputs: A few inputs `[n, …]`, two or more.

    Returns:
        What was seen.
    """
    norms = torch.nn.modules.batchnorm._BatchNorm
    kept = {n for n, m in module.named_modules() if isinstance(m, norms)}  # other buffers are constants of the code
    buffers = {n: t for n, t in module.named_buffers() if n.rpartition(".")[0] in kept}
    weights = dict(module.named_parameters()) | buffers
    weights = {n: t for n, t in weights.items() if t.ndim and t.is_floating_point()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Tracing(weights, len(inputs)) as seen:
            answer = forward(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    known = seen.known
    for tensor in shown(answer):
        known.fix(seen.label(tensor), OUTPUT)
    for name in seen.uses.keys() - {n for n, u in seen.uses.items() if u.times == 1}:
        for rows in seen.axes.get(name, ()):
            known.fix(rows, f"{name} is used more than once")
    unit, why = known.components()
    axes = {n: tuple(unit[r.numpy()] for r in rows) for n, rows in seen.axes.items()}
    shapes = {n: tuple(t.shape) for n, t in weights.items()}
    learned = frozenset(n for n, _ in module.named_parameters())
    return Traced(axes, why, seen.uses, tuple(seen.products), unit, shapes, learned, seen.uncounted)


def shown(answer: Any) -> list[torch.Tensor]:
    """Every tensor of what a network returns: of an object of its own, everything that it holds.

    Args:
        answer: A tensor, a collection, an output of transformers, any object.

    Returns:
        The tensors.
    """
    if hasattr(answer, "to_tuple"):
        answer = answer.to_tuple()
    elif not isinstance(answer, torch.Tensor | Mapping | tuple | list):
        slots = [getattr(answer, n, None) for n in getattr(type(answer), "__slots__", ())]
        answer = [*getattr(answer, "__dict__", {}).values(), *slots]
    return flat(answer)
