"""Recurrent layers (LSTM, GRU, plain): fused gates, and a state that is read on the axis where it is written.

A layer with H units has an input kernel of 4 H rows (LSTM; GRU 3 H, plain H): one block of H rows per gate, so that a
unit owns every H-th row. Its recurrent kernel carries the same units on both axes. A layer's input is the state of the
previous layer, forward units before backward units; the input of the first layer is left fixed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stemma.architectures.structure import GroupRule, MisfitError, Part, Structure, assemble

GATES = (4, 3, 1)
"""Gates per unit: LSTM, GRU, plain recurrence."""

_TORCH = re.compile(r"(?P<module>(?:.*[./])?)(?P<leaf>weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?:_l(?P<layer>\d{1,4}))?"
                    r"(?P<backward>_reverse)?")  # fmt: skip
_KERAS = re.compile(r"(?P<module>.*[./])(?P<leaf>kernel|recurrent_kernel|bias)(?::0)?")
_BACKWARD = re.compile(r"(^|[._/])(backward|bwd|reverse)([._/\d]|$)")
_TABLE = re.compile(r"emb|wte|lookup|vocab", re.IGNORECASE)


@dataclass
class Cell:
    """The tensors of one recurrent layer in one direction.

    Attributes:
        stack: The module that contains the layers.
        layer: Its number in the stack.
        backward: Whether it reads its input backwards.
        inputs_first: Whether its kernels are stored `[in, out]`, as in Keras.
        names: Tensor by leaf.

    """

    stack: str
    layer: int
    backward: bool
    inputs_first: bool
    names: dict[str, str] = field(default_factory=dict)

    @property
    def units(self) -> str:
        """Name of the group of its units."""
        return f"{self.stack}{'backward' if self.backward else 'unit'}@{self.layer}"

    @property
    def state(self) -> str:
        """Name of the group that is read from it: its units, or their projection."""
        return (
            f"{self.stack}{'out' if not self.backward else 'backout'}@{self.layer}"
            if "hr" in self.names
            else self.units
        )


def from_recurrent_names(shapes: Mapping[str, tuple[int, ...]]) -> Structure | None:
    """Groups of recurrent units, recognised by the kernel names of torch and Keras; None without recurrent layers."""
    cells = list(_cells(shapes))
    if not cells:
        return None
    draft: dict[str, list[list[Part]]] = {}
    rules: dict[str, GroupRule] = {}
    stacks: dict[str, dict[tuple[int, bool], Cell]] = {}
    for cell in cells:
        stacks.setdefault(cell.stack, {})[cell.layer, cell.backward] = cell
    sizes: list[set[int]] = []
    certain = True
    try:
        for place, layers in enumerate(stacks[s] for s in sorted(stacks)):
            for (layer, backward), cell in sorted(layers.items()):
                before = [layers[k] for k in ((layer - 1, False), (layer - 1, True)) if k in layers]
                _draft_cell(cell, before, shapes, draft)
                rules[cell.units] = GroupRule(position=(place, layer, backward, 0))
                rules[cell.state] = GroupRule(position=(place, layer, backward, int(cell.state != cell.units)))
        for layers in stacks.values():
            last = max(layer for layer, _ in layers)
            ends = [cell for (layer, _), cell in sorted(layers.items()) if layer == last]
            read = _attach_reader(ends, cells, shapes, draft)
            certain &= read or len(ends) == 1  # two directions may be added up
            sizes.append({_width(c, shapes) for c in layers.values()})
        axes, groups = assemble(shapes, draft, rules, {})
    except MisfitError:
        return None
    certain &= sum(len(s) for s in sizes) == len(set().union(*sizes))
    return Structure("family:rnn", certain, axes, groups)


def _cells(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Cell]:
    found: dict[tuple[str, int, bool], Cell] = {}
    recurrent_modules = {m["module"] for n in shapes if (m := _KERAS.fullmatch(n)) and m["leaf"] == "recurrent_kernel"}
    for name in shapes:
        if m := _TORCH.fullmatch(name):
            key = m["module"], int(m["layer"] or 0), bool(m["backward"])
            cell = found.setdefault(key, Cell(*key, inputs_first=False))
            cell.names[m["leaf"].replace("weight_", "").replace("bias_", "b_")] = name
        elif (m := _KERAS.fullmatch(name)) and m["module"] in recurrent_modules:
            backward = bool(_BACKWARD.search(m["module"]))
            stack = re.sub(r"(?<![a-z])(forward|backward|fwd|bwd|reverse)(?![a-z])", "", m["module"]) if (
                backward or re.search(r"(^|[._/])(forward|fwd)([._/]|$)", m["module"])
            ) else m["module"]  # fmt: skip
            cell = found.setdefault((stack, 0, backward), Cell(stack, 0, backward, inputs_first=True))
            cell.names[{"kernel": "ih", "recurrent_kernel": "hh", "bias": "b_ih"}[m["leaf"]]] = name
    yield from (c for c in found.values() if {"ih", "hh"} <= set(c.names) and _fits(c, shapes))


def _matrix(cell: Cell, leaf: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Output and input size of one of the cell's kernels."""
    shape = shapes[cell.names[leaf]]
    return (shape[1], shape[0]) if cell.inputs_first else (shape[0], shape[1])


