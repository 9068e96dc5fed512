"""`stemma compare`: how are two models related?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import (
    AllowCode,
    AllowUntested,
    Alpha,
    Data,
    Device,
    Factory,
    FailOn,
    Html,
    Json,
    MaxQueries,
    NullPaths,
    NullRecipe,
    Outputs,
    Probes,
    RegistryUrl,
    Seed,
    model_or_outputs,
    word,
    words,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import Comparison


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, name, digest prefix or endpoint:URL.")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", show_default=False, help="A path, name, digest prefix or endpoint:URL."),
    ] = None,
    outputs: Outputs = None,
    probes: Probes = None,
    max_queries: MaxQueries = None,
    null: NullPaths = None,
    null_recipe: NullRecipe = None,
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    fail_on: FailOn = None,
    allow_untested: AllowUntested = False,
    html: Html = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Compare two models: are they related, and how?

    The answer is related, independent or inconclusive, with the operation that explains the difference. Weights are
    compared; with --probes also what the two models compute.
    """
    from stemma.application import compare as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.notes import warn_of_notes
    from stemma.cli.output import progress, report, show_json, tell
    from stemma.cli.pages import writable, written
    from stemma.cli.policy import enforce
    from stemma.export.answers import compare_answer, compare_closing

    writable("--html", html)
    request = application.CompareRequest(
        a=a,
        b=model_or_outputs(b, outputs, "B"),
        max_queries=max_queries,
        probes=probes,
        null=words(null),
        null_recipe=null_recipe,
        registry=registry,
        alpha=alpha,
        fail_on=words(fail_on),
        allow_untested=allow_untested,
        html=word(html),
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.compare(request, on_progress, tell)
    if html is not None:
        written(html, page_of(answer))
    warn_of_notes(*answer.models)
    if as_json:
        show_json(answer.document())
    else:
        rows = [*lines(answer.result), *([("page", str(html), "")] if html else [])]
        document = answer.document()
        report(answer_text(compare_answer(document)), answer.models, rows, *compare_closing(document))
    enforce(answer.ruling)


MEASURED = ("bits", "ratio", "rank", "relative_change", "zeroed", "tokens", "strength", "scale")
"""Parameters of a relation that are shown; all of them are in the document."""


def lines(result: "Comparison") -> "Iterator[tuple[str, str | Text, str]]":
    """The findings of a comparison: label, finding, evidence; the last is what was not examined."""
    from stemma.cli.function_lines import function_lines
    from stemma.cli.output import not_tested, strength
    from stemma.types import Verdict

    kind = result.relation.kind.value
    if result.relation.reason and result.relation.reason != result.weights.reason and not result.undetermined:
        yield "relation", kind, result.relation.reason
    if result.relation.steps and result.relation.steps != (kind,):
        yield "steps", " → ".join(result.relation.steps), ""
    figures = {k: v for k, v in result.relation.parameters.items() if k in MEASURED and _is_figure(v)}
    if figures:
        yield "measured", ", ".join(f"{k.replace('_', ' ')} {_value(v)}" for k, v in figures.items()), ""
    weights = result.weights
    chance = strength({**result.to_dict()["weights"], "relation": kind})
    yield "weights", weights.reason, f"{chance} · {weights.statistic}"
    function = result.to_dict()["function"]
    if function is not None:
        yield from function_lines(function, (result.a.name, result.b.name))
    for evidence in result.evidence:
        looked = evidence.p_value is not None or evidence.verdict == Verdict.SUPPORTED
        if looked and evidence is not weights and evidence is not result.function:
            exact = {"relation": kind} if evidence.verdict == Verdict.SUPPORTED else {}
            chance = strength({**evidence.to_dict(), **exact})
            why = f": {evidence.reason}" if evidence.spec.name == "modality-shares" else ""
            yield (
                "also tested",
                f"{evidence.claim}: {_SAID[evidence.verdict.value]}{why}",
                f"{chance} · {evidence.statistic}",
            )
    arrow = {"a->b": f"{result.a.name} → {result.b.name}", "b->a": f"{result.b.name} → {result.a.name}"}
    yield "direction", arrow.get(result.direction, "unknown"), ""
    yield from not_tested([t for t in result.open_questions if t["why"] != weights.reason])
    untested = {t["why"] for t in result.open_questions}
    yield (
        "cannot see",
        " · ".join(c for c in result.cannot_see if c not in untested) or "nothing known to be missing",
        "",
    )


_SAID = {"supported": "yes", "refuted": "no", "inconclusive": "undecided"}
"""What a test says of its own claim, whatever the answer above it."""


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _value(value: Any) -> str:
    from stemma.cli.output import number

    return number(value) if isinstance(value, float) else str(value)
