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
    from stemma.cli import output
    from stemma.cli.opening import open_workspace
    from stemma.types import jsonable

    record = open_workspace(registry).show(name)
    if as_json:
        output.show_json({**jsonable(record), "licence": record.licence})
        return
    card = record.licence and not record.license
    by = "by its own card; none was stated for it" if card else "as stated when it was enrolled"
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
        ("claims", claims or "none", "by its files; not evidence"),
        ("config", str(architecture) or "none", "as claimed"),
        ("weights", record.weights or "not kept", "the source is read when they are needed"),
        ("added", record.added_at, f"with Stemma {record.stemma_version}"),
    ]
    output.show(output.verdict_text(record.name), output.findings(rows))
