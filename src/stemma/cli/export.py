"""`stemma export`: what was found about models, in the formats of other tools."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import Against, AllowUntested, Alpha, DenyLicense, Jobs, Json, RegistryUrl, word, words

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.application.export import ExportAnswer

SHOWN = 8
"""Models, and warnings, that are listed before the rest is counted."""


def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", show_default=False, help="A path, a registry name or a digest prefix."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Export every model that is enrolled, or in --against, by their lineage.")
    ] = False,
    format: Annotated[
        str,
        typer.Option("--format", metavar="F", show_default=False, help="cyclonedx, spdx, intoto, model-card or sarif."),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", show_default=False, help="Write to this file instead of stdout."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            metavar="KEY.pem",
            show_default=False,
            help="Sign with this private key (Ed25519 or ECDSA), as an in-toto statement in a DSSE envelope.",
        ),
    ] = None,
    registry: RegistryUrl = None,
    against: Against = None,
    alpha: Alpha = None,
    deny_license: DenyLicense = None,
    allow_untested: AllowUntested = False,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Write where a model comes from for other tools.

    A bill of materials, a signed statement, a model card or a report for code scanning. Traces the model, or
    draws the lineage of all models, and writes the findings with their evidence.
    """
    from stemma.application import export as application
    from stemma.cli.output import progress, show_bytes, show_json, warn
    from stemma.cli.pages import writable, written
    from stemma.cli.policy import enforce

    writable("--out", out)
    request = application.ExportRequest(
        model=model,
        all=everything,
        format=format,
        out=word(out),
        against=words(against),
        registry=registry,
        alpha=alpha,
        deny_license=words(deny_license),
        allow_untested=allow_untested,
        sign=word(sign),
        jobs=jobs,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.export(request, on_progress)
    written(out, answer.content)
    for warning in answer.warnings[:SHOWN]:
        warn(f"warning: {warning}")
    if len(answer.warnings) > SHOWN:
        warn(f"warning: and {len(answer.warnings) - SHOWN:,} more, all of them in what was written")
    if as_json:
        show_json(answer.document())
    elif out is None:
        show_bytes(answer.content)
    else:
        _show(answer, out)
    if answer.ruling is not None:
        enforce(answer.ruling)


def _show(answer: "ExportAnswer", out: Path) -> None:
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show

    n = len(answer.result.models)
    what = f" to {out}: {answer.request.format}, {n:,} model{'' if n == 1 else 's'}"
    closing = [("meaning", *_meaning(answer)), ("next", _next(answer), "")]
    show(lines_of(verdict_text("written", what)), "", findings(_lines(answer)), "", findings(closing))


def _lines(answer: "ExportAnswer") -> "Iterator[tuple[str, str | Text, str]]":
    from stemma.cli.output import not_tested

    models = answer.result.models
    for model in models[:SHOWN]:
        parents = ", ".join(p.name for p in model.parents[:SHOWN])
        yield "model", model.name, f"{model.verdict}{f' from {parents}' if parents else ''}"
    if len(models) > SHOWN:
        yield "", f"and {len(models) - SHOWN:,} more models", "all of them in the file"
    open_ = {(str(t["model"]), str(t["why"])): t for model in models for t in model.not_tested}
    yield from not_tested(list(open_.values()))
    yield "signed", "no" if answer.signed_by is None else f"with the key {answer.signed_by[:16]}…", ""


def _meaning(answer: "ExportAnswer") -> tuple[str, str]:
    if answer.signed_by is None:
        return "what was found, and what was not tested; whoever can change the file can change what it says", ""
    return "the statement is tied to the bytes of the model's files; a change of either is noticed", ""


def _next(answer: "ExportAnswer") -> str:
    if answer.signed_by is None:
        return "--sign KEY.pem signs it, in the formats intoto, cyclonedx and spdx"
    return f"stemma verify signature PATH --public-key KEY.pem --signature {answer.request.out}"
