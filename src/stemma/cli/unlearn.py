"""`stemma unlearn`: a network from which classes are removed, without training."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Html, Json, RegistryUrl, Seed, Settings, word, words

if TYPE_CHECKING:
    from stemma.application.unlearn import UnlearnAnswer


def unlearn(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    forget: Annotated[
        str, typer.Option("--forget", metavar="P", help="Samples of the classes to forget, real or synthetic.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the unlearned model.")],
    retain: Annotated[
        str | None,
        typer.Option(
            "--retain",
            metavar="P",
            show_default=False,
            help="Inputs of other classes, or generic ones; labels are not needed. They preserve the other classes.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            show_default=False,
            help="erasure, or modhifi-u. [default: erasure with --retain, else modhifi-u]",
        ),
    ] = None,
    strength: Annotated[
        int | None,
        typer.Option(
            "--strength",
            metavar="N",
            show_default=False,
            help="How many layers and directions an erasure removes, 0 to 6. [default: 3]",
        ),
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Measure every strength: what the others lose, relearning, the test.")
    ] = False,
    retrained: Annotated[
        list[str] | None,
        typer.Option(
            "--retrained",
            metavar="R...",
            show_default=False,
            help="Models that never saw the class, as a reference for the curve; may be given several times.",
        ),
    ] = None,
    parameters: Settings = None,
    replace: Annotated[bool, typer.Option("--replace", help="Allow the folder to be replaced.")] = False,
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo",
            metavar="FILE",
            show_default=False,
            help="File for the original weights of what changes, outside of the folder.",
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
    """Remove classes, or a set of samples, from a network without training.

    With --retain they are erased from what the layers read, as far as --strength says; --curve measures each strength.
    plan.json records what was changed; --undo keeps the original weights outside of the folder. `stemma verify
    unlearning` tests whether the class is removed or only hidden.
    """
    from stemma.application import unlearn as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.output import progress, report, show_json
    from stemma.cli.pages import writable, written
    from stemma.export.edit_answers import unlearn_answer, unlearn_closing

    writable("--html", html)
    request = application.UnlearnRequest(
        model=model,
        forget=forget,
        out=str(out),
        retain=retain,
        method=method,
        strength=strength,
        curve=curve,
        retrained=words(retrained),
        parameters=words(parameters),
        replace=replace,
        undo=None if undo is None else str(undo),
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.unlearn(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    if as_json:
        show_json(answer.document())
        return
    document = answer.document()
    rows = [*lines(answer), *([("page", str(html), "")] if html else [])]
    report(answer_text(unlearn_answer(document)), [answer.model], rows, *unlearn_closing(document))


def curve_lines(answer: "UnlearnAnswer") -> Iterator[tuple[str, str, str]]:
    """Every strength that was measured: label, finding, evidence."""
    from stemma.export.edit_answers import lost, relearnt

    curve = answer.curve
    if curve is None:
        return
    for point in curve.points:
        loss = lost(point.kept, curve.before, point.same)
        again = relearnt(point.relearning, curve.steps)
        yield (
            f"strength {point.strength}",
            f"{point.forget:.1%} left, others lose {loss:.1%}",
            f"{again}; {point.verdict}",
        )
    forget, kept = curve.measured_on
    yield "measured on", f"{forget:,} forget samples and {kept:,} others", "held back from the fit"
    if curve.retrained:
        yield "retrained", ", ".join(relearnt(n, curve.steps) for n in curve.retrained), "of the models given"


def lines(answer: "UnlearnAnswer") -> Iterator[tuple[str, str, str]]:
    """What was changed, where, and what else that costs: label, finding, evidence."""
    from stemma.cli.output import number
    from stemma.cli.prune import bare_weights
    from stemma.export.edit_answers import forgotten

    plan, known, measured = answer.plan, answer.plan.expected, answer.receipt.measured
    before, after = measured["forget"]
    yield "forgotten", f"{forgotten(known)}: {before:.1%} → {after:.1%}", "of the forget samples"
    changed = sum(len(e) for e in plan.entries.values())
    what = f"{changed:,} entries" if changed else "whole layers"
    yield "change", f"{what}: {plan.action}, strength {number(known['strength'])}", ", ".join(known["layers"])
    yield from curve_lines(answer)
    if known.get("others") and known.get("held to") != "other inputs" and known["unlike"]:
        far = f"divergence {number(known['unlike'])}"
        yield "not used", "the other inputs: they differ from the batch norm statistics", far
    if "retain" in measured:
        before, after = measured["retain"]
        yield "others", f"accuracy {before:.1%} → {after:.1%}", "of the other inputs given"
    if "same_top_answer" in measured:
        yield "labels", f"{measured['same_top_answer']:.1%} unchanged", "of the other inputs given"
    yield "folder", answer.request.out, ""
    yield from bare_weights(answer.request.out)
    if answer.request.undo:
        yield "undo", answer.request.undo, "the original weights: they hold what was to be forgotten"
    yield "digest", str(answer.receipt.child), ""
    if answer.curve is None:
        yield "cannot see", "whether the class is removed or only hidden", ""
