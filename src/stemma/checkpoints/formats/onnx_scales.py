"""Axes of quantisation scales in ONNX graphs, from the nodes that use them: for square matrices shapes are ambiguous.

Source: the ONNX operator specification (DequantizeLinear: attribute `axis`, 1 by default; QLinearConv and ConvInteger:
output channels, axis 0; MatMulInteger and QLinearMatMul: columns) and ONNX Runtime's contributed operators.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from stemma.checkpoints.tensor import AbstractStorage, Tensor

LAST = -1
"""Columns, of a matrix of any rank."""
CODE_INPUTS: Mapping[str, tuple[tuple[int, tuple[int, ...], int], ...]] = {
    "MatMulInteger": ((1, (3,), LAST),),
    "QLinearMatMul": ((3, (4, 5), LAST), (0, (1, 2), -2)),
    "QGemm": ((3, (4, 5), LAST),),
    "QLinearConv": ((3, (4, 5), 0),),
    "ConvInteger": ((1, (3,), 0),),
    "DynamicQuantizeMatMul": ((1, (2, 3), LAST),),
    "MatMulIntegerToFloat": ((1, (3, 5), LAST),),
    "QAttention": ((1, (4, 7), LAST),),
}
"""Operators with codes among their inputs: input index, indices of scale and zero point, axis."""
NAMED = (("_quantized", ("_scale", "_zero_point")), ("", ("_scale", "_zero_point")))
"""Endings of scales that are used elsewhere in the graph: MatMulInteger leaves them to a later Mul."""


@dataclass
class Node:
    """The parts of a graph node that are needed to find scales.

    Attributes:
        operator: Its type.
        inputs: Their names, prefixed as tensors are.
        numbers: Its integer attributes.

    """

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AxisStorage(AbstractStorage):
    """Scales or zero points that run along a known axis of their codes."""

    base: AbstractStorage
    axis: int

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        self.base.read_into(start, out)


@dataclass(frozen=True)
class CodesStorage(AbstractStorage):
    """Codes that the graph dequantises itself, with the names of their scale and zero point (empty if none)."""

    base: AbstractStorage
    scale: str
    zero: str

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        self.base.read_into(start, out)


def annotate_scales(tensors: Iterable[Tensor], nodes: Iterable[Node]) -> tuple[Tensor, ...]:
    """The same tensors; codes are annotated with their scale, scales and zero points with their axis."""
    found = {t.name: t for t in tensors}
    axes: dict[str, int] = {}
    scales: dict[str, tuple[str, str]] = {}
    for node in nodes:
        if node.operator == "DequantizeLinear" and len(node.inputs) > 1:
            scales.setdefault(node.inputs[0], (node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else ""))
        for codes, name, axis in _uses(node):
            tensor, scale = found.get(codes), found.get(name)
            if tensor is None or scale is None or len(scale.shape) != 1 or not tensor.shape:
                continue
            where = axis % len(tensor.shape) if -len(tensor.shape) <= axis < len(tensor.shape) else None
            if where is not None and scale.shape[0] == tensor.shape[where]:
                axes.setdefault(name, where)
    return tuple(_annotated(t, axes, scales) for t in found.values())


def _annotated(t: Tensor, axes: Mapping[str, int], scales: Mapping[str, tuple[str, str]]) -> Tensor:
    if t.name in axes:
        return Tensor(t.name, t.dtype, t.shape, AxisStorage(t.storage, axes[t.name]))
    return Tensor(t.name, t.dtype, t.shape, CodesStorage(t.storage, *scales[t.name])) if t.name in scales else t


def _uses(node: Node) -> Iterator[tuple[str, str, int]]:
    # yields names of codes, names of scales or zero points, and their axis
    inputs = dict(enumerate(node.inputs))
    if node.operator == "DequantizeLinear":
        for i in (1, 2):
            yield inputs.get(0, ""), inputs.get(i, ""), node.numbers.get("axis", 1)
        return
    for at, others, axis_of_operator in CODE_INPUTS.get(node.operator, ()):
        codes = inputs.get(at, "")
        turned = node.operator == "QGemm" and node.numbers.get("transB", 0)
        axis = 0 if turned else axis_of_operator
        for i in others:
            yield codes, inputs.get(i, ""), axis
        for ending, endings in NAMED:
            if codes.endswith(ending):
                for more in endings:
                    yield codes, codes.removesuffix(ending) + more, axis
