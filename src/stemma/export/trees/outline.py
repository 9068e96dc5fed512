"""Places the models of one family: a child stands to the right of its parent, childless siblings in a block."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

Place = tuple[int, int]
"""Column and row."""


def outline(
    roots: Sequence[Key], children: Mapping[Key, Sequence[Key]], columns_of: "BlockShape"
) -> tuple[dict[Key, Place], int, int]:
    """Columns and rows of a tree, without overlap.

    A model stands in the top left cell of its part of the tree, alone in its row. Its childless children fill a block
    below and to the right, and the others follow below the block, each with its own part.

    Args:
        roots: Models without a parent.
        children: Children of each model, every model below one parent only.
        columns_of: Columns of a block of so many models.

    Returns:
        Place of each model, number of columns and of rows.
    """
    width: dict[Key, int] = {}
    height: dict[Key, int] = {}
    for node in _bottom_up(roots, children):
        below = children.get(node, ())
        leaves, inner = _split(below, children)
        across, down = _block(len(leaves), columns_of)
        width[node] = 1 + max([across, *(width[k] for k in inner)]) if below else 1
        height[node] = 1 + down + sum(height[k] for k in inner)
    places: dict[Key, Place] = {}
    waiting: list[tuple[Key, int, int]] = []
    leaves, inner = _split(roots, children)
    across, down = _block(len(leaves), columns_of)
    _fill(places, leaves, 0, 0, across)
    widest, row = max([1, across, *(width[k] for k in inner)]), down
    for root in inner:
        waiting.append((root, 0, row))
        row += height[root]
    while waiting:
        node, x, y = waiting.pop()
        places[node] = x, y
        leaves, inner = _split(children.get(node, ()), children)
        across, down = _block(len(leaves), columns_of)
        _fill(places, leaves, x + 1, y + 1, across)
        below = y + 1 + down
        for child in inner:
            waiting.append((child, x + 1, below))
            below += height[child]
    return places, widest, max(row, 1)


class BlockShape:
    """Columns of a block of childless siblings, so that it looks about square."""

    def __init__(self, cell_ratio: float = 5.0) -> None:
        """Choose the shape.

        Args:
            cell_ratio: Width of a cell in heights.
        """
        self.cell_ratio = cell_ratio

    def __call__(self, n: int) -> int:
        """Columns for `n` models; up to eight stand one below the other."""
        return 1 if n <= 8 else max(1, round(math.sqrt(n / self.cell_ratio)))


def _block(n: int, columns_of: BlockShape) -> tuple[int, int]:
    across = columns_of(n) if n else 0
    return across, math.ceil(n / across) if across else 0


def _fill(places: dict[Key, Place], keys: Sequence[Key], x: int, y: int, across: int) -> None:
    for i, key in enumerate(keys):
        places[key] = x + i % across, y + i // across


def _split(keys: Sequence[Key], children: Mapping[Key, Sequence[Key]]) -> tuple[list[Key], list[Key]]:
    """Models without children, and the others."""
    return [k for k in keys if not children.get(k)], [k for k in keys if children.get(k)]


def _bottom_up(roots: Sequence[Key], children: Mapping[Key, Sequence[Key]]) -> list[Key]:
    """Every model after its children."""
    order, waiting = [], list(roots)
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += children.get(node, ())
    return order[::-1]
