"""`stemma list`: what the registry holds."""

from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import Json, RegistryUrl

if TYPE_CHECKING:
    from stemma.application.enrolled_models import ListAnswer

WIDE = 100
"""Columns of a terminal from which all facts are shown; a narrower one shows name, digest and size."""


def list_command(
    search: Annotated[
        str, typer.Option("--search", metavar="WORDS", help="Only models whose name or digest holds these words.")
    ] = "",
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="L", help="Only models with this licence; none for those without."),
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only relatives of this model, by the family tree.")
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", metavar="KEY", help="name, added, parameters, licence or family.")
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="From the last to the first.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="List at most so many.")] = None,
    offset: Annotated[int, typer.Option("--offset", metavar="N", min=0, help="Skip so many.")] = 0,
    known: Annotated[
        bool, typer.Option("--known", help="List the models that other registries tell of instead.")
    ] = False,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """List the enrolled models."""
    from stemma.application.enrolled_models import ListRequest, list_models
    from stemma.cli.layout import columns, console, findings, plain
    from stemma.cli.output import prefix, show, show_json
    from stemma.export.answers import command_of

    request = ListRequest(
        search=search, license=license, family=family, sort=sort, reverse=reverse,  # ty: ignore[invalid-argument-type]
        limit=limit, offset=offset, known=known, registry=registry,
    )  # fmt: skip
    answer = list_models(request)
    records, path = answer.result, answer.registry
    if as_json:
        show_json(answer.document())
        return
    if known:
        _show_known(answer)
        return
    if not records:
        if answer.enrolled:
            show(f"No model in {plain(path)} fits, of {answer.enrolled:,}", "", findings([("next", "stemma list", "")]))
            return
        empty = "No models in" if answer.exists else "There is no registry at"
        show(f"{empty} {plain(path)}", "", findings([("next", "stemma add PATH adds models", "")]))
        return
    titles = ("name", "digest", "parameters", "tensors", "licence", "added")
    rows = (
        (r.name, prefix(r.digest), f"{r.parameters:,}", f"{r.tensors:,}", r.licence or "", r.added_at[:10])
        for r in records
    )
    kept = len(titles) if console().width >= WIDE else 3
    models = "1 model" if len(records) == 1 else f"{len(records):,} models"
    of = f" of {answer.enrolled:,}" if len(records) < answer.enrolled else ""
    command = command_of("show", answer.document()["asked"])
    rows_after = [("next", f"{command} NAME shows what is known about one of them", "")]
    if answer.known_in_all:
        rows_after.append(("known", f"{answer.known_in_all:,} more from other registries", "stemma list --known"))
    closing = findings(rows_after)
    table = columns(titles[:kept], [row[:kept] for row in rows], right=("parameters", "tensors"))
    show(f"{models}{of} in {plain(path)}", "", table, "", closing)


def _show_known(answer: "ListAnswer") -> None:
    """The models that other registries tell of."""
    from stemma.cli.layout import columns, findings
    from stemma.cli.output import prefix, show

    rows = ((k.name, prefix(k.digest), f"{k.parameters:,}", k.licence or "", k.known_from.sentence.removeprefix(
        "known from registry ")) for k in answer.known)  # fmt: skip
    of = f" of {answer.total:,}" if len(answer.known) < answer.total else ""
    headline = f"{len(answer.known):,}{of} models that other registries tell of"
    table = columns(("name", "digest", "parameters", "licence", "known from"), rows, right=("parameters",))
    meaning = findings([("meaning", "nothing of these was read here: names, digests and licences are as told", "")])
    show(headline, *(["", table] if answer.known else []), "", meaning)
