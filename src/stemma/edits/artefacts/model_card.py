"""The model card of an edited model: what the edit did, as a page for people."""

from collections.abc import Iterator

from stemma.edits.artefacts.result import Edited
from stemma.types import Receipt


def model_card(edited: Edited, receipt: Receipt) -> str:
    """The model card of an edited model, as Markdown."""
    done = "pruned" if receipt.operation == "prune" else "one class unlearned"
    head = [
        "---",
        f"base_model: {_plain(edited.parent.name)}",
        "---",
        "",
        f"# {_plain(edited.parent.name)}, {done}",
        "",
    ]
    rows = list(_rows(receipt))
    table = ["| | before | after |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""]
    return "\n".join([*head, *table, *_details(edited, receipt), *_how(edited, receipt)]) + "\n"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() and c not in "|`<>[]\n" else "_" for c in text)


def _rows(receipt: Receipt) -> Iterator[tuple[str, str, str]]:
    m = receipt.measured
    for key, label, form in (
        ("macs", "MACs per input", "{:,.0f}"), ("parameters", "parameters", "{:,}"),
        ("seconds", "seconds for 64 inputs, on this machine", "{:.3g}"),
        ("accuracy", "accuracy on the probes used for the refit", "{:.2%}"),
        ("forget", "accuracy on the forget samples", "{:.2%}"),
        ("retain", "accuracy on the retain inputs", "{:.2%}"),
    ):  # fmt: skip
        if key in m and m[key] is not None:
            yield label, form.format(m[key][0]), form.format(m[key][1])


def _details(edited: Edited, receipt: Receipt) -> Iterator[str]:
    groups = edited.plan.expected.get("groups", {})
    if groups:
        yield from ("| units of | kept | of |", "|---|---|---|")
        yield from (f"| {g} | {x['kept']} | {x['of']} |" for g, x in groups.items())
        yield ""
    layers = receipt.measured.get("layers", {})
    if layers:
        yield from ("| layer | squared error of its outputs |", "|---|---|")
        yield from (f"| {n} | {e:.4f} |" for n, e in layers.items())
        yield ""
    if edited.plan.entries:
        yield from ("| layer | entries changed |", "|---|---|")
        yield from (f"| {n} | {len(e)} |" for n, e in edited.plan.entries.items())
        yield ""


def _how(edited: Edited, receipt: Receipt) -> Iterator[str]:
    given = ", ".join(f"{k} {v}" for k, v in receipt.versions.items())
    yield f"Made by {edited.plan.spec.name} ({given}) from {receipt.parent}, with {receipt.probes['count']} inputs."
    known = edited.plan.expected
    if known.get("others") and known["unlike"] and known["held to"] != "other inputs":
        yield "The retain inputs are out of the distribution that the batch-norm statistics describe and were not used."
    yield "`plan.json` lists what was changed, `receipt.json` the measured effect; `stemma verify edit` checks both."
