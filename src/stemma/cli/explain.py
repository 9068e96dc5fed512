"""`stemma explain`: what was changed from parent to child, layer by layer?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import Alpha, Html, Json, RegistryUrl

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.workspace.explain import Explained

SHOWN = 0.005
"""Share of the change that is explained from which it is shown as a percentage."""


def explain(
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="A path, a registry name or a digest prefix.")],
    child: Annotated[str, typer.Argument(metavar="CHILD", help="A path, a registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every tensor, however many there are.")] = False,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Explain what was done to a parent to get a child.

    Prints the simplest explanation and what it leaves unexplained, then the state of every layer: inherited, rounded,
    changed, replaced or new.
    """
    from stemma.application import explain as application
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text, findings, lines_of
    from stemma.cli.notes import warn_of_notes
    from stemma.cli.output import identity, progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.export.answers import explain_answer, explain_closing

    writable("--html", html)
    request = application.ExplainRequest(parent=parent, child=child, registry=registry, alpha=alpha)
    with progress(quiet=as_json) as on_progress:
        answer = application.explain(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    warn_of_notes(*answer.models)
    if as_json:
        show_json(answer.document())
        return
    models = [(role, *identity(model)) for role, model in zip(("parent", "child"), answer.models, strict=True)]
    document = answer.document()
    closing = [(label, text, "") for label, text in zip(("meaning", "next"), explain_closing(document), strict=True)]
    rows = [*models, *lines(answer.result), *([("page", str(html), "")] if html else [])]
    show(lines_of(answer_text(explain_answer(document))), "", findings(rows), "",
         table(document["layers"], whole=layers), "", findings(closing))  # fmt: skip


def lines(answer: "Explained") -> "Iterator[tuple[str, str | Text, str]]":
    """The explanation, what it leaves, other explanations that fit, and what cannot be seen."""
    from stemma.cli.output import not_tested, number

    found = answer.explanation
    if not found.steps:
        yield "reason", found.sentence, ""
    for i, step in enumerate(found.steps):
        yield f"step {i + 1}", step.name, step.sentence
    if found.relative is not None:
        yield "change", f"{number(found.relative)} of the parent's norm", f"rounding alone: {number(found.floor)}"
    if found.steps and found.relative and found.fitted < SHOWN:
        yield "explained", "entry by entry: no operation with few parameters fits the change", ""
    elif found.steps and found.relative:
        left = f"unexplained: {number(found.residual)} of the parent's norm"
        yield "explained", f"{found.fitted:.0%} of the change by fitted parameters", left
    if found.bits or found.plain_bits:
        plain = f"without any explanation: {number(found.plain_bits)} bits"
        yield "description", f"length {number(found.bits)} bits per entry (MDL)", plain
    for steps, bits in found.others:
        yield "also fits", " → ".join(steps), f"{number(bits)} bits per entry"
    for note in found.notes:
        yield "note", note, ""
    yield from not_tested([t for t in answer.not_tested if t["why"] != found.sentence])
    yield "cannot see", " · ".join(found.cannot_see) or "nothing known to be missing", ""


def table(layers: Sequence[Mapping[str, Any]], *, whole: bool) -> "Text":
    """What became of every tensor, or of every block of a long model; names are taken literally."""
    from stemma.cli.layout import columns
    from stemma.cli.output import number
    from stemma.export.layer_blocks import LONG, rows

    shown = rows(layers, number, by_block=not whole and len(layers) > LONG)
    return columns(("tensor", "became", "change", "entries", "what was done"), list(shown), right=("change", "entries"))
