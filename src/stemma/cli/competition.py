"""`stemma competition`: which modality does a model lean on, and how strongly do they compete?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Html, Json, Probes, RegistryUrl, Seed

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.multimodal.competition_strength import CompetitionStrength
    from stemma.multimodal.contribution import Measured, ModalityContribution


def competition(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    probes: Probes = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept",
            metavar="NAME=MODEL...",
            show_default=False,
            help="A network of one modality alone, trained apart; several of one modality are averaged.",
        ),
    ] = None,
    fit_probes: Annotated[
        str | None,
        typer.Option(
            "--fit-probes",
            metavar="P",
            show_default=False,
            help="Probes that readouts are fitted on: neither trained on nor among --probes.",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="KIND",
            show_default=False,
            help="How a modality is hidden: zero, mean or permuted. Token ids are padded with 0. [default: zero]",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="NAME",
            show_default=False,
            help="Whose input is the fused representation; several with commas. [default: the last linear layer]",
        ),
    ] = None,
    concept_network: Annotated[
        list[str] | None,
        typer.Option(
            "--concept-network",
            metavar="NAME=MODULE:FACTORY...",
            show_default=False,
            help="Build the concepts of a modality with this function; with --network unless given.",
        ),
    ] = None,
    html: Html = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say which modality a model leans on, and how strongly its modalities compete.

    Probes hold one array per modality. Strength needs concepts: what each modality does when it is trained alone.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.modalities import concepts
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, identity, progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.errors import MisuseError
    from stemma.multimodal.contribution import ContributionTest
    from stemma.multimodal.strength_test import StrengthTest

    asking = Asking(network, allow_code, device, data)
    given = {"mask": mask, "seed": seed}
    test = ContributionTest(**{k: v for k, v in given.items() if v is not None})  # ty: ignore[invalid-argument-type]
    writable("--html", html)
    if bool(concept) != bool(fit_probes):
        raise MisuseError("competition strength takes both --concept NAME=MODEL and --fit-probes P: give both or none")
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report)
        subject = asking.model(workspace, model)
        asked = asking.probes(probes, subject, seed)
        leaning = test(subject, asked)
        strengths: dict[str, CompetitionStrength] = {}
        read = ""
        if fit_probes is not None:
            fitted = asking.probes(fit_probes, subject, seed)
            alone = concepts(asking, workspace, concept or [], concept_network or [], asked)
            measure = StrengthTest(layer, test.mask)
            for name, models in alone.items():
                strengths[name], read = measure(subject, models, name, fitted, asked)
        page = None
        if html is not None:
            from stemma.export.modality_page import modality_page

            page = modality_page(leaning, strengths, asked)
    written(html, page)
    if as_json:
        show_json(document(leaning, strengths, read, asked, html))
        return
    rows = [*lines(leaning, strengths, read, asked.source), *([("page", str(html), "")] if html else [])]
    show(identity(subject), "", findings(rows))


def document(leaning: "ModalityContribution", strengths: Any, layer: str, probes: Any, html: Any) -> dict[str, Any]:
    """The `--json` document.

    Returns:
        Plain JSON values.
    """
    from stemma.types import jsonable

    found = leaning.to_dict()
    return {
        **found,
        "strength": {n: jsonable(strengths[n]) if n in strengths else None for n in leaning.modalities},
        "layer": layer or None,
        "missing": _missing(leaning, strengths),
        "probes": {"digest": probes.digest, "source": probes.source, "n": len(probes)},
        "html": None if html is None else str(html),
    }


def _missing(leaning: "ModalityContribution", strengths: Any) -> list[str]:
    return [
        f"competition strength of {name}: needs networks of {name} alone, trained apart (--concept {name}=MODEL, three "
        "or more), and --fit-probes P"
        for name in leaning.modalities
        if name not in strengths
    ]


def lines(
    leaning: "ModalityContribution", strengths: Any, layer: str, source: str
) -> "Iterator[tuple[str, str | Text, str]]":
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        leaning: Shares and accuracies.
        strengths: By modality, as far as they were measured.
        layer: Whose input was read.
        source: Of the probes.

    Yields:
        Label, finding, evidence.
    """
    from rich.text import Text

    from stemma.cli.behaviour import percent
    from stemma.cli.output import number
    from stemma.multimodal.mask_check import NEAR

    top = max(leaning.modalities, key=lambda n: leaning.modalities[n].share.value)
    share = leaning.modalities[top].share
    yield "leans on", Text(top, "bold"), f"share of the output {_between(share)} · {leaning.probes:,} probes: {source}"
    if leaning.reason:
        yield "shaky", leaning.reason, ""
    if leaning.accuracy is not None:
        yield "accuracy", _percents(leaning.accuracy), "of the fused output"
    for name, found in leaning.modalities.items():
        parts = [f"share {_between(found.share)}"]
        if found.response is not None and found.alone is not None and found.without is not None:
            parts.append(f"its response is right at {_percents(found.response)}")
            also = f"alone {percent(found.alone.value)} · without it {percent(found.without.value)}"
        else:
            also = "no labels, so no accuracies"
        yield name, ", ".join(parts), also
    for name, strength in strengths.items():
        low, high = strength.interval
        many = f"{strength.concepts} concept{'s' * (strength.concepts > 1)}"
        yield (
            "competition",
            f"{name}: {number(strength.whitened)} [{number(low)}, {number(high)}]",
            f"unread share of what it does alone · plain {number(strength.plain)} · {many}, "
            f"{strength.features} features before {layer}" + (f" · {strength.reason}" if strength.reason else ""),
        )
    if leaning.hidden is not None:
        how = ", ".join(dict.fromkeys(leaning.masks.values()))
        told = "near the class frequencies" if leaning.hidden <= NEAR else "the mask does not hide enough: try another"
        yield (
            "all hidden",
            f"it answers {leaning.hidden:.2f} from the class frequencies",
            f"{told} · hidden by {how}",
        )
    for missing in _missing(leaning, strengths):
        yield "missing", missing, ""
    yield "cannot see", "what a modality could do if it were trained alone, without concepts · inputs unlike these", ""


def _between(found: "Measured") -> str:
    low, high = found.interval
    return f"{found.value:.2f} [{low:.2f}, {high:.2f}]"


def _percents(found: "Measured") -> str:
    low, high = (100 * x for x in found.interval)
    return f"{100 * found.value:.1f} % [{low:.1f}, {high:.1f}]"