def _fits(cell: Cell, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kernels = [k for k in ("ih", "hh", "hr") if k in cell.names]
    if any(len(shapes[cell.names[k]]) != 2 for k in kernels):
        return False
    written, _ = _matrix(cell, "hh", shapes)
    width, read_by = _width(cell, shapes), _matrix(cell, "ih", shapes)[0]
    projected = "hr" not in cell.names or _matrix(cell, "hr", shapes)[0] == _matrix(cell, "hh", shapes)[1]
    return width > 0 and projected and written == read_by and written in {g * width for g in GATES}


def _width(cell: Cell, shapes: Mapping[str, tuple[int, ...]]) -> int:
    return _matrix(cell, "hr" if "hr" in cell.names else "hh", shapes)[1]


def _draft_cell(
    cell: Cell, before: list[Cell], shapes: Mapping[str, tuple[int, ...]], draft: dict[str, list[list[Part]]]
) -> None:
    gates = [Part(cell.units, interleaved=True)]
    states = [_matrix(c, "hh", shapes)[1] for c in before]
    source = [Part(c.state, rows=n) for c, n in zip(before, states, strict=True)]
    if not source or sum(states) != _matrix(cell, "ih", shapes)[1]:
        source = [Part("unknown", fixed=True)]
    read = {"ih": source, "hh": [Part(cell.state)], "hr": [Part(cell.units)]}
    for leaf, name in cell.names.items():
        if leaf in read:
            written = [Part(cell.state)] if leaf == "hr" else gates
            draft[name] = [read[leaf], written] if cell.inputs_first else [written, read[leaf]]
        elif shapes[name][-1] == _matrix(cell, "ih", shapes)[0] and len(shapes[name]) <= 2:
            draft[name] = [*([[Part("unknown", fixed=True)]] * (len(shapes[name]) - 1)), gates]


def _attach_reader(
    ends: list[Cell], cells: list[Cell], shapes: Mapping[str, tuple[int, ...]], draft: dict[str, list[list[Part]]]
) -> bool:
    """Assign a stack's last state to the only layer that can read it; False if there is no such layer."""
    stack = ends[0].stack
    widths = [_matrix(c, "hh", shapes)[1] for c in ends]
    total_width = sum(widths)
    first = [c for c in cells if c.layer == 0]
    inputs = {_matrix(c, "ih", shapes)[1] for c in first if c.stack == stack}
    next_cells = [c for c in first if c.stack != stack and _matrix(c, "ih", shapes)[1] == total_width]
    taken = {n for c in cells for n in c.names.values()}
    readers = [
        n for n, s in shapes.items() if n not in taken and len(s) >= 2 and total_width in s and not _TABLE.search(n)
    ]
    parts = [Part(c.state, rows=n) for c, n in zip(ends, widths, strict=True)]
    if not readers and len({c.stack for c in next_cells}) == 1 and total_width not in inputs:
        for cell in next_cells:
            draft[cell.names["ih"]][0 if cell.inputs_first else 1] = parts
        return True
    if len(readers) != 1 or next_cells or len(shapes[readers[0]]) != 2:
        return False
    shape = shapes[readers[0]]
    axis = 0 if re.search(r"kernel(:0)?$", readers[0]) else 1
    if shape[axis] != total_width or shape[1 - axis] in inputs | {total_width} or readers[0] in draft:
        return False
    other = [Part("unknown", fixed=True)]
    draft[readers[0]] = [parts, other] if axis == 0 else [other, parts]
    return True
