"""`stemma show`: what the registry knows about one model."""

from typing import Annotated

import typer

from stemma.cli.options import Json, RegistryUrl


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Show what the registry knows about one model."""
    from stemma.application.enrolled_models import ModelRequest, show_model
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show as print_text
    from stemma.cli.output import show_json
    from stemma.export.answers import typed_as

    answer = show_model(ModelRequest(name=name, registry=registry))
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
    step = f"stemma trace {typed_as(record.name)} shows where it comes from"
    headline = verdict_text(record.name, f": added {record.added_at[:10]}, licence {record.licence or 'not recorded'}")
    print_text(lines_of(headline), "", findings(rows), "", findings([("next", step, "")]))
