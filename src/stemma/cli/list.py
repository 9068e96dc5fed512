"""`stemma list`: what the registry holds."""

from stemma.cli.options import Json, RegistryUrl

WIDE = 100
"""Columns of a terminal from which all facts are shown; a narrower one shows name, digest and size."""


def list_command(registry: RegistryUrl = None, as_json: Json = False) -> None:
    """List the enrolled models."""
    from stemma.application.enrolled_models import RegistryRequest, list_models
    from stemma.cli.layout import columns, console, findings, plain
    from stemma.cli.output import prefix, show, show_json

    answer = list_models(RegistryRequest(registry=registry))
    records, path = answer.result, answer.registry
    if as_json:
        show_json(answer.document())
        return
    if not records:
        empty = "No models in" if path.exists() else "There is no registry at"
        show(f"{empty} {plain(path)}", "", findings([("next", "stemma add PATH adds models", "")]))
        return
    titles = ("name", "digest", "parameters", "tensors", "licence", "added")
    rows = (
        (r.name, prefix(r.digest), f"{r.parameters:,}", f"{r.tensors:,}", r.licence or "", r.added_at[:10])
        for r in records
    )
    kept = len(titles) if console().width >= WIDE else 3
    models = "1 model" if len(records) == 1 else f"{len(records):,} models"
    closing = findings([("next", "stemma show NAME shows what is known about one of them", "")])
    table = columns(titles[:kept], [row[:kept] for row in rows], right=("parameters", "tensors"))
    show(f"{models} in {plain(path)}", "", table, "", closing)
