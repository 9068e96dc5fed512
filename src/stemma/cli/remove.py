"""`stemma remove`: take a model out of searches."""

from typing import Annotated

import typer

from stemma.cli.options import Json, RegistryUrl


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Take a model out of lists and searches.

    Its record stays, marked as removed, and its source is not touched.
    """
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import plain, show, show_json

    workspace = open_workspace(registry)
    record = workspace.show(name)
    workspace.remove(record.name)
    if as_json:
        show_json({"removed": {"name": record.name, "digest": record.digest}})
    else:
        show(f"removed {plain(record.name)}")
