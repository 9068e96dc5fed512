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
    from stemma.application.enrolled_models import RemoveRequest, remove_model
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import show, show_json

    answer = remove_model(RemoveRequest(name=name, registry=registry))
    if as_json:
        show_json(answer.document())
        return
    rows = [("meaning", "searches skip it; its files are unchanged, and its record is kept and marked as removed", ""),
            ("next", "stemma add PATH adds it again", "")]  # fmt: skip
    show(f"removed {plain(answer.result.name)}", "", findings(rows))
