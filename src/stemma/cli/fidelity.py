"""`stemma fidelity`: how few units each layer of a network needs."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Json, RegistryUrl, Seed, word

if TYPE_CHECKING:
    from stemma.application.fidelity import FidelityAnswer

SHOWN = 12
"""Layers, and groups, that a person is shown."""


def fidelity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    probes: Annotated[
        str, typer.Option("--probes", metavar="P", help="Inputs like those that the model is meant for.")
    ],
    levels: Annotated[
        list[float] | None,
        typer.Option("--level", metavar="ETA", show_default=False, help="Fidelity to seek sets for; .8, .9 and .99."),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Show how few units of each layer reproduce what the next layers compute.

    The fidelity of a set of units is the share of the next layer's output that they explain once its weights are
    refitted. Layers that need few units can be pruned further. Nothing is changed.
    """
    from stemma.application import fidelity as application
    from stemma.application.network_options import NetworkOptions
    from stemma.cli.layout import answer_text
    from stemma.cli.output import progress, report, show_json
    from stemma.export.edit_answers import fidelity_answer, fidelity_closing

    request = application.FidelityRequest(
        model=model,
        probes=probes,
        levels=tuple(levels or ()),
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.fidelity(request, on_progress)
    if as_json:
        show_json(answer.document())
        return
    document = answer.document()
    report(answer_text(fidelity_answer(document)), [answer.model], lines(answer), *fidelity_closing(document))


def first_of_each_reason(refused: Mapping[str, str]) -> list[tuple[str, str]]:
    """Up to three reasons why layers are not cut, each with its first layer."""
    first: dict[str, str] = {}
    for name, why in refused.items():
        first.setdefault(why, name)
    return [(name, why) for why, name in first.items()][:3]


def lines(answer: "FidelityAnswer") -> Iterator[tuple[str, str, str]]:
    """Sizes of sets by layer, and what cutting to them does to the outputs: label, finding, evidence."""
    from stemma.cli.output import number

    found = answer.result
    named = [f"{level:g}" for level in found.levels]
    yield "columns", f"units that reach fidelity {', '.join(named)}", "by elimination; by score alone in brackets"
    for i, x in enumerate(found.layers[:SHOWN]):
        sizes = ", ".join(map(str, x.sizes))
        naive = ", ".join(map(str, x.naive_sizes))
        evidence = f"({naive}); best unit {x.best_singleton:.2f}"
        yield "needs" if i == 0 else "", f"{x.layer}: {sizes} of {x.units}", evidence
    if len(found.layers) > SHOWN:
        yield "", f"{len(found.layers) - SHOWN} more layers", "all with --json"
    for i, x in enumerate(found.effects[:SHOWN]):
        evidence = f"error {number(x.local_error)} there, {number(x.output_error)} at the end"
        yield "effect" if i == 0 else "", f"{x.group} cut to {x.kept}", evidence
    for name, why in first_of_each_reason(found.refused):
        yield "not cut", name, why
    yield "cannot see", "what cutting several layers together does; stemma prune measures that", ""
