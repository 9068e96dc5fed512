"""A family tree as SVG: boxes, edges with their relation and probability, and a legend."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stemma.export.figures import percent
from stemma.export.markup import cut, escape, lines_within
from stemma.export.trees.layout import MOST, Family, Place, layout

Document = Mapping[str, Any]

BOX, GUTTER, TRUNK = 216, 200, 30
"""Widths: of a box, of the space between two columns, and of the part of that space where edges turn."""

GAP, LINE, PAD = 26, 16, 10
"""Heights: between rows, of a line of text, and inside a box. Edges run through the gap between rows."""

LETTERS, LABEL = 25, 24
"""Columns of text that fit into a line of a box, and of a label."""

MARGIN, BETWEEN = 16, 30
"""Space around the picture, and between families."""

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "form": ("the same network", ("copy", "reformatted", "permuted")),
    "rounded": ("fewer bits", ("quantized",)),
    "removed": ("something removed", ("pruned", "unlearned")),
    "trained": ("trained further", ("finetuned", "lora", "head-replaced", "same-run")),
    "mixed": ("several parents or parts", ("merged", "part-inherited")),
    "taught": ("learned from outputs", ("distilled",)),
    "loose": ("related in another way", ("related", "same-init", "siblings", "unrelated")),
}
"""By colour: what it stands for, and its relations."""


LOOSE = "related, no direction known"
"""What a bracket beside roots says."""

LEFT = "Parents stand on the left."
PROBABLE = "A percentage is the probability that the edge runs in this direction."
SHARED = "The number at a merge is the share of that parent."
"""How edges are read."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the picture, in pixels.

    Attributes:
        place: The model.
        x: Left edge.
        y: Upper edge.
        height: Its height; all are equally wide.
        above: Height of the gap above its row, where edges run.
        lines: Its name in few lines.
    """

    place: Place
    x: float
    y: float
    height: float
    above: float
    lines: tuple[str, ...]

    @property
    def middle(self) -> float:
        """Height of its middle."""
        return self.y + self.height / 2


def tree_svg(document: Document, most: int = MOST) -> str:
    """The family trees of a lineage as markup for a page that has the style of `tree_style`.

    Args:
        document: What `stemma lineage --json` prints, or `Lineage.to_dict` gives.
        most: Models that are shown at most.

    Returns:
        One `svg` element.
    """
    marks, width, height = _drawn(document, most)
    return _element(document, marks, width, height, f'width="{width:.0f}" height="{height:.0f}"')


def tree_file(document: Document, most: int = MOST) -> bytes:
    """The family trees of a lineage as a file in SVG with its own style, light and dark.

    Args:
        document: What `stemma lineage --json` prints, or `Lineage.to_dict` gives.
        most: Models that are shown at most.

    Returns:
        Well-formed XML in UTF-8.
    """
    marks, width, height = _drawn(document, most)
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    inside = f'<style>{tree_style()}</style><rect class="tree-ground" width="100%" height="100%"/>{marks}'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_element(document, inside, width, height, size)}\n'.encode()


@cache
def tree_style() -> str:
    """The stylesheet of the picture, with names of its own."""
    return Path(__file__).with_name("tree.css").read_text(encoding="utf-8")


def _element(document: Document, inside: str, width: float, height: float, size: str) -> str:
    models, edges = len(document["models"]), len(document["edges"])
    title = f"Family tree of {models:,} models with {edges:,} edges"
    return (f'<svg {size} class="tree" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{title}">'
            f"<title>{title}</title>{inside}</svg>")  # fmt: skip


def _drawn(document: Document, most: int) -> tuple[str, float, float]:
    """Marks, width and height of the whole picture."""
    found = layout(document, most)
    marks: list[str] = []
    y, width = float(MARGIN), 420.0
    for number, family in enumerate(found.families):
        boxes, bottom = boxes_of(family, y + LINE + GAP)
        heading = "no relative found" if family.alone else f"family {number + 1}"
        many = "model" if len(family.places) == 1 else "models"
        label = f"{heading}: {len(family.places):,} {many}"
        marks.append(f'<text class="tree-heading" x="{MARGIN}" y="{y + 12:.0f}">{label}</text>')
        marks += _undirected(family, boxes)
        marks += _edges(family, boxes)
        marks += map(_box, boxes.values())
        width = max([width, *(box.x + BOX + MARGIN for box in boxes.values())])
        y = bottom + BETWEEN
    relations = {str(edge["relation"]) for family in found.families for edge in family.edges}
    if found.left_out:
        words = f"{found.left_out:,} more models are left out: stemma serve shows all of them in the atlas."
        marks.append(f'<text class="tree-note" x="{MARGIN}" y="{y:.0f}">{words}</text>')
        y, width = y + 24, max(width, 8.0 * len(words))
    loose = any(family.undirected for family in found.families)
    legend, y = _legend(relations, y, width, loose=loose)
    if relations:
        edges = [edge for family in found.families for edge in family.edges]
        key = [LEFT, *([PROBABLE] if any(edge.get("confidence") is not None for edge in edges) else ()),
               *([SHARED] if "merged" in relations else ())]  # fmt: skip
        width = max(width, 7.2 * max(map(len, key)) + 2 * MARGIN)
        legend += [f'<text class="tree-note" x="{MARGIN}" y="{y + 18 * (i + 1):.0f}">{line}</text>'
                   for i, line in enumerate(key)]  # fmt: skip
        y += 18 * len(key) + 4
    return "".join([*marks, *legend]), width, y + MARGIN


def boxes_of(family: Family, top: float) -> tuple[dict[str, Box], float]:
    """The box of every model of a family, by name, and where the last one ends.

    Args:
        family: Places on the grid.
        top: Upper edge of the first row.

    Returns:
        Boxes that do not overlap, and the lower edge.
    """
    entries: dict[str, int] = {}
    for edge in family.edges:
        entries[edge["child"]] = entries.get(edge["child"], 0) + 1
    lines = {place.name: tuple(lines_within(place.name, LETTERS)) for place in family.places}
    heights = {
        place.name: max(2 * PAD + LINE * len(lines[place.name]), 2 * LINE * entries.get(place.name, 0) + 4)
        for place in family.places
    }
    tall: dict[int, float] = {}
    for place in family.places:
        tall[place.row] = max(tall.get(place.row, 0.0), heights[place.name])
    at, y = {}, top
    for row in range(*family.rows):
        at[row] = y
        y += tall.get(row, 0.0) + GAP
    step = BOX + (16 if family.alone else GUTTER)
    boxes = {
        place.name: Box(place, MARGIN + place.column * step,
                        at[place.row] + (tall[place.row] - heights[place.name]) / 2, heights[place.name],
                        at[place.row] - GAP / 2, lines[place.name])
        for place in family.places
    }  # fmt: skip
    return boxes, y - GAP


def _box(box: Box) -> str:
    kind = "is-missing" if box.place.missing else "is-alone" if box.place.alone else ""
    start = box.middle - LINE * (len(box.lines) - 1) / 2 + 4.5
    text = "".join(
        f'<text class="tree-name" x="{box.x + 12:.0f}" y="{start + LINE * i:.1f}">{escape(line)}</text>'
        for i, line in enumerate(box.lines)
    )
    shown = cut(box.place.name, 400)
    return (f'<g class="tree-model {kind}"><title>{escape(shown)}</title><rect x="{box.x:.0f}" y="{box.y:.1f}" '
            f'width="{BOX}" height="{box.height:.0f}" rx="7"/>{text}</g>')  # fmt: skip


def _edges(family: Family, boxes: Mapping[str, Box]) -> Iterator[str]:
    """Every edge as a line that ends at the boxes of its models, and its label beside the child."""
    entering: dict[str, list[int]] = {}
    for i, edge in enumerate(family.edges):
        entering.setdefault(edge["child"], []).append(i)
    for child, indices in entering.items():
        for place, i in enumerate(sorted(indices, key=lambda i: boxes[family.edges[i]["parent"]].middle)):
            edge = family.edges[i]
            aside = (place - (len(indices) - 1) / 2) * 2 * LINE
            path = edge_path(boxes[edge["parent"]], boxes[child], aside, i in family.first)
            yield _edge(edge, path, boxes[child], boxes[child].middle + aside)


def edge_path(parent: Box, child: Box, aside: float, first: bool) -> list[tuple[float, float]]:
    """The corners of an edge, from the box of the parent to that of the child.

    Args:
        parent: Box on the left.
        child: Box on the right.
        aside: How far from the middle of the child it ends: edges of a merge end below one another.
        first: Whether it is the edge from the first parent, in whose branch the child stands.

    Returns:
        Points; all runs are horizontal or vertical, and cross no box.
    """
    start, end = (parent.x + BOX, parent.middle), (child.x, child.middle + aside)
    turn = start[0] + (TRUNK / 2 if first else TRUNK / 2 + 7)
    if first or child.place.column == parent.place.column + 1:
        return [start, (turn, start[1]), (turn, end[1]), end]
    last = max(child.x - GUTTER + TRUNK / 2 + 7, child.x - MARGIN / 2 if child.place.column == 0 else 0)
    return [start, (turn, start[1]), (turn, child.above), (last, child.above), (last, end[1]), end]


def _undirected(family: Family, boxes: Mapping[str, Box]) -> Iterator[str]:
    """A dotted bracket beside roots that are related while no direction is known."""
    for i, names in enumerate(family.undirected):
        ends = sorted(boxes[name].middle for name in names)
        x = MARGIN - 5 - 4 * (i % 3)
        route = f"M{x} {ends[0]:.1f}V{ends[-1]:.1f}" + "".join(f"M{x} {end:.1f}H{MARGIN}" for end in ends)
        said = f"{cut(', '.join(names), 400)}: {LOOSE}"
        yield f'<g class="tree-edge is-unknown"><title>{escape(said)}</title><path d="{route}"/></g>'


def _edge(edge: Mapping[str, Any], path: Sequence[tuple[float, float]], child: Box, y: float) -> str:
    """One edge: its line, its label, and all of it in words for whoever points at it."""
    relation, words = str(edge["relation"]), label_of(edge)
    route = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in path)
    said = f"{cut(edge['parent'], 200)} → {cut(edge['child'], 200)}: {words}"
    if edge.get("reason"):
        said += f". {cut(edge['reason'], 300)}"
    text = f'<text class="tree-label" x="{child.x - 8:.0f}" y="{y - 5:.1f}" text-anchor="end">{escape(words)}</text>'
    shown = text if child.place.column else ""
    return (f'<g class="tree-edge is-{group_of(relation)}"><title>{escape(said)}</title><path d="{route}"/>'
            f"{shown}</g>")  # fmt: skip


def label_of(edge: Mapping[str, Any]) -> str:
    """What stands at an edge: relation, share in a merge, probability that it runs in this direction."""
    words = [str(edge["relation"])]
    if edge.get("share") is not None:
        words[0] += f" {edge['share']:.2g}"
    if edge.get("confidence") is not None:
        words.append(percent(edge["confidence"]))
    return cut(" · ".join(words), LABEL + 4)


def group_of(relation: str) -> str:
    """The colour of a relation."""
    return next((group for group, (_, kinds) in GROUPS.items() if relation in kinds), "loose")


def _legend(relations: Collection[str], y: float, width: float, *, loose: bool) -> tuple[list[str], float]:
    """What the colours stand for, as far as they occur; broken where the picture ends."""
    shown = {g: words for g, (words, _) in GROUPS.items() if any(group_of(relation) == g for relation in relations)}
    shown |= {"unknown": LOOSE} if loose else {}
    if not shown:
        return [], y - BETWEEN
    marks, x = [], float(MARGIN)
    for group, words in shown.items():
        wide = 44 + 7.5 * len(words)
        if x + wide > width and x > MARGIN:
            x, y = MARGIN, y + 22
        marks.append(f'<g class="tree-edge is-{group}"><path d="M{x:.0f} {y:.0f}h22"/></g>')
        marks.append(f'<text class="tree-key" x="{x + 28:.0f}" y="{y + 4:.0f}">{words}</text>')
        x += wide
    return marks, y + 8
