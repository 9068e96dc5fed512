"""`stemma registry`: share a registry, know what others publish, and move a registry to another place."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stemma.cli.options import Json, RegistryUrl, word, words
from stemma.cli.registry_migrate import migrate

if TYPE_CHECKING:
    from stemma.application.subscriptions import SubscriptionsAnswer
    from stemma.registry.exchange.merging import Imported

app = typer.Typer(help="Share a registry, use those of others, move one.", no_args_is_help=True)
app.command("migrate")(migrate)

DIFFERENT = 1
"""Exit code of `diff` where the registries differ."""

SHOWN = 8
"""Models that are listed before the rest is counted."""

Address = Annotated[str, typer.Argument(metavar="FILE|URL", help="An export: a file, or an address of one.")]
PublicKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--public-key",
        metavar="KEY.pem",
        show_default=False,
        help="Accept only what was signed with the private part of this key; may be given several times.",
    ),
]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="NAME", show_default=False, help="Name of the other registry here. [default: its own]"
    ),
]
Known = Annotated[str | None, typer.Argument(metavar="NAME", help="Name of another registry here, or an address.")]


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAMES...", show_default=False, help="Models; all unless given.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", show_default=False, help="How this registry calls itself from now on."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY.pem", show_default=False, help="Sign with this private key, in PEM."),
    ] = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Write what this registry found itself to one file.

    Records, sketches, evidence and the family tree; no weights, and no path of this machine.
    """
    from stemma.application.export_registry import ExportRegistryRequest, export_registry
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show, show_json
    from stemma.export.answers import typed_as

    request = ExportRegistryRequest(
        path=str(file), names=words(names) or (), name=name, sign=word(sign), registry=registry
    )
    answer = export_registry(request)
    if as_json:
        show_json(answer.document())
        return
    found = answer.section
    rows = [("registry", found.name, f"identity {found.identity[:16]}…"),
            ("holds", f"{found.statements:,} statements", "models, evidence and family tree; no weights, no paths"),
            ("signature", *_signature(found.signed_by))]  # fmt: skip
    rows += [("left out", f"{n:,} × {what}", "") for what, n in found.left_out.items()]
    if answer.known_left_out:
        rows.append(("left out", f"{answer.known_left_out:,} models known from other registries", "theirs to export"))
    closing = [("meaning", "whoever imports it sees names, digests, licences, claims and sketches of these models", ""),
               ("next", f"stemma registry import {typed_as(file)}", "in another registry")]  # fmt: skip
    headline = verdict_text("exported", f": {answer.size:,} bytes in {file}")
    show(lines_of(headline), "", findings(rows), "", findings(closing))


