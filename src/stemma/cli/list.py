"""`stemma list`: what the registry holds."""

from stemma.cli.options import Json, RegistryUrl

WIDE = 100
"""Columns of a terminal from which all facts are shown; a narrower one shows name, digest and size."""


def list_models(registry: RegistryUrl = None, as_json: Json = False) -> None:
    """List the enrolled models."""
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import columns, console, plain, prefix, show, show_json
    from stemma.types import jsonable

    workspace = open_workspace(registry)
    records = list(workspace.list())
    if as_json:
        show_json({"registry": str(workspace.registry.path), "models": [jsonable(record) for record in records]})
        return
    if not records:
        empty = "No models in" if workspace.registry.path.exists() else "There is no registry at"
        show(f"{empty} {plain(workspace.registry.path)}. Enrol some models with: stemma add PATH")
        return
    titles = ("name", "digest", "parameters", "tensors", "licence", "added")
    rows = (
        (r.name, prefix(r.digest), f"{r.parameters:,}", f"{r.tensors:,}", r.licence or "", r.added_at[:10])
        for r in records
    )
    kept = len(titles) if console().width >= WIDE else 3
    show(columns(titles[:kept], [row[:kept] for row in rows], right=("parameters", "tensors")))
