"""`stemma competition`: which modality does a model rely on, and how strongly do they compete?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Html, Json, Probes, RegistryUrl, Seed, word, words

if TYPE_CHECKING:
    from stemma.application.competition import CompetitionAnswer
    from stemma.multimodal.contribution import Measured


def competition(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    probes: Probes = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept",
            metavar="NAME=MODEL...",
            show_default=False,
            help="A network trained separately on one modality; several of one modality are averaged.",
        ),
    ] = None,
    fit_probes: Annotated[
        str | None,
        typer.Option(
            "--fit-probes",
            metavar="P",
            show_default=False,
            help="Probes to fit the readouts on: not in the training data and not in --probes.",
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
            help="Layer that reads the fused representation; several with commas. [default: the last linear layer]",
        ),
    ] = None,
    concept_network: Annotated[
        list[str] | None,
        typer.Option(
            "--concept-network",
            metavar="NAME=MODULE:FACTORY...",
            show_default=False,
            help="Build the concept networks of a modality with this function. [default: --network]",
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
    """Measure which modality a network relies on.

    Also measures how strongly its modalities compete: how much of what a modality can do alone the fused network loses.
    Probe inputs hold one array per modality; competition strength needs networks of one modality alone (--concept).
    """
    from stemma.application import competition as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.output import progress, report, show_json
    from stemma.cli.pages import writable, written
    from stemma.export.answers import competition_answer, competition_closing

    writable("--html", html)
    request = application.CompetitionRequest(
        model=model,
        probes=probes,
        concepts=words(concept),
        fit_probes=fit_probes,
        mask=mask,
        layer=layer,
        concept_networks=words(concept_network),
        html=word(html),
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.competition(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    if as_json:
        show_json(answer.document())
        return
    rows = [*lines(answer), *([("page", str(html), "")] if html else [])]
    document = answer.document()
    report(answer_text(competition_answer(document)), [answer.model], rows, *competition_closing(document))


def lines(answer: "CompetitionAnswer") -> Iterator[tuple[str, str, str]]:
    """The findings: label, finding, evidence; the last is what was not examined."""
    from stemma.cli.function_lines import percent
    from stemma.cli.output import number
    from stemma.multimodal.mask_check import NEAR

    leaning, strengths, layer = answer.result, answer.strengths, answer.layer
    yield "probes", f"{leaning.probes:,} paired inputs: {answer.probes.source}", ""
    if leaning.reason:
        yield "unreliable", leaning.reason, ""
    if leaning.accuracy is not None:
        yield "accuracy", _percents(leaning.accuracy), "of the fused output"
    for name, found in leaning.modalities.items():
        parts = [f"share {_between(found.share)}"]
        if found.response is not None and found.alone is not None and found.without is not None:
            parts.append(f"accuracy of its response {_percents(found.response)}")
            also = f"alone {percent(found.alone.value)} · without it {percent(found.without.value)}"
        else:
            also = "no labels, so no accuracies"
        yield name, ", ".join(parts), also
    for name, strength in strengths.items():
        low, high = strength.interval
        many = f"{strength.concepts} network{'s' * (strength.concepts > 1)} alone"
        yield (
            "competition",
            f"{name}: {number(strength.whitened)} [{number(low)}, {number(high)}]",
            f"competition strength: share not decodable · unwhitened {number(strength.plain)} · {many}, "
            f"{strength.features} features before {layer}" + (f" · {strength.reason}" if strength.reason else ""),
        )
    if leaning.hidden is not None:
        how = ", ".join(dict.fromkeys(leaning.masks.values()))
        hides = "near the class prior" if leaning.hidden <= NEAR else "the mask does not hide enough: try another"
        yield (
            "all hidden",
            f"total variation from the class prior {leaning.hidden:.2f}",
            f"{hides} · hidden by {how}",
        )
    for missing in answer.missing:
        yield "missing", missing, ""
    yield "cannot see", "what a modality alone could do, without --concept · inputs unlike these", ""


def _between(found: "Measured") -> str:
    low, high = found.interval
    return f"{found.value:.2f} [{low:.2f}, {high:.2f}]"


def _percents(found: "Measured") -> str:
    low, high = (100 * x for x in found.interval)
    return f"{100 * found.value:.1f} % [{low:.1f}, {high:.1f}]"
