"""`stemma verify`: was a model changed as it is said to have been?"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Json, RegistryUrl, Seed

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.checkpoints.model import Model
    from stemma.cli.asking import Asking
    from stemma.types import Evidence
    from stemma.workspace import Workspace

app = typer.Typer(help="Was a model changed as it is said to have been?", no_args_is_help=True)


def _level(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is no level: give a number between 0 and 1, for example 0.05")
    return value


def _margin(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise typer.BadParameter(f"{value} is no margin: give a share above 0, for example 0.25")
    return value


@app.command("unlearning")
def unlearning(
    original: Annotated[str, typer.Option("--original", metavar="A", help="The model before.")],
    unlearned: Annotated[
        list[str],
        typer.Option("--unlearned", metavar="B...", help="The model after, or several runs of one method."),
    ],
    forget: Annotated[str, typer.Option("--forget", metavar="P", help="Inputs of what is to be forgotten.")],
    retrained: Annotated[
        list[str] | None,
        typer.Option(
            "--retrained",
            metavar="R...",
            show_default=False,
            help="Models trained in the same way without the forget set, or folders of them; 19 or more for one B.",
        ),
    ] = None,
    retained: Annotated[
        str | None,
        typer.Option("--retained-probes", metavar="P", show_default=False, help="Inputs of what is to be kept."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="A",
            callback=_level,
            show_default=False,
            help="Chance that a model that did forget is refuted. [default: 0.05]",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            metavar="M",
            callback=_margin,
            show_default=False,
            help="Largest excess, as a share of the distance between retrained models, that is none. [default: 0.25]",
        ),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Test whether a model behaves as if it had never seen a forget set.

    The null is how retrained models differ among themselves. Exits with 1 if unlearning is refuted.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, progress, show, show_json
    from stemma.types import Verdict
    from stemma.verification.unlearning import UnlearningTest

    asking = Asking(network, allow_code, device, data)
    given: dict[str, Any] = {"alpha": alpha, "margin": margin, "seed": seed}
    test = UnlearningTest(**{name: value for name, value in given.items() if value is not None})
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report)
        before = asking.model(workspace, original)
        probes = asking.probes(forget, before, seed)
        kept = None if retained is None else asking.probes(retained, before, seed)
        after, gold = (list(_models(asking, workspace, texts)) for texts in (unlearned, retrained or []))
        found = test(before, after, probes, gold, kept, report)
    if as_json:
        show_json(found.to_dict())
    else:
        from stemma.cli.output import identity

        show(identity(before), *(identity(m) for m in after), "", findings(lines(found)))
    if found.verdict == Verdict.REFUTED:
        raise typer.Exit(1)


@app.command("edit")
def edit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that prune or unlearn wrote.")],
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="MODEL", show_default=False, help="The model before. [default: as recorded]"),
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option("--probes", metavar="P", show_default=False, help="The inputs that the edit rests on."),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option("--retain", metavar="P", show_default=False, help="The other inputs that unlearn was given."),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Check an edited model against its plan and receipt, and do the edit again.

    Exits with 1 if anything is not as recorded, or if the model before is not there to compare with. In JSON `good` is
    null where something could not be checked.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, progress, show, show_json
    from stemma.verification.edit import EditReplay, read

    asking = Asking(network, allow_code, device, data)
    _, receipt = read(folder)
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report)
        before = _parent(asking, workspace, parent, receipt.parent_source, str(receipt.parent))
        asked, others = (None if p is None or before is None else asking.probes(p, before) for p in (probes, retain))
        found = EditReplay()(folder, before, asked, others, report)
    said = {f.good for f in found}
    good = False if False in said else None if None in said else True
    if as_json:
        show_json({"folder": str(folder), "good": good, "checks": [f.to_dict() for f in found]})
    else:
        words = {True: "as recorded", False: "NOT as recorded", None: "not checked"}
        show(findings([(f.check, words[f.good], f.reason) for f in found]))
    if good is False or before is None:
        raise typer.Exit(1)


def _parent(asking: "Asking", workspace: "Workspace", given: str | None, source: str, digest: str) -> "Model | None":
    """The model before: as given, else where it was read from, else by its digest in the registry."""
    from stemma.errors import StemmaError

    if given is not None:
        return asking.model(workspace, given)
    for text in (source, digest.partition(":")[2]):
        try:
            return asking.model(workspace, text)
        except (StemmaError, OSError):
            continue
    return None


def _models(asking: "Asking", workspace: "Workspace", texts: Sequence[str]) -> "Iterator[Model]":
    from stemma.checkpoints.load import discover
    from stemma.networks.load import open_models

    for text in texts:
        inside = list(discover(Path(text))) if Path(text).is_dir() else []
        if len(inside) > 1:
            yield from (asking.able(open_models(c.path, c.name)[0]) for c in inside)
        else:
            yield asking.model(workspace, text)


_WORDS = {"refuted": "not unlearned", "supported": "unlearned, as far as can be seen", "inconclusive": "inconclusive"}


def lines(found: "Evidence") -> "Iterator[tuple[str, str | Text, str]]":
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        found: The evidence.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import number, p_value, verdict_text

    shown = found.details
    yield "verdict", verdict_text(_WORDS[found.verdict]), found.reason
    gold, runs = len(shown["retrained"]), len(shown["unlearned"])
    tested = f"{runs} unlearned against {gold} retrained, labels permuted"
    floor = f" · floor {number(found.null.floor)}" if gold > 1 else ""
    yield "test", tested, f"{p_value(found.p_value, found.log10_p)}{floor}"
    if "control_p_value" in shown:
        yield "control", "the original in the same test", p_value(shown["control_p_value"], None)
    for name, figures in shown["views"].items():
        yield name, *_view(figures)
    for name, why in shown["left_out"].items():
        yield name, "left out", why
    for name in ("forget_accuracy", "retained_accuracy"):
        if name in shown:
            parts = [f"{kind} {value:.0%}" for kind, value in shown[name].items()]
            yield name.replace("_accuracy", ""), "right answers: " + ", ".join(parts), ""
    unseen = "inputs unlike these probes · models that were trained to pass this test"
    yield "cannot see", unseen + (" · what only runs of their own would show" if runs == 1 else ""), ""


def _view(figures: Any) -> tuple[str, str]:
    from stemma.cli.output import number

    to_original = f"{number(figures['to_original'])} to the original"
    if "excess" not in figures:
        return to_original, "no retrained models to compare with"
    limits = "" if figures["excess_high"] is None else f" [{figures['excess_low']:.0%}, {figures['excess_high']:.0%}]"
    blind = "" if figures["sees_the_original"] else " · does not see the original"
    apart = f"{number(figures['to_retrained'])} to retrained, {number(figures['between_retrained'])} among them"
    return f"excess {figures['excess']:.0%}{limits}{blind}", f"{apart}, {to_original}"
