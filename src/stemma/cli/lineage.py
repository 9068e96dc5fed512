"""`stemma lineage`: who comes from whom?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import Alpha, Jobs, Json, RegistryUrl

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

    from stemma.types import Edge, Lineage

CERTAIN = 0.95
"""Probability from which an edge is not remarked on."""

ALONE = 12
"""Models that a line lists by name."""

DRAWN = {"same": "drawn so", "reversed": "drawn the other way round", "elsewhere": "drawn below another model",
         "not": "not drawn"}  # fmt: skip
"""What the weights say of an edit that a receipt tells of."""


def lineage(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...", show_default=False, help="Checkpoints, or folders of them; the registry unless given."
        ),
    ] = None,
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Draw the family tree of many models.

    Who was made from whom, which ancestors are missing, and which relations are not believed.
    """
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import progress, show, show_json
    from stemma.workspace.lineage import lineage_of

    options = {} if alpha is None else {"alpha": alpha}
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, jobs=jobs, progress=report)
        result = lineage_of(workspace, paths or None, progress=report, **options)
    if as_json:
        show_json(result.to_dict())
        return
    show(*drawn(result))


def drawn(result: "Lineage") -> "Iterator[Table | Text | str]":
    """What a person reads: one tree per root, then what is missing, refused, alone, and not seen.

    Args:
        result: The lineage.

    Yields:
        Trees and lines.
    """
    from stemma.cli.output import findings

    below: dict[str, list[Edge]] = {}
    for edge in result.edges:
        below.setdefault(edge.parent, []).append(edge)
    parents: dict[str, list[str]] = {}
    for edge in result.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    lost = [str(m["name"]) for m in result.missing_ancestors]
    related = {m for f in result.families if len(f) > 1 for m in f}
    tops = [*(r for r in result.roots if r in related), *(m for m in lost if m not in parents)]
    for top in tops:
        yield _wrapped(_tree(top, below, parents))
        yield ""
    yield findings(_lines(result, below))


def _tree(top: str, below: "Mapping[str, list[Edge]]", parents: Mapping[str, list[str]]) -> "Tree":
    """A tree from one root; a merge is shown in full under its first parent, and named under the others."""
    from rich.tree import Tree

    from stemma.cli.output import plain

    out = Tree(_name(top, plain(top)))
    todo = [(out, top)]
    while todo:
        branch, node = todo.pop()
        for edge in sorted(below.get(node, ()), key=lambda e: e.child):
            first = parents[edge.child][0] == node
            leaf = branch.add(_step(edge, parents[edge.child] if first else []))
            if first:
                todo.append((leaf, edge.child))
    return out


def _wrapped(tree: "Tree") -> "Table":
    """A tree whose long lines go on below instead of being cut off."""
    from rich.table import Table

    out = Table.grid()
    out.add_column(overflow="fold")
    out.add_row(tree)
    return out


def _name(name: str, shown: str) -> "Text":
    from rich.text import Text

    return Text(shown, style="dim italic" if name.startswith("(missing") else "bold")


def _step(edge: "Edge", parents: Sequence[str]) -> "Text":
    """A child, what it is to its parent, how sure that is, and its other parents."""
    from stemma.cli.output import number, plain

    line = _name(edge.child, plain(edge.child))
    told = [] if edge.relation == "related" else [edge.relation]
    if edge.share is not None:
        told.append(f"share {number(edge.share)}")
    if edge.confidence is not None and edge.confidence < CERTAIN:
        told.append(f"probability {number(edge.confidence)}")
    if others := [plain(p) for p in parents if p != edge.parent]:
        told.append(f"also from {', '.join(others)}")
    return line.append(f"  {' · '.join(plain(t) for t in told)}", style="dim") if told else line


def _lines(result: "Lineage", below: "Mapping[str, list[Edge]]") -> "Iterator[tuple[str, str | Text, str]]":
    related = sum(len(f) > 1 for f in result.families)
    yield "found", (f"{_count(len(result.models), 'model')} · {_count(related, 'family', 'families')} · "
                    f"{_count(len(result.edges), 'edge')}"), ""  # fmt: skip
    for m in result.missing_ancestors:
        yield "missing", f"{m['name']}: no model here can be the parent of {', '.join(m['children'])}", ""
    for r in result.refused:
        yield "undecided", " and ".join(r["models"]), str(r["reason"])
    for r in result.receipts:
        yield "receipt", f"{r['child']}: {r['operation']} of {r['parent']}", DRAWN[r["drawn"]]
    open_ = {t["model"] for t in result.not_tested}
    alone = [f[0] for f in result.families if len(f) == 1 and f[0] not in open_]
    if alone:
        yield "no relative", _few(alone), ""
    by_reason: dict[str, list[str]] = {}
    for t in result.not_tested:
        by_reason.setdefault(t["why"], []).append(t["model"])
    for why, names in by_reason.items():
        yield "not tested", *((_few(names), why) if any(names) else (why, ""))
    yield "cannot see", " · ".join(result.cannot_see), ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:ALONE]) + (f" and {len(names) - ALONE:,} more" if len(names) > ALONE else "")


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
