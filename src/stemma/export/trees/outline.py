"""Places the models of one family: children below and to the right of their parent, in blocks that are about square."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)

Place = tuple[int, int]
"""Column and row."""

CELL_RATIO = 5.0
"""Width of a cell in heights: a name is wider than it is high."""

IN_ONE_COLUMN = 8
"""Childless siblings that stand one below the other; more of them fill several columns."""


@dataclass(frozen=True, slots=True)
class Block:
    """Columns and rows that a part of a tree takes, and where the parts inside it begin."""

    width: int
    height: int
    inside: tuple[tuple[Any, int, int], ...] = ()


def outline(roots: Sequence[Key], children: Mapping[Key, Sequence[Key]]) -> tuple[dict[Key, Place], int, int]:
    """Columns and rows of a tree, without overlap.

    A model stands in the top left cell of its part of the tree, alone in its row. Its childless children fill a block
    below and to the right; the others follow, each part beside or below the one before it.

    Args:
        roots: Models without a parent.
        children: Children of each model, every model below one parent only.

    Returns:
        Place of each model, number of columns and of rows.
    """
    blocks: dict[Key, Block] = {}
    for node in _bottom_up(roots, children):
        below = _arranged(children.get(node, ()), children, blocks)
        blocks[node] = Block(1 + below.width if below.height else 1, 1 + below.height, below.inside)
    whole = _arranged(roots, children, blocks)
    places: dict[Key, Place] = {}
    waiting: list[tuple[Key, int, int]] = list(whole.inside)
    while waiting:
        node, x, y = waiting.pop()
        places[node] = x, y
        waiting += [(child, x + 1 + dx, y + 1 + dy) for child, dx, dy in blocks[node].inside]
    return places, max(whole.width, 1), max(whole.height, 1)


def packed(sizes: Sequence[tuple[int, int]], columns: int) -> tuple[list[Place], int, int]:
    """Rectangles in shelves, in the order given.

    Args:
        sizes: Columns and rows of each; the tallest first wastes least.
        columns: Columns of a shelf; a wider rectangle has one of its own.

    Returns:
        Place of the top left cell of each, columns and rows of all.
    """
    places, x, y, tall, widest = [], 0, 0, 0, 0
    for width, height in sizes:
        if x and x + width > columns:
            x, y, tall = 0, y + tall, 0
        places.append((x, y))
        x, tall = x + width, max(tall, height)
        widest = max(widest, x)
    return places, widest, y + tall


def square_columns(cells: float, least: int = 1) -> int:
    """Columns of so many cells that look about square, and no fewer than `least`."""
    return max(least, round(math.sqrt(cells / CELL_RATIO)))


def _arranged(keys: Sequence[Key], children: Mapping[Key, Sequence[Key]], blocks: Mapping[Key, Block]) -> Block:
    """Siblings: those without children in a block, the others in shelves below it."""
    leaves = [k for k in keys if not children.get(k)]
    inner = sorted((k for k in keys if children.get(k)), key=lambda k: -blocks[k].height)
    sizes = [(blocks[k].width, blocks[k].height) for k in inner]
    area = len(leaves) + sum(w * h for w, h in sizes)
    columns = square_columns(1.2 * area, max([1, *(w for w, _ in sizes)]))
    across = 1 if len(leaves) <= IN_ONE_COLUMN and not inner else columns
    down = math.ceil(len(leaves) / across)
    inside = [(key, i % across, i // across) for i, key in enumerate(leaves)]
    places, width, height = packed(sizes, columns)
    inside += [(key, x, down + y) for key, (x, y) in zip(inner, places, strict=True)]
    return Block(max(min(across, len(leaves)), width), down + height, tuple(inside))


def _bottom_up(roots: Sequence[Key], children: Mapping[Key, Sequence[Key]]) -> list[Key]:
    """Every model after its children."""
    order, waiting = [], list(roots)
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += children.get(node, ())
    return order[::-1]