@app.command("import")
def import_command(
    address: Address,
    public_key: PublicKeys = None,
    name: As = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Take in what another registry exported.

    It is kept apart from what this registry found itself, and marked in every answer.
    """
    from stemma.application.import_registry import ImportRegistryRequest, import_registry
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show, show_json
    from stemma.export.answers import command_of

    request = ImportRegistryRequest(address=address, public_key=words(public_key) or (), name=name, registry=registry)
    answer = import_registry(request)
    if as_json:
        show_json(answer.document())
        return
    new = sum(one.new for one in answer.imported)
    rows = [row for one in answer.imported for row in _imported(one, public_key)]
    taken = [one for one in answer.imported if not one.own]
    meaning = "answers may name these models now, and say from whom they are known" if taken else "nothing was taken"
    listed = command_of("list", {"registry": registry})
    closing = [("meaning", meaning, ""), ("next", f"{listed} --known" if taken else listed, "")]
    show(lines_of(verdict_text("imported", f": {new:,} new statements")), "", findings(rows), "", findings(closing))


def _imported(one: "Imported", keys: Sequence[Path] | None) -> Iterator[tuple[str, str, str]]:
    section = one.section
    if one.own:
        yield "registry", one.name, "an export of this registry itself: nothing is taken from it"
        return
    part = "" if section.complete else ", a part of what it holds"
    yield "registry", one.name, f"identity {section.identity[:16]}…{part}"
    yield "signature", *_signature(section.signed_by)
    yield "models", f"{one.models:,} known from there now", f"{one.new:,} of {section.statements:,} statements new"
    for what, n in section.left_out.items():
        yield "left out", f"{n:,} × {what}", "by the exporter"
    if one.newer_known:
        shown = 19 if section.created[:10] == one.newer_known[:10] else 10  # with the time of day where days agree
        made = f"made {section.created[:shown]}; one of {one.newer_known[:shown]} is known"
        yield "older", made, "what is known stays; ask why an older one is published"
    if one.first and section.signed_by and not keys:
        yield "key", "trusted on first use", "another key, or none, is an error from now on"


def _signature(signed_by: str | None) -> tuple[str, str]:
    if signed_by is None:
        return "not signed", "anybody could have written it"
    return f"{signed_by[:16]}…", "SHA-256 of the public key"


@app.command("subscribe")
def subscribe(
    address: Address,
    public_key: PublicKeys = None,
    name: As = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Import what another registry publishes, and remember where.

    The key that signed it is trusted on first use unless one is given; another key is an error from then on.
    """
    _tell("subscribe", address, public_key, name, registry, as_json)


@app.command("refresh")
def refresh(
    name: Known = None,
    public_key: PublicKeys = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Read subscriptions again, if they changed.

    Exits with 1 if one could not be read; what was known before stays.
    """
    _tell("refresh", name, public_key, None, registry, as_json)


@app.command("known")
def known(registry: RegistryUrl = None, as_json: Json = False) -> None:
    """List the other registries that are known, and subscriptions."""
    _tell("known", None, None, None, registry, as_json)


@app.command("forget")
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of another registry here, or an address.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Drop what another registry told, and the subscription to it."""
    _tell("forget", name, None, None, registry, as_json)


def _tell(
    task: Literal["subscribe", "refresh", "forget", "known"],
    address: str | None,
    public_key: Sequence[Path] | None,
    name: str | None,
    registry: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    from stemma.application.subscriptions import SubscribeRequest, subscriptions
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import progress, show, show_json, warn

    request = SubscribeRequest(
        task=task, address=address, public_key=words(public_key) or (), name=name, registry=registry
    )
    with progress(quiet=as_json) as on_progress:
        answer = subscriptions(request, on_progress)
    if as_json:
        show_json(answer.document())
    else:
        rows = list(_known_lines(answer))
        show(lines_of(verdict_text(*_headline(answer))), *(["", findings(rows)] if rows else []))
    for one in answer.refreshed:
        if one.error:
            warn(f"error: {one.subscription.registry}: {one.error}")
        elif one.imported is not None and one.imported.newer_known:
            made, known = one.imported.section.created[:10], one.imported.newer_known[:10]
            warn(f"warning: {one.subscription.registry}: the export there was made {made}; one of {known} is known")
    if answer.failed:
        raise typer.Exit(DIFFERENT)


def _headline(answer: "SubscriptionsAnswer") -> tuple[str, str]:
    task = answer.request.task
    if task == "forget":
        from stemma.checkpoints.remote import without_queries

        return "forgotten", f": {answer.forgotten:,} models of {without_queries(answer.request.address or '')}"
    if task == "known":
        n = len(answer.origins)
        return f"{n:,}", f" other registr{'y is' if n == 1 else 'ies are'} known"
    new = sum(one.imported.new for one in answer.refreshed if one.imported is not None)
    done = "subscribed" if task == "subscribe" else "refreshed"
    count = len(answer.refreshed)
    return done, f": {new:,} new statements from {count:,} subscription{'s' * (count != 1)}"


def _known_lines(answer: "SubscriptionsAnswer") -> Iterator[tuple[str, str, str]]:
    for part in answer.document()["registries"]:
        places = ", ".join(part["subscriptions"]) or "imported once, not subscribed to"
        yield part["registry"], f"{part['models']:,} models, {places}", _signature(part["signed_by"])[0]


@app.command("diff")
def diff(
    address: Annotated[
        str, typer.Argument(metavar="FILE|URL|REGISTRY", help="An export, an address of one, or a registry.")
    ],
    public_key: PublicKeys = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Show how this registry and another one differ.

    Models that only one of them has, licences that differ, and names that stand for other weights. Nothing is changed.
    Exits with 1 if they differ.
    """
    from stemma.application.registry_difference import RegistryDifferenceRequest, registry_difference
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import prefix, show, show_json

    answer = registry_difference(
        RegistryDifferenceRequest(address=address, public_key=words(public_key) or (), registry=registry)
    )
    document = answer.document()
    if as_json:
        show_json(document)
    else:
        rows = [("models", f"{document['models_here']:,} here, {document['models_there']:,} there", "")]
        for field, label in (("only_here", "only here"), ("only_there", "only there")):
            rows += _few(label, [(m["name"], prefix(m["digest"])) for m in document[field]])
        said = [
            (x["name"], *(x[side]["licence"] or "none" for side in ("here", "there"))) for x in document["licences"]
        ]
        rows += _few("licence", [(name, f"{here} here, {there} there") for name, here, there in said])
        said = [(x["name"], *(prefix(x[side]["digest"]) for side in ("here", "there"))) for x in document["names"]]
        rows += _few("name taken", [(name, f"{here} here, {there} there") for name, here, there in said])
        if document["already_known"]:
            rows.append(("known", f"{document['already_known']:,} models of {document['other']} are known already", ""))
        word_ = "equal" if document["equal"] else "different"
        show(lines_of(verdict_text(word_, f": this registry and {document['other']}")), "", findings(rows))
    if not document["equal"]:
        raise typer.Exit(DIFFERENT)


def _few(label: str, items: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    rows = [(label, *item) for item in items[:SHOWN]]
    return [*rows, ("", f"and {len(items) - SHOWN:,} more", "all of them with --json")] if len(items) > SHOWN else rows
