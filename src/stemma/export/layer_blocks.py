"""The tensors of a model by block, for tables and pictures of what became of them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]
"""What became of one tensor, as in the document of `stemma explain`."""

LONG = 40
"""Tensors from which a model is summarised by block."""

SAME = frozenset({"inherited", "mapped"})
"""Status of tensors whose relative change says nothing: the numbers are the parent's."""


def block_of(name: str) -> str:
    """The block of a tensor: its name up to the first number, else up to its last part."""
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered[1] if numbered else name.rsplit(".", 1)[0]


def rows(
    layers: Sequence[Layer], number: Callable[[float], str], *, by_block: bool
) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of a table: name, what became of it, relative change, entries, and what was done.

    Args:
        layers: Every tensor.
        number: Writes a figure.
        by_block: Whether tensors of one block and one status share a row, in the order of their first tensor.

    Yields:
        Cells.
    """
    if not by_block:
        yield from (_row(layer, number) for layer in layers)
        return
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((block_of(layer["name"]), layer["status"]), []).append(layer)
    for (block, status), members in groups.items():
        marks = sorted({m for c in members for m in c["marks"] if m != status})
        name = f"{block} ({len(members)} tensors)" if len(members) > 1 else members[0]["name"]
        few = "; ".join(marks[:3]) + (" …" if len(marks) > 3 else "")
        yield name, status, _range(members, status, number), f"{sum(c['size'] for c in members):,}", few


def _row(layer: Layer, number: Callable[[float], str]) -> tuple[str, str, str, str, str]:
    name = layer["name"]
    shown = name if layer["parent"] in ("", name) else f"{name} (was {layer['parent']})"
    marks = [m for m in layer["marks"] if m != layer["status"]]
    return shown, layer["status"], _range([layer], layer["status"], number), f"{layer['size']:,}", "; ".join(marks)


def _range(members: Sequence[Layer], status: str, number: Callable[[float], str]) -> str:
    known = [c["relative"] for c in members if c["relative"] is not None]
    if status in SAME or not known:
        return ""
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"
