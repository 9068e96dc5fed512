"""The dependency graph of a deep network, from that of one of its blocks."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph, DependencyGroup
from stemma.edits.streaming.layout import Layout

V = TypeVar("V")


def whole_graph(graph: DependencyGraph, layout: Layout) -> DependencyGraph:
    """The graph of all blocks; it counts the operations and parameters of the whole network."""
    inside = re.compile(rf"{re.escape(layout.block(0))}\.")

    def renamed(name: str, i: int) -> str:
        return inside.sub(f"{layout.block(i)}.", name, count=1) if inside.match(name) else name

    def group_in(g: DependencyGroup, i: int) -> DependencyGroup:
        rows = tuple(replace(r, tensor=renamed(r.tensor, i)) for r in g.rows)
        return replace(g, name=renamed(g.name, i), rows=rows,
                       readers=tuple(replace(r, weight=renamed(r.weight, i)) for r in g.readers))  # fmt: skip

    def everywhere(found: Mapping[str, V]) -> dict[str, V]:
        first = {n: v for n, v in found.items() if not inside.match(n)}
        blocks = {renamed(n, i): v for i in range(layout.depth) for n, v in found.items() if inside.match(n)}
        return first | blocks

    depth = range(layout.depth)
    shapes = {n: t.shape if (t := layout.stored(n)) is not None else s for n, s in graph.shapes.items()
              if not inside.match(n)}  # fmt: skip
    readers = {n: r for n, r in graph.readers.items() if inside.match(n)}
    products = [p for p in graph.matrix_products if inside.match(p[0])]
    return DependencyGraph(
        groups=tuple(group_in(g, i) for i in depth for g in graph.groups),
        refused=everywhere(graph.refused),
        shapes=everywhere(graph.shapes) | shapes,
        parameter_names=frozenset(everywhere(dict.fromkeys(graph.parameter_names))),
        readers={renamed(n, i): replace(r, weight=renamed(n, i)) for i in depth for n, r in readers.items()}
        | {n: r for n, r in graph.readers.items() if n not in readers},
        matrix_products=tuple((renamed(n, i), c) for i in depth for n, c in products)
        + tuple(p for p in graph.matrix_products if p not in products),
        attention=tuple((n, {renamed(g, i): s for g, s in shares.items()}) for i in depth
                        for n, shares in graph.attention),
    )  # fmt: skip
