"""The HTML page on the modalities that a network relies on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stemma.export.charts import WIDTH
from stemma.export.page import bullets, document, escape, percent, section, table

if TYPE_CHECKING:
    from stemma.multimodal.competition_strength import CompetitionStrength
    from stemma.multimodal.contribution import Measured, ModalityContribution
    from stemma.probes import Probes

ROW, LEFT, RIGHT = 34, 250, 70
"""Height of a bar, and the left and right margins."""


def modality_page(
    leaning: "ModalityContribution", strengths: "Mapping[str, CompetitionStrength]", probes: "Probes"
) -> bytes:
    """Shares, accuracies and competition strengths per modality as bars with intervals, as one HTML page."""
    from stemma.multimodal.contribution import Measured

    parts = [
        f"<h1>{escape(leaning.model.name)}</h1>",
        f'<p class="soft"><code>{escape(leaning.model.digest)}</code></p>',
    ]
    shares = [(name, m.share) for name, m in leaning.modalities.items()]
    lead = "Share of the output variance over probes explained by each modality's response; shares sum to 1."
    parts.append(section("Contribution of each modality", bars(shares, "share of the output"), lead))
    right: list[tuple[str, Measured]] = []
    for name, m in leaning.modalities.items():
        kinds = (("its response", m.response), ("alone", m.alone), ("without it", m.without))
        right += [(f"{name}: {what}", found) for what, found in kinds if found is not None]
    if leaning.accuracy is not None:
        right.append(("everything", leaning.accuracy))
        parts.append(section("Accuracy", bars(right, "accuracy"), "Accuracy of the fused output is in the last row."))
    if strengths:
        rows = [(name, Measured(s.whitened, s.interval)) for name, s in strengths.items()]
        lead = (
            "Share of the mono-modal response that cannot be decoded from the fused representation; 0 means no "
            "competition."
        )
        parts.append(section("Competition strength", bars(rows, "competition strength"), lead))
    facts = [("probes", escape(f"{len(probes):,}: {probes.source}"))]
    facts += [(f"{name} is masked by", escape(mask)) for name, mask in leaning.masks.items()]
    if leaning.hidden is not None:
        facts.append(("all modalities masked", f"total variation {percent(leaning.hidden, 0)} from the class prior"))
    parts.append(section("Method", table(facts)))
    unseen = [
        f"Competition strength of {escape(n)}: needs a concept network (--concept)."
        for n in leaning.modalities
        if n not in strengths
    ]
    parts.append(section("Limitations", bullets([*unseen, "Inputs that differ from these probes."])))
    return document(f"{leaning.model.name}: modalities", parts)


def bars(rows: "Sequence[tuple[str, Measured]]", what: str) -> str:
    """Horizontal bars from 0, with intervals."""
    low = min([0.0, *(m.interval[0] for _, m in rows)])
    high = max([1.0, *(m.interval[1] for _, m in rows)])

    def at(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / (high - low), 1)

    bottom = ROW * len(rows) + 8
    marks = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(f'<line class="grid" x1="{at(tick)}" y1="4" x2="{at(tick)}" y2="{bottom}"/>')
        marks.append(f'<text x="{at(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for i, (label, found) in enumerate(rows):
        y = ROW * i + 12
        left, right = sorted((at(0), at(found.value)))
        start, end = (at(x) for x in found.interval)
        marks.append(f'<text class="strong" x="{LEFT - 12}" y="{y + 15}" text-anchor="end">{escape(label[:30])}</text>')
        marks.append(f'<rect class="bar" x="{left}" y="{y}" width="{max(right - left, 1):.1f}" height="20"/>')
        whisker = f"M{start} {y + 10}H{end}M{start} {y + 5}V{y + 15}M{end} {y + 5}V{y + 15}"
        marks.append(f'<path class="axis" fill="none" d="{whisker}"/>')
        marks.append(f'<text class="strong" x="{max(right, end) + 8}" y="{y + 15}">{found.value:.2f}</text>')
    marks.append(f'<line class="axis" x1="{at(0)}" y1="4" x2="{at(0)}" y2="{bottom}"/>')
    picture = f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{escape(what)}">'
    return f"{picture}{''.join(marks)}</svg>"
