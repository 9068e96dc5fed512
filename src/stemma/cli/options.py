"""The options that several commands share, each written once."""

from pathlib import Path
from typing import Annotated

import typer


def _level(alpha: float | None) -> float | None:
    if alpha is not None and not 0 < alpha < 1:
        raise typer.BadParameter(f"{alpha} is no level: give a number between 0 and 1, for example 0.01")
    return alpha


RegistryUrl = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        envvar="STEMMA_REGISTRY",
        show_default=False,
        help="Registry to use: a file or a database URL. [default: one file in your data folder]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        metavar="A",
        callback=_level,
        show_default=False,
        help="Chance of a false kinship that you accept, over all models searched. [default: 0.01]",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes that read models at once.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="RELATION...",
        show_default=False,
        help="Exit with 3 if a finding has this relation or verdict; may be given several times.",
    ),
]
Against = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        metavar="PATH...",
        show_default=False,
        help="Search these checkpoints and folders instead of the registry.",
    ),
]
