"""`stemma unlearn`: a network that no longer answers a class, without training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Json, Parameters, RegistryUrl, Seed

if TYPE_CHECKING:
    from stemma.types import Plan


def unlearn(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    forget: Annotated[str, typer.Option("--forget", metavar="P", help="Samples of the class to forget, real or made.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model that forgot.")],
    retain: Annotated[
        str | None,
        typer.Option(
            "--retain",
            metavar="P",
            show_default=False,
            help="Inputs of other classes, or generic ones; labels are not needed. Much less is lost with them.",
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
    """Make a network forget a class from unlabelled samples of it, without gradients or training.

    What was changed lies in plan.json, and the weights as they were in undo.safetensors. That the class is gone, not
    hidden, is for `stemma verify unlearning` to say.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.methods import typed
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, identity, progress, show, show_json
    from stemma.edits.save import check_writable, write
    from stemma.edits.unlearning.unlearning import Unlearning
    from stemma.errors import MisuseError

    if out.exists() and not replace:
        raise MisuseError(f"{out} exists. Choose another folder, or say --replace")
    asking = Asking(network, allow_code, device, data)
    method = Unlearning(**typed(Unlearning, parameters, seed))
    with progress(quiet=as_json) as report:
        before = asking.model(open_workspace(registry, progress=report), model)
        check_writable(out, before.source, overwrite=replace)
        samples = asking.probes(forget, before, seed)
        others = None if retain is None else asking.probes(retain, before, seed)
        edited = method(before, samples, others, report)
        receipt = write(edited, out, samples, overwrite=replace)
    document = {"plan": edited.plan.to_dict(), "receipt": receipt.to_dict(), "folder": str(out)}
    if as_json:
        show_json(document)
        return
    show(identity(before), "", findings(lines(edited.plan, document["receipt"], str(out))))


def lines(plan: "Plan", receipt: Mapping[str, Any], folder: str) -> Iterator[tuple[str, str, str]]:
    """What a person reads: what goes, where, what else it costs.

    Args:
        plan: What was done.
        receipt: What that changed.
        folder: Where the model was written.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import number

    known, measured = plan.expected, receipt["measured"]
    before, after = measured["forget"]
    yield "forgotten", f"class {known['class']}: {before:.1%} → {after:.1%}", "of the forget samples"
    changed = sum(len(e) for e in plan.entries.values())
    what = f"{changed:,} entries" if changed else "whole layers"
    yield "change", f"{what}: {plan.action}, strength {number(known['strength'])}", ", ".join(known["layers"])
    if known.get("others") and known.get("held to") != "other inputs" and known["unlike"]:
        far = f"divergence {number(known['unlike'])}"
        yield "not used", "the other inputs: unlike those that batch norm remembers", far
    if "retain" in measured:
        before, after = measured["retain"]
        yield "others", f"right answers {before:.1%} → {after:.1%}", "of the other inputs given"
    if "same_top_answer" in measured:
        yield "answers", f"{measured['same_top_answer']:.1%} unchanged", "of the other inputs given"
    yield "folder", folder, ""
    yield "receipt", str(receipt["child"]), ""
    yield "cannot see", "whether the class is gone or hidden: ask stemma verify unlearning", ""
