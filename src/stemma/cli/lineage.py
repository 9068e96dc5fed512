"""`stemma lineage`: which models come from which?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import AllowUntested, Alpha, FailOnDescendantOf, Jobs, Json, RegistryUrl, word, words

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import Edge, Lineage

CERTAIN = 0.95
"""Probability from which an edge is not remarked on."""

ALONE = 12
"""Models that a line lists by name."""

DRAWN = {"same": "as in the tree", "reversed": "reversed in the tree", "elsewhere": "another parent in the tree",
         "not": "not in the tree"}  # fmt: skip
"""What the weights say of an edit that a receipt tells of."""


DescendantsOf = Annotated[
    str | None,
    typer.Option(
        "--descendants-of",
        metavar="NAME",
        show_default=False,
        help="List the models that descend from this one, each with its paths and their probability.",
    ),
]
AncestorsOf = Annotated[
    str | None,
    typer.Option(
        "--ancestors-of",
        metavar="NAME",
        show_default=False,
        help="List the models that this one descends from, each with its paths and their probability.",
    ),
]
Dot = Annotated[
    Path | None,
    typer.Option("--dot", metavar="FILE", show_default=False, help="Write the trees as a graph for Graphviz."),
]


def lineage(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...", show_default=False, help="Checkpoints, or folders of them; the registry unless given."
        ),
    ] = None,
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    descendants_of: DescendantsOf = None,
    ancestors_of: AncestorsOf = None,
    fail_on_descendant_of: FailOnDescendantOf = None,
    allow_untested: AllowUntested = False,
    dot: Dot = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Draw the family trees of many models.

    Shows which model was made from which, which ancestors are missing, and which relations are not established.
    """
    from stemma.application import lineage as application
    from stemma.cli.descent import show_kin
    from stemma.cli.layout import findings, lines_of
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.cli.policy import enforce

    writable("--dot", dot)
    request = application.LineageRequest(
        paths=words(paths or None),
        registry=registry,
        alpha=alpha,
        jobs=jobs,
        descendants_of=descendants_of,
        ancestors_of=ancestors_of,
        fail_on_descendant_of=words(fail_on_descendant_of),
        allow_untested=allow_untested,
        dot=word(dot),
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.lineage(request, on_progress)
    written(dot, answer.dot)
    result = answer.result
    if as_json:
        show_json(answer.document())
    elif answer.kin is not None:
        show_kin(answer.kin, answer.licences, request.paths)
    else:
        show(
            lines_of(headline(result)),
            "",
            *trees(result),
            findings([*_lines(result), *([("graph", str(dot), "")] if dot else [])]),
            "",
            findings(_closing(result, request.paths)),
        )
    enforce(answer.ruling)


def headline(result: "Lineage") -> "Text":
    """How many families there are, in one line."""
    from rich.text import Text

    related = sum(len(f) > 1 for f in result.families)
    edges = _count(len(result.edges), "edge")
    return Text(
        f"{_count(len(result.models), 'model')}: {_count(related, 'family', 'families')}, {edges}", style="bold"
    )


def _closing(result: "Lineage", paths: Sequence[str] | None) -> "Iterator[tuple[str, str, str]]":
    from stemma.export.answers import path_of

    if result.edges:
        edge = result.edges[0]
        ends = [path_of(end, paths) for end in (edge.parent, edge.child)]
        shown = "A B" if "(missing" in edge.parent + edge.child else " ".join(ends)
        yield "meaning", "each child is listed below its parent, with the relation between them", ""
        yield "next", f"stemma explain {shown} shows what was changed along an edge", ""
    elif any(len(f) > 1 for f in result.families):
        yield "meaning", "some models share weights, but none is established as the parent of another", ""
        yield "next", "stemma compare A B shows the evidence for a pair", ""
    else:
        yield "meaning", "no model here is established as a relative of another", ""
        yield "next", "stemma lineage with further models can show common ancestors", ""


def trees(result: "Lineage") -> "Iterator[Text | str]":
    """One tree per root of a family, each followed by an empty line."""
    below: dict[str, list[Edge]] = {}
    for edge in result.edges:
        below.setdefault(edge.parent, []).append(edge)
    parents: dict[str, list[str]] = {}
    for edge in result.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    lost = [str(m["name"]) for m in result.missing_ancestors]
    related = {m for f in result.families if len(f) > 1 for m in f}
    for top in (*(r for r in result.roots if r in related), *(m for m in lost if m not in parents)):
        yield _tree(top, below, parents)
        yield ""


def _tree(top: str, below: "Mapping[str, list[Edge]]", parents: Mapping[str, list[str]]) -> "Text":
    """A tree from one root; a merge is shown in full under its first parent, and named under the others."""
    from rich.text import Text

    from stemma.cli.layout import console, plain, wrapped

    out = [_name(top, plain(top))]
    waiting = [(edge, "", last) for edge, last in _children(top, below)]
    while waiting:
        edge, margin, last = waiting.pop()
        first = parents[edge.child][0] == edge.parent
        inner = margin + ("    " if last else "│   ")
        children = list(_children(edge.child, below)) if first else []
        step = wrapped(_step(edge, parents[edge.child] if first else []), console().width - len(inner))
        for i, line in enumerate(step):
            start = margin + ("└── " if last else "├── ") if i == 0 else inner + ("│   " if children else "    ")
            out.append(Text(start).append_text(line))
        waiting += [(child, inner, end) for child, end in children]
    return Text("\n").join(out)


def _children(parent: str, below: "Mapping[str, list[Edge]]") -> "Iterator[tuple[Edge, bool]]":
    """The edges below a model, the last one first, and whether each is the last."""
    ordered = sorted(below.get(parent, ()), key=lambda edge: edge.child)
    for edge in reversed(ordered):
        yield edge, edge is ordered[-1]


def _name(name: str, shown: str) -> "Text":
    from rich.text import Text

    return Text(shown, style="dim italic" if name.startswith("(missing") else "bold")


def _step(edge: "Edge", parents: Sequence[str]) -> "Text":
    """A child, what it is to its parent, how probable that is, and its other parents."""
    from rich.text import Text

    from stemma.cli.layout import plain
    from stemma.cli.output import number

    words = [] if edge.relation == "related" else [edge.relation]
    if edge.share is not None:
        words.append(f"share {number(edge.share)}")
    if edge.confidence is not None and edge.confidence < CERTAIN:
        words.append(f"probability {number(edge.confidence)}")
    if others := [plain(p) for p in parents if p != edge.parent]:
        words.append(f"also from {', '.join(others)}")
    line = Text().append_text(_name(edge.child, plain(edge.child)))
    return line.append(f"  {' · '.join(plain(w) for w in words)}", style="dim") if words else line


def _lines(result: "Lineage") -> "Iterator[tuple[str, str | Text, str]]":
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
