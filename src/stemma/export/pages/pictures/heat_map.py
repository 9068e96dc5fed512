"""What became of every tensor as a heat map: a cell for each, a row for each block."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.export.figures import number
from stemma.export.layer_blocks import SAME, block_of
from stemma.export.markup import columns, cut, cut_between, escape
from stemma.types.text import plain

STATUS: Mapping[str, tuple[str, str, str]] = {
    "inherited": ("same", "=", "the parent's numbers, bit for bit"),
    "mapped": ("same", "≅", "the parent's numbers in another order or form"),
    "rounded": ("rounded", "≈", "the parent's numbers, rounded"),
    "rescaled": ("rounded", "×", "the parent's numbers times a factor"),
    "changed": ("changed", "~", "other numbers, which still come from the parent's"),
    "replaced": ("replaced", "!", "nothing of the parent's is left"),
    "gathered": ("changed", "μ", "statistics of data, gathered anew"),
    "new": ("replaced", "+", "the parent has no such tensor"),
    "removed": ("replaced", "−", "the child has no such tensor"),
    "not inherited": ("open", "0", "the two models are not related"),
    "not compared": ("open", "?", "whether the two models are related is not decided"),
}
"""By status: its colour, its sign in the picture, and what it means."""

CELL, PER_ROW = 24, 24
"""Side of a cell, and cells beside one another."""

LETTERS, LETTER = 30, 8
"""Columns of text of a block's name at most, and the width of one."""

MOST_ROWS = 160
"""Rows above which blocks are joined."""

STEPS = 4
"""Shades of a colour."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor of the picture.

    Attributes:
        layer: What became of it.
        x: Left edge.
        y: Upper edge.
    """

    layer: Mapping[str, Any]
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Row:
    """One block of the picture.

    Attributes:
        name: Name of the block.
        y: Upper edge of its first row of cells.
        cells: Its tensors.
    """

    name: str
    y: int
    cells: tuple[Cell, ...]


def heat_map(layers: Sequence[Mapping[str, Any]]) -> str:
    """The tensors of a model, coloured by what became of them and shaded by how much they changed.

    Args:
        layers: As in the document of `stemma explain`.

    Returns:
        One `svg` element; empty where there are no tensors.
    """
    rows = rows_of(layers)
    if not rows:
        return ""
    last = rows[-1].cells[-1]
    height = last.y + CELL + 2
    width = max(cell.x for row in rows for cell in row.cells) + CELL + 2
    marks = "".join(mark for row in rows for mark in _row(row))
    said = f"{len(layers):,} tensors in {len(rows):,} rows, coloured by what became of them"
    return (f'<svg class="heat-map" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{said}"><title>{said}</title>{marks}</svg>')  # fmt: skip


def rows_of(layers: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Where every tensor is drawn: blocks one below the other, broken where they are long."""
    rows, y = [], 2
    blocks = _blocks(layers)
    left = 24 + LETTER * max((min(columns(plain(name)), LETTERS) for name in blocks), default=0)
    for name, members in blocks.items():
        cells = tuple(Cell(c, left + i % PER_ROW * CELL, y + i // PER_ROW * CELL) for i, c in enumerate(members))
        rows.append(Row(name, y, cells))
        y = cells[-1].y + CELL + 2
    return rows


def _blocks(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Tensors by block; blocks are joined by the first parts of their names where there are too many."""
    for parts in (None, 3, 2, 1):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for layer in layers:
            block = block_of(layer["name"])
            name = block if parts is None else ".".join(block.split(".")[:parts])
            found.setdefault(name, []).append(layer)
        if len(found) <= MOST_ROWS:
            return found
    return {f"tensors {i + 1:,} to {min(i + PER_ROW, len(layers)):,}": list(layers[i : i + PER_ROW])
            for i in range(0, len(layers), PER_ROW)}  # fmt: skip


def shade_of(layer: Mapping[str, Any]) -> int:
    """How strong the colour of a tensor is, from 1 to `STEPS`: by its relative change, from 0.001 to 1."""
    relative = layer["relative"]
    if layer["status"] in SAME:
        return 1
    if relative is None:
        return STEPS
    if relative <= 0:
        return 1
    share = 1 + math.log10(min(max(relative, 1e-3), 1)) / 3
    return 1 + min(int(share * STEPS), STEPS - 1)


def _row(row: Row) -> Iterator[str]:
    name = cut_between(row.name, LETTERS)
    yield (f'<g><title>{escape(cut(row.name, 300))}</title><text class="heat-name" x="{row.cells[0].x - 10}" '
           f'y="{row.y + 16}" text-anchor="end">{escape(name)}</text></g>')  # fmt: skip
    for cell in row.cells:
        colour, sign, _ = STATUS.get(cell.layer["status"], ("open", "?", ""))
        change = "" if cell.layer["relative"] is None else f", relative change {number(cell.layer['relative'])}"
        said = f"{cut(cell.layer['name'], 300)}: {cell.layer['status']}{change}, {cell.layer['size']:,} entries"
        middle = f'x="{cell.x + CELL / 2 - 1:.0f}" y="{cell.y + 15}" text-anchor="middle"'
        yield (f'<g class="heat-cell is-{colour} shade-{shade_of(cell.layer)}"><title>{escape(said)}</title>'
               f'<rect x="{cell.x}" y="{cell.y}" width="{CELL - 2}" height="{CELL - 2}" rx="3"/>'
               f"<text {middle}>{sign}</text></g>")  # fmt: skip


def legend(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the signs and colours mean, as far as they occur."""
    seen = {layer["status"] for layer in layers}
    return [{"status": status, "colour": colour, "sign": sign, "meaning": meaning}
            for status, (colour, sign, meaning) in STATUS.items() if status in seen]  # fmt: skip
