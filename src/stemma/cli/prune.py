"""`stemma prune`: a smaller network from a large one, without labels or training."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Json, Parameters, Probes, RegistryUrl, Seed
from stemma.errors import MisuseError

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.edits.pruning.pruning import Pruning
    from stemma.types import Plan

SHOWN = 12
"""Groups that a person is shown."""


def _ratio(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is no ratio: give the share of units to remove, between 0 and 1")
    return value


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
    probes: Probes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write no model.")] = False,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            metavar="FILE",
            show_default=False,
            help="Read the statistics of layers from here, or write them here where the file is not there yet.",
        ),
    ] = None,
    parameters: Parameters = None,
    replace: Annotated[bool, typer.Option("--replace", help="Allow the folder to be replaced.")] = False,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Make a network smaller without labels, gradients or training, and keep the record of it.

    Units are removed whose part the others can take over best; what is left is refitted, and batch norm recalibrated.
    The folder loads in PyTorch or transformers without Stemma; plan.json and receipt.json lie beside the weights.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, identity, progress, show, show_json, warn
    from stemma.edits.save import check_writable, write

    asking = Asking(network, allow_code, device, data)
    pruning = method(ratio, budget, parameters, seed)
    _said_where(out, dry_run=dry_run, replace=replace)
    if probes is None:
        warn(
            "warning: no --probes were given, so noise is used: inputs like those that the model is meant for do better"
        )
    with progress(quiet=as_json) as report:
        before = asking.model(open_workspace(registry, progress=report), model)
        if out is not None and not dry_run:
            check_writable(out, before.source, overwrite=replace)
        asked = asking.probes(probes or "noise:n=256", before, seed)
        known = _statistics(pruning, before, asked, statistics, report)
        plan = pruning.plan(before, asked, known, report)
        document: dict[str, Any] = {"plan": plan.to_dict(), "receipt": None, "folder": None}
        if not dry_run and out is not None:
            edited = pruning.apply(before, plan, asked, known, report)
            receipt = write(edited, out, asked, overwrite=replace)
            document |= {"receipt": receipt.to_dict(), "folder": str(out)}
    if as_json:
        show_json(document)
        return
    show(identity(before), "", findings(lines(plan, document["receipt"], str(out) if out else None)))


def method(ratio: float | None, budget: str | None, parameters: Sequence[str] | None, seed: int | None) -> "Pruning":
    """The pruning that options ask for.

    Args:
        ratio: Share of units to remove.
        budget: `WHAT=R`.
        parameters: Fields of `Pruning` as `name=value`.
        seed: Of whatever is drawn.

    Returns:
        The method.

    Raises:
        MisuseError: If both or neither of ratio and budget are given, or one makes no sense.
    """
    from stemma.cli.methods import typed
    from stemma.edits.pruning.pruning import Pruning

    if (ratio is None) == (budget is None):
        raise MisuseError("say how much is removed, once: --ratio .3, or --budget macs=0.5")
    given = typed(Pruning, parameters, seed)
    if ratio is not None:
        given |= {"budget": "units", "keep_ratio": 1 - ratio}
        return Pruning(**given)
    what, equals, share = (budget or "").partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not equals or not 0 < value < 1:
        raise MisuseError(f"--budget takes WHAT=R with R between 0 and 1, for example macs=0.5, not '{budget}'")
    given |= {"budget": {"params": "parameters"}.get(what, what), "keep_ratio": value}
    return Pruning(**given)


def _said_where(out: Path | None, *, dry_run: bool, replace: bool) -> None:
    if out is None and not dry_run:
        raise MisuseError(
            "nothing says where the smaller model goes: give --out DIR, or --dry-run to see the plan only"
        )
    if out is not None and not dry_run and out.exists() and not replace:
        raise MisuseError(f"{out} exists. Choose another folder, or say --replace")


def _statistics(pruning: "Pruning", model: Any, probes: Any, file: Path | None, report: Any) -> Any:
    from stemma.edits.fidelity.statistics import Statistics

    if file is None:
        return None
    if not file.exists():
        found = pruning.collect(model, probes, report)
        found.save(file)
        return found
    found = Statistics.read(file)
    if found.model != model.digest or found.probes != probes.digest:
        raise MisuseError(f"{file} holds statistics of another model or of other probes: give another file")
    if found.sampling != pruning.collector.sampling:
        raise MisuseError(f"{file} was collected with {found.sampling}, but this pruning uses "
                          f"{pruning.collector.sampling}: give another file")  # fmt: skip
    return found


def lines(
    plan: "Plan", receipt: Mapping[str, Any] | None, folder: str | None
) -> Iterator[tuple[str, "str | Text", str]]:
    """What a person reads: how much goes, what that costs, where.

    Args:
        plan: What is to be done.
        receipt: What was done, None for a dry run.
        folder: Where the model was written.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import number

    expected = plan.expected
    kept = sum(x["kept"] for x in expected["groups"].values())
    units = sum(x["of"] for x in expected["groups"].values())
    yield (
        "plan",
        f"{units - kept:,} of {units:,} units go",
        f"{plan.spec.params['score']}, {len(expected['groups'])} groups",
    )
    for key, label in (("macs", "operations"), ("parameters", "parameters")):
        before, after = expected[key]
        yield label, f"{before:,.0f} → {after:,.0f}", f"{after / before:.0%}"
    groups = sorted(expected["groups"].items(), key=lambda g: g[1]["kept"] / g[1]["of"])
    for name, x in groups[:SHOWN]:
        yield "", f"{name} {x['of']} → {x['kept']}", f"error {number(x['error'])}"
    if len(groups) > SHOWN:
        yield "", f"{len(groups) - SHOWN} more groups", "all with --json"
    if receipt is not None:
        yield from done(receipt["measured"])
        yield "folder", str(folder), ""
        yield "receipt", str(receipt["child"]), ""
    for name, why in list(expected["refused"].items())[:3]:
        yield "whole", name, str(why)
    yield "cannot see", "inputs unlike these probes", ""


def done(measured: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was measured of an edit.

    Args:
        measured: As in the receipt.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import number

    off = f"squared error {number(measured['error'])}, on fitted inputs"
    if "same_top_answer" in measured:
        yield "answers", f"{measured['same_top_answer']:.1%} unchanged", off
    else:
        yield "answers", "numbers, no choice", off
    if "accuracy" in measured:
        before, after = measured["accuracy"]
        yield "accuracy", f"{before:.1%} → {after:.1%}", "of these probes"
    before, after = measured["seconds"]
    yield (
        "latency",
        f"{before * 1000:.3g} → {after * 1000:.3g} ms",
        f"{before / after:.2f} times as fast, 64 inputs, here",
    )
    worst = sorted(measured["layers"].items(), key=lambda x: -x[1])[:3]
    if worst:
        yield "worst", ", ".join(f"{n} {number(e)}" for n, e in worst), "squared error of their outputs"
