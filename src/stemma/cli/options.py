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
Coverage = Annotated[
    float | None,
    typer.Option(
        "--coverage",
        metavar="C",
        callback=_level,
        show_default=False,
        help="Share of cases in which the set of possible parents is to hold the parent. [default: 0.95]",
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
DenyLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-license",
        metavar="L...",
        show_default=False,
        help="Exit with 3 if the model, a copy, parent or relative has this licence; may be given several times.",
    ),
]
AllowUntested = Annotated[
    bool,
    typer.Option(
        "--allow-untested",
        help="Let --fail-on and --deny-license pass what could not be tested, and licences that are not known.",
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
Probes = Annotated[
    str | None,
    typer.Option(
        "--probes",
        metavar="P",
        show_default=False,
        help="What the models are asked: a folder of images or sounds, a .txt, an .npz, or noise:n=256,seed=0.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="FINGERPRINT", show_default=False, help="What is compared of the models."),
]
Measure = Annotated[
    str | None,
    typer.Option("--measure", metavar="MEASURE", show_default=False, help="How it is compared."),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "-P",
        metavar="NAME=VALUE",
        show_default=False,
        help="A parameter of the method or the measure, for example steps=50; may be given several times.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", show_default=False, help="Write a page that shows where they differ."),
]
NullPaths = Annotated[
    list[Path] | None,
    typer.Option(
        "--null",
        metavar="PATH...",
        show_default=False,
        help="Independent models of the same task: what the distance of strangers looks like.",
    ),
]
NullRecipe = Annotated[
    str | None,
    typer.Option("--null-recipe", metavar="NAME", show_default=False, help="Train independent models so instead."),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="MODULE:FACTORY",
        show_default=False,
        help="Build the networks of bare weights with this function; needs --allow-code.",
    ),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the code that --network names. Only do this with code you trust.")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", envvar="STEMMA_DATA", show_default=False, help="Where data sets lie."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", show_default=False, help="Where networks run, for example cuda. [cpu]"),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", show_default=False, help="Of whatever is drawn at random. [default: 0]"),
]
