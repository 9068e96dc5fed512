"""The tracing mode that a network runs under: unit labels of its tensors, and how its weights are used.

The rules in `operation_rules`, `matmul_rules` and `elementwise_rules` read and write it, one tensor operation at a
time; `tracer.trace` runs a network under it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stemma.edits.dependency_graph.unit_labels import Label, UnitLabels

Rule = Callable[["TracingMode", Any, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True)
class MatrixProduct:
    """A matrix product or convolution that was run.

    Attributes:
        weight: Name of the weight, empty for a product of two activations.
        positions: How often each entry of the weight was used per input; without a weight, multiplications per input.
        label: Units on the batch axes of a product of activations (heads), None elsewhere.
    """

    weight: str
    positions: float
    label: Label | None = None


@dataclass
class WeightUse:
    """How a weight is used in products.

    Attributes:
        input_axis: Axis of the weight that is summed over.
        output_axis: Axis of the weight that becomes the output's.
        kind: `linear` or `convolution`.
        normed: Whether batch norm takes its output.
        used_elsewhere: Whether anything else takes its output.
        times: How often it was used.
    """

    input_axis: int
    output_axis: int
    kind: str
    normed: bool = False
    used_elsewhere: bool = False
    times: int = 0


class TracingMode(TorchDispatchMode):
    """Traces every tensor operation inside it.

    Attributes:
        labels: The numbers of rows, and which are one unit.
        weights: Name by the id of each parameter and buffer.
        axes: Numbers of the rows of every axis of every weight that was used, by name.
        matrix_products: Matrix products, in order.
        uses: How weights were used in them.
        uncounted: Weights that went into operations without a rule, with the reason.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], batch: int, rule_of: Callable[[Any], Rule]) -> None:
        super().__init__()
        self.labels, self.batch, self._rule_of = UnitLabels(), batch, rule_of
        self.weights = {id(t): name for name, t in weights.items()}
        self.axes: dict[str, tuple[torch.Tensor, ...]] = {}
        self.matrix_products: list[MatrixProduct] = []
        self.uses: dict[str, WeightUse] = {}
        self.uncounted: dict[str, str] = {}
        self._labels: dict[int, Label | None] = {}
        self._origins: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._outputs: dict[int, str] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and label its result."""
        out = func(*args, **(kwargs or {}))
        self._alive.append((args, kwargs, out))  # ids name tensors only while they live
        for tensor in tensors_in((args, kwargs)):
            use = self.uses.get(self._outputs.get(id(tensor), ""))
            if use is not None and "batch_norm" in str(func):
                use.normed = True
            elif use is not None:
                use.used_elsewhere = True
        try:
            self._rule_of(func)(self, func, args, kwargs or {}, out)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):  # arguments that the rule does not know
            self.unknown(func, (args, kwargs), out)
        return out

    def label(self, tensor: Any) -> Label | None:
        """The label of a tensor's rows, of a weight the numbers along its last long axis; None without units."""
        if not isinstance(tensor, torch.Tensor):
            return None
        if id(tensor) not in self._origins and id(tensor) not in self.weights:
            return self._labels.get(id(tensor))
        long = [a for a in range(tensor.ndim) if tensor.shape[a] > 1]
        for axis in long[:-1]:
            self.labels.fix(self.row_label(tensor, axis), "its weight is used in a way that ties several of its axes")
        return self.row_label(tensor, long[-1]) if long else None

    def set(self, tensor: Any, label: Label | None) -> None:
        """Label a tensor."""
        if isinstance(tensor, torch.Tensor):
            self._labels[id(tensor)] = label

    def origin(self, tensor: Any) -> tuple[str, tuple[int, ...]] | None:
        """The name of the weight that a tensor is, and the weight axis of each of its axes; None for others."""
        if not isinstance(tensor, torch.Tensor):
            return None
        if id(tensor) in self.weights:
            return self.weights[id(tensor)], tuple(range(tensor.ndim))
        return self._origins.get(id(tensor))

    def reorder(self, tensor: torch.Tensor, name: str, axes: tuple[int, ...]) -> None:
        """Record that a tensor is a weight with its axes in this order."""
        self._origins[id(tensor)] = name, axes

    def rows(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """The numbers `[rows]` of a weight's rows on an axis of the tensor, which may be transposed."""
        found = self.origin(tensor)
        assert found is not None
        name, order = found
        if name not in self.axes:
            back = sorted(range(tensor.ndim), key=lambda i: order[i])
            self.axes[name] = tuple(self.labels.new_labels(tensor.shape[i]) for i in back)
        return self.axes[name][order[axis]]

    def row_label(self, tensor: torch.Tensor, axis: int) -> Label:
        """The same as a label of the tensor."""
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return self.rows(tensor, axis).reshape(shape)

    def used(self, name: str, input_axis: int, output_axis: int, kind: str, out: Any, positions: float) -> None:
        """Record a product with a weight."""
        use = self.uses.setdefault(name, WeightUse(input_axis, output_axis, kind))
        use.times += 1
        self.matrix_products.append(MatrixProduct(name, positions / self.batch))
        self._outputs[id(out)] = name

    def passed_on(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Record that a tensor is the direct output of a product, only reshaped."""
        if id(before) in self._outputs:
            name = self._outputs[id(before)]
            self._outputs[id(after)] = name

    def unknown(self, func: Any, args: Any, out: Any) -> None:
        """Fix the units of everything that reaches an operation without a rule."""
        for tensor in tensors_in(args):
            self.labels.fix(self.label(tensor), f"the operation {func} is not supported")
            found = self.origin(tensor)
            if found is not None and tensor.ndim > 1:
                self.uncounted[found[0]] = f"the operation {func} is not supported, so its MACs are not counted"
        for tensor in tensors_in(out):
            self.set(tensor, None)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in nested arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []
