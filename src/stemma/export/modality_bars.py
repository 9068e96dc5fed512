"""The modalities that a network relies on, as bars."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.export.charts import WIDTH
from stemma.export.markup import escape
from stemma.export.page import section

ROW, LEFT, RIGHT = 34, 250, 70
"""Height of a bar, and the left and right margins."""


def modality_sections(document: Mapping[str, Any]) -> Iterator[str]:
    """Shares, accuracies and competition strengths per modality as bars with intervals, one section for each.

    Args:
        document: What `stemma competition --json` prints.

    Yields:
        Markup.
    """
    modalities = document["modalities"]
    shares = [(name, m["share"]) for name, m in modalities.items()]
    lead = "Share of the output variance over probes explained by each modality's response; shares sum to 1."
    yield section("Contribution of each modality", bars(shares, "share of the output"), lead)
    if document["accuracy"] is not None:
        kinds = (("response", "its response"), ("alone", "alone"), ("without", "without it"))
        right = [(f"{name}: {what}", m[kind]) for name, m in modalities.items() for kind, what in kinds if m[kind]]
        right.append(("everything", document["accuracy"]))
        yield section("Accuracy", bars(right, "accuracy"), "Accuracy of the fused output is in the last row.")
    strengths = {name: s for name, s in document["strength"].items() if s is not None}
    if strengths:
        rows = [(name, {"value": s["whitened"], "interval": s["interval"]}) for name, s in strengths.items()]
        lead = (
            "Share of the mono-modal response that cannot be decoded from the fused representation; 0 means no "
            "competition."
        )
        yield section("Competition strength", bars(rows, "competition strength"), lead)


def bars(rows: Sequence[tuple[str, Mapping[str, Any]]], what: str) -> str:
    """Horizontal bars from 0, with intervals."""
    low = min([0.0, *(m["interval"][0] for _, m in rows)])
    high = max([1.0, *(m["interval"][1] for _, m in rows)])

    def at(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / (high - low), 1)

    bottom = ROW * len(rows) + 8
    marks = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(f'<line class="grid" x1="{at(tick)}" y1="4" x2="{at(tick)}" y2="{bottom}"/>')
        marks.append(f'<text x="{at(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for i, (label, found) in enumerate(rows):
        y = ROW * i + 12
        left, right = sorted((at(0), at(found["value"])))
        start, end = (at(x) for x in found["interval"])
        marks.append(f'<text class="strong" x="{LEFT - 12}" y="{y + 15}" text-anchor="end">{escape(label[:30])}</text>')
        marks.append(f'<rect class="bar" x="{left}" y="{y}" width="{max(right - left, 1):.1f}" height="20"/>')
        whisker = f"M{start} {y + 10}H{end}M{start} {y + 5}V{y + 15}M{end} {y + 5}V{y + 15}"
        marks.append(f'<path class="axis" fill="none" d="{whisker}"/>')
        marks.append(f'<text class="strong" x="{max(right, end) + 8}" y="{y + 15}">{found["value"]:.2f}</text>')
    marks.append(f'<line class="axis" x1="{at(0)}" y1="4" x2="{at(0)}" y2="{bottom}"/>')
    picture = f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{escape(what)}">'
    return f"{picture}{''.join(marks)}</svg>"
