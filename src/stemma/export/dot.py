"""A lineage as a graph in the DOT language of Graphviz."""

from collections.abc import Iterator

from stemma.types import Edge, Lineage
from stemma.types.text import short_name


def lineage_dot(lineage: Lineage) -> str:
    """The family trees as DOT text: the same text for the same lineage.

    Missing ancestors are dashed, relations without a direction are dotted lines without an arrow, and an edge is
    labelled with its relation, the share that a merge passes on, and its probability.

    Args:
        lineage: The lineage.

    Returns:
        The text, in which no name can end a label or add a statement.
    """
    return "\n".join(_lines(lineage)) + "\n"


def _lines(lineage: Lineage) -> Iterator[str]:
    yield "digraph lineage {"
    yield '  graph [rankdir="TB"];'
    yield '  node [shape="box", style="rounded"];'
    models = {m.name for m in lineage.models}
    missing = {str(m["name"]) for m in lineage.missing_ancestors} - models
    ends = {end for e in lineage.edges for end in (e.parent, e.child)}
    number = {name: f"n{i}" for i, name in enumerate(sorted(models | missing | ends))}
    digests = {m.name: str(m.digest) for m in lineage.models}
    for name, node in number.items():
        if name in models:
            yield f"  {node} [label={_quoted(name)}, tooltip={_quoted(digests[name])}];"
        else:
            yield f'  {node} [label={_quoted(name.strip("()"))}, style="rounded,dashed"];'
    for e in sorted(lineage.edges, key=lambda e: (e.child, e.parent, e.relation)):
        style = ', style="dashed"' if {e.parent, e.child} & missing else ""
        yield f"  {number[e.parent]} -> {number[e.child]} [label={_quoted(_label(e))}{style}];"
    for pair in sorted({tuple(sorted(r["models"])) for r in lineage.refused if len(r["models"]) == 2}):
        if set(pair) <= number.keys():
            yield f'  {number[pair[0]]} -> {number[pair[1]]} [dir="none", style="dotted", constraint="false"];'
    yield "}"


def _label(edge: Edge) -> str:
    words = [edge.relation]
    if edge.share is not None:
        words.append(f"share {edge.share:.2f}")
    if edge.confidence is not None:
        words.append(f"probability {edge.confidence:.2f}")
    return " · ".join(words)


def _quoted(text: str) -> str:
    """A quoted string of the language; a backslash would begin one of its escapes."""
    return '"' + short_name(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
