"""`stemma explain`: what was done to the parent to get the child, layer by layer?"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import Alpha, Json, RegistryUrl

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from stemma.kinship.relation.explanation import LayerChange
    from stemma.workspace.explain import Explained

LONG = 40
"""Tensors from which a model is summarised by block."""


def explain(
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="A path, a registry name or a digest prefix.")],
    child: Annotated[str, typer.Argument(metavar="CHILD", help="A path, a registry name or a digest prefix.")],
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every tensor, however many there are.")] = False,
    as_json: Json = False,
) -> None:
    """Say what was done to a parent to get a child.

    The shortest account first, with what it leaves; then what became of every layer: inherited, rounded, changed,
    replaced, new.
    """
    from stemma.cli.notes import tell, with_notes
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import findings, identity, progress, show, show_json
    from stemma.workspace.explain import explain_pair

    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report)
        models = workspace.resolve(parent), workspace.resolve(child)
        if report is not None:
            report(f"explaining {models[1].name}", 0, None)
        found = explain_pair(*models, **({} if alpha is None else {"alpha": alpha}))
    tell(*models)
    if as_json:
        show_json(with_notes(found.to_dict(), models))
        return
    show(*(identity(model) for model in models), "", findings(lines(found)), "",
         table(found.explanation.layers, whole=layers))  # fmt: skip


def lines(answer: "Explained") -> Iterator[tuple[str, "str | Text", str]]:
    """What a person reads first: the account, what it leaves, what else would fit, and what cannot be seen.

    Args:
        answer: The explanation.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import not_tested, number, verdict_text

    found = answer.explanation
    kind = "undetermined" if answer.undetermined else found.kind.value
    yield "relation", verdict_text(kind), "" if found.steps else found.sentence
    for i, step in enumerate(found.steps):
        yield f"step {i + 1}", step.name, step.sentence
    if found.relative is not None:
        yield "change", f"{number(found.relative)} of the parent's norm", f"rounding alone: {number(found.floor)}"
    if found.steps:
        share = f"{found.fitted:.0%} of the change by fitted parameters" if found.relative else "nothing to explain"
        yield "explained", share, f"left over: {number(found.residual)} of the parent's norm"
    if found.bits or found.plain_bits:
        yield "length", f"{number(found.bits)} bits an entry", f"entry by entry: {number(found.plain_bits)} bits"
    for steps, bits in found.others:
        yield "fits too", " → ".join(steps), f"{number(bits)} bits an entry"
    for note in found.notes:
        yield "note", note, ""
    yield from not_tested([t for t in answer.not_tested if t["why"] != found.sentence])
    yield "cannot see", " · ".join(found.cannot_see) or "nothing known to be missing", ""


def table(layers: "Sequence[LayerChange]", *, whole: bool) -> "Table":
    """What became of every tensor, or of every block of a long model.

    Args:
        layers: Every tensor.
        whole: List every tensor, however many there are.

    Returns:
        A table; names are taken literally.
    """
    from stemma.cli.output import columns

    shown = [_row(c) for c in layers] if whole or len(layers) <= LONG else list(_blocks(layers))
    return columns(("tensor", "became", "change", "entries", "what was done"), shown, right=("change", "entries"))


def _row(c: "LayerChange") -> tuple[str, str, str, str, str]:
    from stemma.cli.output import number

    name = c.name if c.parent in ("", c.name) else f"{c.name} (was {c.parent})"
    change = "" if c.relative is None or c.status in ("inherited", "mapped") else number(c.relative)
    marks = [m for m in c.marks if m != c.status]
    return name, c.status, change, f"{c.size:,}", "; ".join(marks)


def _blocks(layers: "Sequence[LayerChange]") -> Iterator[tuple[str, str, str, str, str]]:
    """Tensors of one block and one kind of change in one line, in the order of their first tensor."""
    from stemma.cli.output import number

    groups: dict[tuple[str, str], list[Any]] = {}
    for c in layers:
        block = re.match(r"(.*?\.\d+)\.", c.name)
        groups.setdefault((block[1] if block else c.name.rsplit(".", 1)[0], c.status), []).append(c)
    for (block, status), members in groups.items():
        known = [c.relative for c in members if c.relative is not None]
        low, high = (number(min(known)), number(max(known))) if known else ("", "")
        change = "" if status in ("inherited", "mapped") or not known else low if low == high else f"{low} to {high}"
        marks = sorted({m for c in members for m in c.marks if m != status})
        count = f"{block} ({len(members)} tensors)" if len(members) > 1 else members[0].name
        few = "; ".join(marks[:3]) + (" …" if len(marks) > 3 else "")
        yield count, status, change, f"{sum(c.size for c in members):,}", few
