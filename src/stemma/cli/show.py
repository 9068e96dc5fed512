"""`stemma show`: what the registry knows about one model."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from stemma.cli.options import Json, RegistryUrl


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Show what the registry knows about one model."""
    from stemma.application.show import ShowRequest, show_model
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show as print_text
    from stemma.cli.output import show_json
    from stemma.export.answers import command_of, typed_as

    answer = show_model(ShowRequest(name=name, registry=registry))
    record = answer.result
    if as_json:
        show_json(answer.document())
        return
    card = record.licence and not record.license
    by = "by its own card; none was stated for it" if card else "as stated when it was added" if record.licence else ""
    claims = ", ".join(f"{k} {v}" for k, v in sorted(record.claims.items()))
    architecture = (record.config or {}).get("model_type") or (record.config or {}).get("architectures") or ""
    kinds = ", ".join(f"{n:,} × {code}" for code, n in record.dtypes.items())
    rows = [
        ("digest", record.digest, ""),
        ("content", record.names_free_digest, ""),
        ("source", record.source, ""),
        ("format", record.format, ""),
        ("size", f"{record.parameters:,} parameters in {record.tensors:,} tensors", kinds),
        ("licence", record.licence or "not recorded", by),
        ("claims", claims or "none", "by its files; not evidence" if claims else ""),
        ("config", str(architecture) or "none", "as claimed" if architecture else ""),
        ("weights", record.weights or "not stored", "" if record.weights else "read from the source when needed"),
        ("added", record.added_at, f"with Stemma {record.stemma_version}"),
    ]
    told = answer.known.get("known_from")
    if told is not None:
        rows.insert(
            0,
            ("known from", told.sentence.removeprefix("known from "), "all of this is its word; nothing was read here"),
        )
        rows = [row for row in rows if row[0] != "weights"]
    rows += list(_relatives(answer.document()))
    step = f"{command_of('trace', answer.document()['asked'])} {typed_as(record.name)} shows where it comes from"
    if told is not None:
        there = record.source if record.source.startswith(("hf:", "https:")) else "PATH"
        whose = "its weights" if there != "PATH" else "its weights, once they are here"
        step = f"stemma compare MODEL {typed_as(there)} compares a model with {whose}"
    headline = verdict_text(record.name, f": added {record.added_at[:10]}, licence {record.licence or 'not recorded'}")
    print_text(lines_of(headline), "", findings(rows), "", findings([("next", step, "")]))


SHOWN = 6
"""Models that a line lists before it counts the rest."""


def _relatives(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Copies, place in the family tree, and models near it."""
    from stemma.cli.output import number
    from stemma.export.figures import count

    if document["known_as"]:
        yield "known as", _few(document["known_as"]), "the same weights, as other registries tell"
    if document["told_evidence"]:
        told = [f"{e['other']} ({e['verdict'] or e['method']})" for e in document["told_evidence"]]
        yield "compared", _few(told), "by the other registry; decides nothing here"
    if document["copies"]:
        yield "copies", _few(document["copies"]), "the same weights"
    family = document["family"]
    for edge in document["parents"]:
        sure = "" if edge["confidence"] is None else f"probability {number(edge['confidence'])}"
        share = "" if edge["share"] is None else f"share {number(edge['share'])}"
        yield "parent", edge["parent"], " · ".join(w for w in (edge["relation"], share, sure) if w)
    if document["children"]:
        below = f"{len(family['descendants']):,} descendants in all"
        yield "children", _few([edge["child"] for edge in document["children"]]), below
    if family["drawn_at"]:
        yield "family", f"{family['members']:,} models", f"family tree drawn {family['drawn_at'][:10]}"
    if document["near"]:
        near = [f"{x['name']} ({number(x['alike'])})" for x in document["near"]]
        yield "near", _few(near), "in the search index (1 the same, 0 independent): a hint, no evidence"
    if document["shared"]:
        parts = [f"{count(x['tensors'], 'tensor')} with {x['name']}" for x in document["shared"]]
        yield "shares", _few(parts), "bit for bit; small ones often coincide"
    for edit in document["receipts"]:
        yield "receipt", f"{edit['child']}: {edit['operation']} of {edit['parent']}", f"drawn: {edit['drawn']}"
    for line in document["claims_checked"]:
        if line["verdict"] != "not checked":
            yield "claim", line["sentence"], ""
    for why in dict.fromkeys(family["not_tested"]):
        yield "not tested", why, ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
