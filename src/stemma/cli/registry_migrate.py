"""`stemma registry migrate`: the same registry in another place."""

from typing import Annotated

import typer

from stemma.cli.options import Json


def migrate(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Registry that is copied: a file or a database URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where it is copied to: nothing, or an empty registry.")],
    as_json: Json = False,
) -> None:
    """Copy a registry from a file to a PostgreSQL server, or back.

    All of it arrives or nothing; every row and blob is verified, and FROM stays as it is.
    """
    from stemma.application.registry_migrate import MigrateRequest, migrate_registry
    from stemma.cli.layout import columns, findings, plain
    from stemma.cli.output import progress, show, show_json
    from stemma.export.answers import typed_as

    with progress(quiet=as_json) as on_progress:
        answer = migrate_registry(MigrateRequest(source=source, target=target), on_progress)
    if as_json:
        show_json(answer.document())
        return
    found = answer.result
    total = sum(table.rows for table in found.tables)
    rows = ((table.name, f"{table.rows:,}", table.digest[:19]) for table in found.tables if table.rows)
    large = f"{found.large_blobs:,} large blobs ({found.large_bytes:,} bytes)"
    meaning = f"every row and {large} are the same in both places"
    step = f"stemma check --registry {typed_as(found.target)} verifies the copy, with the sources of its models"
    show(
        f"copied {total:,} rows from {plain(found.source)} to {plain(found.target)}",
        "",
        columns(("table", "rows", "digest"), rows, right=("rows",)),
        "",
        findings([("meaning", meaning, ""), ("next", step, "")]),
    )
