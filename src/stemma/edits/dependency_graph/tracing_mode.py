"""What is noted while a network runs: labels of its tensors, and how its weights are used.

The rules in `operation_rules`, `matmul_rules` and `elementwise_rules` read and write it, one tensor operation at a
time; `tracer.trace` runs a network under it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stemma.edits.dependency_graph.unit_labels import Identities, Label

Rule = Callable[["Tracing", Any, tuple[Any, ...], dict[str, Any], Any], None]


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

    def __init__(self, weights: Mapping[str, torch.Tensor], batch: int, rule_of: Callable[[Any], Rule]) -> None:
        super().__init__()
        self.known, self.batch, self._rule_of = Identities(), batch, rule_of
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
        out = func(*args, **(kwargs or {}))
        self._alive.append((args, kwargs, out))  # ids name tensors only while they live
        for tensor in flat((args, kwargs)):
            use = self.uses.get(self._outputs.get(id(tensor), ""))
            if use is not None and "batch_norm" in str(func):
                use.normed = True
            elif use is not None:
                use.taken = True
        self._rule_of(func)(self, func, args, kwargs or {}, out)
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
