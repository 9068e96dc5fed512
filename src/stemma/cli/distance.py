"""`stemma distance`: how far apart are two models in what they do?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import (
    AllowCode,
    Data,
    Device,
    Factory,
    Html,
    Json,
    MaxQueries,
    Measure,
    Method,
    Outputs,
    Parameters,
    Probes,
    RegistryUrl,
    Seed,
    model_or_outputs,
    word,
    words,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.application.distance import DistanceAnswer


def distance(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, name, digest prefix or endpoint:URL.")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", show_default=False, help="A path, name, digest prefix or endpoint:URL."),
    ] = None,
    outputs: Outputs = None,
    probes: Probes = None,
    max_queries: MaxQueries = None,
    method: Method = None,
    measure: Measure = None,
    parameter: Parameters = None,
    html: Html = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Measure how far apart two models are in what they compute.

    Both run on the same probe inputs; 0 means the same. `stemma compare A B --probes P` tests whether the distance is
    small for models of the same task.
    """
    from stemma.application import distance as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.notes import warn_of_notes
    from stemma.cli.output import progress, report, show_json, tell
    from stemma.cli.pages import writable, written
    from stemma.export.answers import distance_answer, distance_closing

    writable("--html", html)
    request = application.DistanceRequest(
        a=a,
        b=model_or_outputs(b, outputs, "B"),
        max_queries=max_queries,
        probes=probes,
        method=method,
        measure=measure,
        parameters=words(parameter),
        registry=registry,
        html=word(html),
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.distance(request, on_progress, tell)
    if html is not None:
        written(html, page_of(answer))
    warn_of_notes(*answer.models)
    if as_json:
        show_json(answer.document())
        return
    rows = [*lines(answer), *([("page", str(html), "")] if html else [])]
    document = answer.document()
    report(answer_text(distance_answer(document)), answer.models, rows, *distance_closing(document))


def lines(answer: "DistanceAnswer") -> "Iterator[tuple[str, str | Text, str]]":
    """The findings of a distance: label, finding, evidence; the last is what was not examined."""
    from stemma.application.method_options import method_label
    from stemma.cli.function_lines import agreement_line, percent

    found, probes, alike = answer.result, answer.probes, answer.agreement
    yield (
        "method",
        f"{method_label(answer.method)} · {found.measure.name}",
        f"{len(probes):,} probe inputs: {probes.source}",
    )
    if found.interval is not None:
        yield "interval", "95 % over the probe inputs", ""
    if found.coverage < 1:
        yield (
            "coverage",
            f"defined at {percent(found.coverage)} of the probe inputs",
            "the others are left out of the mean",
        )
    if answer.only_sketch:
        yield (
            "labels",
            "not compared: the weights of one model are no longer available, so its stored sketch is used",
            "",
        )
    else:
        names = [model.name for model in answer.models]
        yield agreement_line(names, alike.alike, (alike.accuracy_a, alike.accuracy_b))
    yield "cannot see", "inputs unlike these · whether one model comes from the other", ""
