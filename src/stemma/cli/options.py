"""The options that several commands share, each written once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def words(values: Sequence[object] | None) -> tuple[str, ...] | None:
    """Values of a list option as they were typed; None where it is not given."""
    return None if values is None else tuple(map(str, values))


def word(value: object | None) -> str | None:
    """A value of an option as it was typed; None where it is not given."""
    return None if value is None else str(value)


def _level(alpha: float | None) -> float | None:
    if alpha is not None and not 0 < alpha < 1:
        raise typer.BadParameter(f"{alpha} is not a level: give a number between 0 and 1, for example 0.01")
    return alpha


def _coverage(share: float | None) -> float | None:
    if share is not None and not 0 < share < 1:
        raise typer.BadParameter(f"{share} is not a coverage: give a number between 0 and 1, for example 0.95")
    return share


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
        help="Significance level: accepted probability of a false relation, over all models searched. [default: 0.01]",
    ),
]
Coverage = Annotated[
    float | None,
    typer.Option(
        "--coverage",
        metavar="C",
        callback=_coverage,
        show_default=False,
        help="How often the set of possible parents must contain the parent. [default: 0.95]",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Number of models that are read in parallel.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="RELATION...",
        show_default=False,
        help="Exit with code 3 if a finding has this relation or verdict; may be given several times.",
    ),
]
DenyLicense = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-license",
        metavar="L...",
        show_default=False,
        help="Exit with code 3 if the model, a copy, parent or relative has this licence; may be given several times.",
    ),
]
FailOnDescendantOf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on-descendant-of",
        metavar="NAME...",
        show_default=False,
        help="Exit with code 3 if the weights descend from this model, directly or through others; may be repeated.",
    ),
]
AllowUntested = Annotated[
    bool,
    typer.Option(
        "--allow-untested",
        help="Do not fail on what could not be tested, nor on unknown licences.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="PATH...",
        show_default=False,
        help="Search these checkpoints and folders instead of the registry.",
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch all of a model on a server, not only a sample.")]
Probes = Annotated[
    str | None,
    typer.Option(
        "--probes",
        metavar="P",
        show_default=False,
        help="Probe inputs: a folder of images or sounds, a .txt, an .npz, or noise:n=256,seed=0.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="FINGERPRINT", show_default=False, help="Fingerprint that is compared."),
]
Measure = Annotated[
    str | None,
    typer.Option("--measure", metavar="MEASURE", show_default=False, help="Measure of the distance."),
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
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "-P", metavar="NAME=VALUE", show_default=False, help="A setting of the method; may be given several times."
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", show_default=False, help="Write a page in HTML that shows the result."),
]
NullPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--null",
        metavar="PATH...",
        show_default=False,
        help="Reference (control) models: trained independently on the same task.",
    ),
]
NullRecipe = Annotated[
    str | None,
    typer.Option(
        "--null-recipe",
        metavar="NAME",
        show_default=False,
        help="Train control models of this kind instead: mlp, cnn, vit or lm.",
    ),
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
    typer.Option("--data", metavar="DIR", envvar="STEMMA_DATA", show_default=False, help="Folder of data sets."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="D",
        show_default=False,
        help="Device that networks run on, for example cuda. [default: cpu]",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", show_default=False, help="Random seed. [default: 0]"),
]
