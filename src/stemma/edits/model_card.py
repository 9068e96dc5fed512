"""What an edit did, as a page for people: a model card beside the weights."""

from collections.abc import Iterator

from stemma.edits.result import Edited
from stemma.types import Receipt


def report(edited: Edited, receipt: Receipt) -> str:
    """The model card of an edited model.

    Args:
        edited: The model.
        receipt: What was done.

    Returns:
        Markdown.
    """
    done = "pruned" if receipt.operation == "prune" else "made to forget"
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
        ("macs", "multiplications per input", "{:,.0f}"), ("parameters", "parameters", "{:,}"),
        ("seconds", "seconds for 64 inputs, here", "{:.3g}"),
        ("accuracy", "accuracy on the probes that were fitted to", "{:.2%}"),
        ("forget", "right answers to what is forgotten", "{:.2%}"),
        ("retain", "right answers to the other inputs given", "{:.2%}"),
    ):  # fmt: skip
        if key in m and m[key] is not None:
            yield label, form.format(m[key][0]), form.format(m[key][1])


def _details(edited: Edited, receipt: Receipt) -> Iterator[str]:
    groups = edited.plan.expected.get("groups", {})
    if groups:
        yield from ("| units made by | kept | of |", "|---|---|---|")
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
        yield "The other inputs that were given are unlike those that batch norm remembers, and were set aside."
    yield "`plan.json` lists what was changed, `receipt.json` what that did; `stemma verify edit` checks both."
