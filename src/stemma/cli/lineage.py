"""`stemma lineage`: which models come from which?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import AllowUntested, Alpha, FailOnDescendantOf, Html, Jobs, Json, RegistryUrl, word, words

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.application.lineage import ReusedPart
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

Redraw = Annotated[
    bool,
    typer.Option(
        "--redraw",
        help="Draw every family of the registry again, also where no model joined or left it since the last time.",
    ),
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
    redraw: Redraw = False,
    jobs: Jobs = 1,
    html: Html = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", show_default=False, help="Write the picture of the trees alone, as SVG."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the family trees of many models.

    Shows which model was made from which, which ancestors are missing, and which relations are not established.
    """
    from stemma.application import lineage as application
    from stemma.application.pages import page_of, tree_picture
    from stemma.cli.descent import show_kin
    from stemma.cli.layout import answer_text, findings, lines_of
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.cli.policy import enforce
    from stemma.export.answers import lineage_answer, lineage_closing

    for option, file in (("--html", html), ("--svg", svg), ("--dot", dot)):
        writable(option, file)
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
        redraw=redraw,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.lineage(request, on_progress)
    written(dot, answer.dot)
    if html is not None:
        written(html, page_of(answer))
    if svg is not None:
        written(svg, tree_picture(answer))
    document, result = answer.document(), answer.result
    if as_json:
        show_json(document)
    elif answer.kin is not None:
        show_kin(answer.kin, answer.licences, request.paths)
    else:
        files = (("page", html), ("picture", svg), ("graph", dot))
        rows = [
            *_reused(answer.reused),
            *_lines(result),
            *((label, str(file), "") for label, file in files if file is not None),
        ]
        closing = zip(("meaning", "next"), lineage_closing(document), strict=True)
        show(lines_of(answer_text(lineage_answer(document))), "", *trees(result), findings(rows), "",
             findings((label, text, "") for label, text in closing))  # fmt: skip
    enforce(answer.ruling)


def trees(result: "Lineage") -> "Iterator[Text | str]":
    """One tree per root of a family, and an empty line after each; roots alone in one family stand together."""
    below: dict[str, list[Edge]] = {}
    for edge in result.edges:
        below.setdefault(edge.parent, []).append(edge)
    parents: dict[str, list[str]] = {}
    for edge in result.edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    lost = [str(m["name"]) for m in result.missing_ancestors]
    related = {m for f in result.families if len(f) > 1 for m in f}
    home = {m: i for i, f in enumerate(result.families) for m in f}
    last: str | None = None
    for top in (*(r for r in result.roots if r in related), *(m for m in lost if m not in parents)):
        if last is not None and (top in below or last in below or home.get(top) != home.get(last)):
            yield ""
        yield _tree(top, below, parents)
        last = top
    if last is not None:
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


def _reused(kept: "ReusedPart | None") -> "Iterator[tuple[str, str | Text, str]]":
    if kept is not None:
        count = "1 model" if kept.models == 1 else f"{kept.models:,} models"
        why = "no model joined or left their families since; draw them again with --redraw"
        yield "kept", f"{count} as drawn on {kept.drawn_at[:10]}", why


def _lines(result: "Lineage") -> "Iterator[tuple[str, str | Text, str]]":
    for m in result.missing_ancestors:
        yield "missing", f"{m['name']}: no model here can be the parent of {', '.join(m['children'])}", ""
    said: set[str] = set()
    for r in sorted(result.refused, key=lambda r: str(r["reason"])):
        reason = str(r["reason"])
        yield "undecided", " and ".join(r["models"]), "as above" if reason in said else reason
        said.add(reason)
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
