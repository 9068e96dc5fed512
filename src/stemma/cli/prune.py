"""`stemma prune`: a smaller network from a large one, without labels or training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.fidelity import first_of_each_reason
from stemma.cli.options import (
    AllowCode,
    Data,
    Device,
    Factory,
    Html,
    Json,
    Probes,
    RegistryUrl,
    Seed,
    Settings,
    word,
    words,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.application.prune import PruneAnswer

SHOWN = 12
"""Groups that a person is shown."""


def _ratio(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not a ratio: give the share of units to remove, between 0 and 1")
    return value


def _budget(budget: str | None, keep: float | None, ratio: float | None) -> str | None:
    """What to keep, as `--budget` says it."""
    if keep is None:
        return budget
    if budget is not None or ratio is not None:
        raise typer.BadParameter("--keep, --ratio and --budget each say how much is kept: give one of them")
    if not 0 < keep < 1:
        raise typer.BadParameter(f"--keep takes the share of units to keep, between 0 and 1, not {keep}")
    return f"units={keep}"


def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the smaller model.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", metavar="R", callback=_ratio, show_default=False, help="Remove this share of units."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="WHAT=R",
            show_default=False,
            help="Keep this share of macs, parameters, latency or units, for example macs=0.5.",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="R", show_default=False, help="Keep this share of units: --ratio, from below."),
    ] = None,
    probes: Probes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write no model.")] = False,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            metavar="FILE",
            show_default=False,
            help="File of layer statistics: read where it exists, else written.",
        ),
    ] = None,
    parameters: Settings = None,
    replace: Annotated[bool, typer.Option("--replace", help="Allow the folder to be replaced.")] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            show_default=False,
            help="Block by block, in the memory of two blocks; repeat the command after a crash. Default: if needed.",
        ),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Prune a network without labels or training.

    Removes the units that the others can replace best, refits what is left and recalibrates batch norm. The folder
    loads in PyTorch or transformers without Stemma; plan.json and receipt.json beside the weights record the edit.
    """
    from stemma.application import prune as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.output import progress, report, show_json, warn
    from stemma.cli.pages import writable, written
    from stemma.export.edit_answers import prune_answer, prune_closing

    writable("--html", html)
    request = application.PruneRequest(
        model=model,
        out=word(out),
        ratio=ratio,
        budget=_budget(budget, keep, ratio),
        probes=probes,
        dry_run=dry_run,
        statistics=word(statistics),
        parameters=words(parameters),
        replace=replace,
        stream=stream,
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    if probes is None:
        warn(
            "warning: no --probes were given, so noise is used; inputs like those of the real task give better results"
        )
    with progress(quiet=as_json) as on_progress:
        answer = application.prune(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    if as_json:
        show_json(answer.document())
        return
    document = answer.document()
    rows = [*lines(answer), *([("page", str(html), "")] if html else [])]
    report(answer_text(prune_answer(document)), [answer.model], rows, *prune_closing(document))


def lines(answer: "PruneAnswer") -> "Iterator[tuple[str, str | Text, str]]":
    """How much is removed, what that costs, and where: label, finding, evidence."""
    from stemma.cli.output import number

    plan, expected = answer.plan, answer.plan.expected
    yield "criterion", str(plan.spec.params["score"]), f"{len(expected['groups'])} groups of units"
    for key, label in (("macs", "MACs"), ("parameters", "parameters")):
        before, after = expected[key]
        yield label, f"{before:,.0f} → {after:,.0f}", f"{after / before:.0%}"
    groups = sorted(expected["groups"].items(), key=lambda g: g[1]["kept"] / g[1]["of"])
    for i, (name, x) in enumerate(groups[:SHOWN]):
        yield "units" if i == 0 else "", f"{name} {x['of']} → {x['kept']}", f"error {number(x['error'])}"
    if len(groups) > SHOWN:
        yield "", f"{len(groups) - SHOWN} more groups", "all with --json"
    if "positions" in expected:
        positions, inputs = expected["positions"]
        few = "fewer than inputs: weights stay near their old values" if positions < inputs else "block by block"
        yield "statistics", f"{positions:,} tokens, {inputs:,} inputs", few
    if answer.receipt is not None:
        yield from done(answer.receipt.measured)
        yield "folder", str(answer.request.out), ""
        yield from bare_weights(answer.request.out)
        yield "digest", str(answer.receipt.child), ""
    for name, why in first_of_each_reason(expected["refused"]):
        yield "unpruned", name, str(why)
    yield "cannot see", "inputs unlike these", ""


def done(measured: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was measured of an edit: label, finding, evidence."""
    from stemma.cli.output import number

    off = f"squared error {number(measured['error'])}, on fitted inputs"
    if "same_top_answer" in measured:
        yield "labels", f"{measured['same_top_answer']:.1%} unchanged", off
    else:
        yield "outputs", "numbers, not classes", off
    if "accuracy" in measured:
        before, after = measured["accuracy"]
        yield "accuracy", f"{before:.1%} → {after:.1%}", "on these inputs"
    before, after = measured["seconds"]
    yield (
        "latency",
        f"{before * 1000:.3g} → {after * 1000:.3g} ms",
        f"{before / after:.2f} times as fast, 64 inputs, on this machine",
    )
    worst = sorted(measured["layers"].items(), key=lambda x: -x[1])[:3]
    if worst:
        yield "error", ", ".join(f"{n} {number(e)}" for n, e in worst), "the largest squared errors of layer outputs"


def bare_weights(folder: str | None) -> Iterator[tuple[str, str, str]]:
    """What a result without a program needs: label, finding, evidence."""
    from stemma.edits.artefacts.save import has_bare_weights

    if folder is not None and has_bare_weights(Path(folder)):
        yield "no program", "the network's code cannot be exported", "stemma.edits.load puts the weights into its class"
