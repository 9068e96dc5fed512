"""`stemma distance`: how far apart are two models in what they do?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import (
    AllowCode,
    Data,
    Device,
    Factory,
    Html,
    Json,
    Measure,
    Method,
    Parameters,
    Probes,
    RegistryUrl,
    Seed,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.checkpoints.model import Model


def distance(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, a registry name or a digest prefix.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A path, a registry name or a digest prefix.")],
    probes: Probes = None,
    method: Method = None,
    measure: Measure = None,
    parameter: Parameters = None,
    html: Html = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say how far apart two models are in what they do.

    Both are asked the same probes; 0 means the same. Whether a distance is small for models of their task, `stemma
    compare A B --probes P` says.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.methods import chosen
    from stemma.cli.modalities import joint_of
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, identity, progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.errors import MisuseError

    asking = Asking(network, allow_code, device, data)
    methods = chosen(method, measure, parameter, seed)
    writable("--html", html)
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report, prepare=asking.able)
        models = workspace.resolve(a), workspace.resolve(b)
        asked = asking.probes(probes, models[0], seed)
        (first, second), _ = joint_of(models, {"probes": asked})
        models = first, second
        found = workspace.distance(*models, asked, *methods)
        outputs, alike = answered(models, asked)
        page = None
        if html is not None:
            from stemma.export.difference import Difference, difference_page

            if outputs is None:
                raise MisuseError("--html shows what both models answer, but the weights of one are gone")
            page = difference_page(Difference(models, asked, *methods, found, outputs, alike), report)
    written(html, page)
    if as_json:
        show_json(document(models, asked, methods, found, alike, html))
        return
    rows = [
        *lines(models, asked, methods, found, alike, sketched=outputs is None),
        *([("page", str(html), "")] if html else []),
    ]
    show(*(identity(model) for model in models), "", findings(rows))


def answered(models: "tuple[Model, Model]", probes: Any) -> tuple[Any, Any]:
    """What both models answer, and how often alike; nothing where only a sketch of one is left.

    Returns:
        Outputs of both, or None; and their agreement.
    """
    from stemma.errors import UnreadableModelError
    from stemma.fingerprints.evaluation import compute_outputs
    from stemma.measures.agreement import Agreement, agreement

    try:
        outputs = compute_outputs(models[0], probes), compute_outputs(models[1], probes)
    except UnreadableModelError:
        return None, Agreement(None, None, None)
    return outputs, agreement(*outputs, probes)


def document(models: Any, probes: Any, methods: Any, found: Any, alike: Any, html: Any) -> dict[str, Any]:
    """The `--json` document.

    Returns:
        Plain JSON values.
    """
    from stemma.cli.methods import label
    from stemma.types import jsonable

    return {
        "a": jsonable(models[0].ref),
        "b": jsonable(models[1].ref),
        "method": label(methods[0]),
        "measure": found.measure.name,
        "value": found.value,
        "interval": None if found.interval is None else list(found.interval),
        "n_probes": len(probes),
        "coverage": found.coverage,
        "agreement": jsonable(alike),
        "per_probe": list(found.per_probe),
        "probes": {"digest": probes.digest, "kind": probes.kind, "source": probes.source, "labelled": probes.labelled},
        "specs": {"method": jsonable(found.fingerprint), "measure": jsonable(found.measure)},
        "networks": [found.a, found.b],
        "html": None if html is None else str(html),
    }


def lines(
    models: Any, probes: Any, methods: Any, found: Any, alike: Any, *, sketched: bool = False
) -> "Iterator[tuple[str, str | Text, str]]":
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        models: Both models.
        probes: What they were asked.
        methods: The fingerprinter and the measure.
        found: Their distance.
        alike: How they answer.
        sketched: Whether only a sketch is left of one of them.

    Yields:
        Label, finding, evidence.
    """
    from rich.text import Text

    from stemma.cli.behaviour import answers, percent
    from stemma.cli.methods import label
    from stemma.cli.output import between

    yield "distance", Text(between(found.value, found.interval), "bold"), meaning(methods[1])
    yield "by", f"{label(methods[0])}, {found.measure.name}", f"{len(probes):,} probes: {probes.source}"
    if found.coverage < 1:
        yield "coverage", f"defined at {percent(found.coverage)} of the probes", "the rest is left out of the mean"
    if sketched:
        yield "answers", "not asked: the weights of one model are gone, and its functional sketch is compared", ""
    else:
        yield answers([model.name for model in models], alike.alike, (alike.accuracy_a, alike.accuracy_b))
    yield "cannot see", "inputs unlike these probes · whether the models are kin: see stemma compare --probes", ""


def meaning(measure: Any) -> str:
    """What the numbers of a measure mean.

    Returns:
        One sentence.
    """
    if measure.name == "field-cosine":
        return "0 the same · 1 unrelated fields · 2 opposed"
    return f"0 the same · {measure.top:g} the most there is" if "bounded" in measure.laws else "0 the same"
