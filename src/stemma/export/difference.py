"""The HTML page on the distance of two models, and where in the inputs they differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from stemma.checkpoints.model import Model
from stemma.export import charts, probe_cards
from stemma.export.markup import escape
from stemma.export.page import bullets, number, percent, section, table
from stemma.export.pages.render import render_template
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.evaluation import compute_outputs
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.paths import baseline_inputs
from stemma.measures.agreement import Agreement, agreement
from stemma.measures.base import AbstractMeasure, Law, summarise
from stemma.measures.difference_map import DifferenceMaps, accumulate_maps
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.pairwise import pairwise
from stemma.probes import Probes
from stemma.types import Comparison, Distance, Fingerprint
from stemma.types.text import short_name

MOST_DIFFERENT = 8
"""Number of probes shown at which the models differ most."""

LEAST_DIFFERENT = 2
"""Number of probes shown for comparison at which they differ least."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Content of the difference page.

    Attributes:
        models: Both models.
        probes: The probes.
        method: The fingerprinter.
        measure: The measure.
        distance: Their distance.
        outputs: Their outputs for the probes.
        agreement: Share of probes with the same top output.
        comparison: The verdict on the pair, if requested.

    """

    models: tuple[Model, Model]
    probes: Probes
    method: AbstractFingerprinter
    measure: AbstractMeasure
    distance: Distance
    outputs: tuple[np.ndarray, np.ndarray]
    agreement: Agreement
    comparison: Comparison | None = None

    @classmethod
    def of(
        cls,
        a: Model,
        b: Model,
        probes: Probes,
        method: AbstractFingerprinter | None = None,
        measure: AbstractMeasure | None = None,
    ) -> "Difference":
        """Run both models and measure their distance (gradient field and field cosine by default)."""
        method, measure = method or GradientField(), measure or FieldCosine()
        found = pairwise([a, b], probes, method, measure)
        ends = [Fingerprint(digest, probes.digest, method.spec, {}) for digest in found.models]
        distance = summarise(ends[0], ends[1], measure.spec, found.per_probe[0, 1], counted=measure.counted)
        outputs = compute_outputs(a, probes), compute_outputs(b, probes)
        scores = a.network.scores and b.network.scores
        return cls((a, b), probes, method, measure, distance, outputs, agreement(*outputs, probes, scores=scores))


def difference_page(content: Difference, progress: Callable[[str, int, int | None], None] | None = None) -> bytes:
    """The difference page as self-contained HTML; fields are computed once more, one block of probes at a time."""
    names = [short_name(model.name) for model in content.models]
    title = "Distance of two models, and where they differ"
    title = title if content.comparison is None else "Relation of two models, and where they differ"
    d = content.distance
    subtitle = f"Behaviour on the same inputs, measured by {escape(d.fingerprint.name)} and {escape(d.measure.name)}."
    head = f"<header><h1>{title}</h1><p class=soft>{subtitle}</p></header>"
    parts = [head, _verdict(content), *difference_sections(content, progress)]
    markup = [Markup(part) for part in parts if part]  # ours, and escaped
    return render_template("parts.html", title=f"{names[0]} and {names[1]}: where they differ", parts=markup)


def difference_sections(
    content: Difference, progress: Callable[[str, int, int | None], None] | None = None
) -> list[str]:
    """Where the two models differ, as sections of a page.

    Args:
        content: The two models, the probes and their distance.
        progress: Told what is being done: fields are computed once more, one block of probes at a time.

    Returns:
        Markup: the distance on its scale, probes, averages, distribution, figures, limitations.
    """
    most, least = _select_probes(content.distance)
    maps, completeness = _maps(content, {*most, *least}, progress)
    labels = tuple(_labels(model) for model in content.models)
    scores = tuple(model.network.scores for model in content.models)
    cards = probe_cards.ProbeCards(content.probes, content.outputs, labels, maps, most, _baselines(content), scores)
    parts = [_scale(content), _probe_sections(content, cards, most, least), _average_section(cards)]
    parts += [
        _histogram_section(content.distance),
        _figures_section(content, completeness),
        _limitations(content, maps is not None),
    ]
    return [part for part in parts if part]


def _select_probes(distance: Distance) -> tuple[list[int], list[int]]:
    """The probes with the largest distances, and those with the smallest."""
    agreement_text = [(v, i) for i, v in enumerate(distance.per_probe) if v is not None]
    falling = [i for _, i in sorted(agreement_text, key=lambda pair: (-pair[0], pair[1]))]
    least = falling[MOST_DIFFERENT:][::-1][:LEAST_DIFFERENT]
    return falling[:MOST_DIFFERENT], least


def _maps(
    content: Difference, chosen: set[int], progress: Callable[[str, int, int | None], None] | None
) -> tuple[DifferenceMaps | None, tuple[float, ...] | None]:
    """Difference maps, and the completeness error of each model's field."""
    method, measure = content.method, content.measure
    if not (isinstance(method, GradientField) and isinstance(measure, FieldCosine)) or method.sketch:
        return None, None
    shape = content.probes.shape[1:] if method.channel_mean else content.probes.shape
    gaps: list[list[tuple[float, float]]] = [[], []]

    def pairs() -> Any:
        streams = [method.blocks(model, content.probes) for model in content.models]
        for a, b in zip(*streams, strict=True):
            for found, block in zip(gaps, (a, b), strict=True):
                found.append((float(block.values["gap"].sum()), float(block.values["change"].sum())))
            yield a, b
            if progress is not None:
                progress("computing difference maps", a.start + len(a), len(content.probes))

    maps = accumulate_maps(pairs(), chosen, shape, measure)
    sums = [np.sum(found, 0) for found in gaps]
    return maps, tuple(float(gap / change) if change else 0.0 for gap, change in sums)


def _baselines(content: Difference) -> np.ndarray | None:
    """Baseline inputs, if there is one per probe that is worth showing."""
    if not isinstance(content.method, GradientField):
        return None
    (name, found), *more = baseline_inputs(content.probes, content.method.baseline, content.method.seed)
    is_shown = name in ("probe", "given") or (name == "mean" and content.probes.kind != "tokens")
    return found if is_shown and not more else None


def _labels(model: Model) -> Mapping[int, str]:
    named = (model.config or {}).get("id2label")
    if not isinstance(named, Mapping):
        return {}
    return {int(k): str(v) for k, v in named.items() if str(k).isdigit()}


def _scale(content: Difference) -> str:
    """The two models, and their distance on its scale."""
    d, measure = content.distance, content.measure
    models = "".join(
        f'<div class="model of-{side}"><b><span class=key>{side.upper()}</span>{escape(m.name)}</b><small>'
        f"{len(m.tensors):,} tensors, {m.parameters:,} parameters</small>"
        f"<small><code>{escape(m.digest[:27])}…</code></small></div>"
        for side, m in zip("ab", content.models, strict=True)
    )
    null = _null(content)
    top = max(1.0, d.value * 1.05, *(x * 1.05 for x in (d.interval or ())), *(null or ()))
    if measure.name == FieldCosine.name and top > 1:
        top = min(2.0, np.ceil(top * 5) / 5)
    interval = "" if d.interval is None else f"95 % interval {number(d.interval[0])} to {number(d.interval[1])}"
    said_value = f"<strong>{number(d.value)}</strong><span>{interval}<br>over {len(content.probes):,} probes</span>"
    body = (
        f'<div class="pair">{models}</div><div class="value">{said_value}</div>'
        f"{charts.scale(d.value, d.interval, top, null)}"
        f"<p class=soft>{meaning(measure, null=null is not None)}</p>"
    )
    return section("How far apart they are in what they compute", body)


def _null(content: Difference) -> tuple[float, float, float] | None:
    """Smallest, median and largest distance of independent models, if the comparison has them."""
    function = content.comparison.function if content.comparison else None
    for entry in function.details.get("measures", ()) if function else ():
        if (entry["fingerprint"], entry["measure"]) == (
            content.method.name,
            content.measure.name,
        ) and "null_median" in entry:
            return entry["null_smallest"], entry["null_median"], entry["null_largest"]
    return None


def meaning(measure: AbstractMeasure, *, null: bool) -> str:
    """What the values of a measure mean, as sentences for the page."""
    if isinstance(measure, FieldCosine):
        scale = (
            "0: the gradients of both models have the same direction at every input coordinate. 1: their gradients "
            "are uncorrelated. Above 1: they have opposite directions."
        )
    else:
        scale = "0: the same." + (f" {measure.top:g} is the maximum." if Law.BOUNDED in measure.laws else "")
    content = (
        "The grey band is the range of distances between independent models, the dashed line their median."
        if null
        else (
            "A distance alone is not a verdict: compare it with independent models of the same task (<code>stemma "
            "compare A B --probes P --null PATH</code>)."
        )
    )
    return f"{scale} {content}"


def _verdict(content: Difference) -> str:
    found = content.comparison
    if found is None:
        return ""
    rows = [("verdict", f"<b>{escape(found.verdict)}</b>"), ("relation", escape(_relation(found)))]
    for name, evidence in (("weights", found.weights), ("function", found.function)):
        if evidence is not None:
            p = "not tested" if evidence.p_value is None else f"p = {number(evidence.p_value, 2)}"
            rows.append((name, f"{escape(evidence.reason)} <small>({p}; {escape(evidence.statistic)})</small>"))
    rows += [("not tested", escape(t["why"])) for t in found.open_questions if t["why"] != found.weights.reason]
    rows.append(("cannot see", escape(" · ".join(found.cannot_see) or "no known limitation")))
    return section("Relation", table(rows))


def _relation(found: Comparison) -> str:
    return "undetermined" if found.undetermined else found.relation.kind.value


def _probe_sections(
    content: Difference, cards: "probe_cards.ProbeCards", most: Sequence[int], least: Sequence[int]
) -> str:
    if not most:
        return ""
    card_of = {i: cards.card(i, v) for i in (*most, *least) if (v := content.distance.per_probe[i]) is not None}
    lead = "The probes at which the two models differ most, and the outputs of both."
    if cards.maps is not None and content.probes.kind == "tokens":
        lead = (
            "The probes at which the two models differ most. The darker a position, the more it contributes to the "
            "distance; contributions sum to it. Below, the next token that each model predicts."
        )
    elif cards.maps is not None:
        lead = (
            "The probes at which the two models differ most. The map shows the contribution of every input "
            "coordinate to the distance; contributions sum to it."
        )
        lead += " Next to it, the coordinates that each model relies on." if cards.is_picture else ""
    out = section(
        "Where they differ most", cards.bar() + f'<div class="cards">{"".join(card_of[i] for i in most)}</div>', lead
    )
    if least:
        control = "For comparison: the probes at which they differ least, on the same colour scale."
        out += section(
            "Where they differ least", f'<div class="cards">{"".join(card_of[i] for i in least)}</div>', control
        )
    return out


def _average_section(cards: "probe_cards.ProbeCards") -> str:
    average = cards.average()
    if not average:
        return ""
    lead = (
        "The same maps averaged over all probes, each on its own colour scale. An even map means that the models "
        "differ everywhere; a bright region, that they use this part of the inputs differently."
    )
    return section("On average over all probes", f'<div class="average">{average}</div>', lead)


def _histogram_section(distance: Distance) -> str:
    values = np.array([v for v in distance.per_probe if v is not None])
    if not len(values):
        return ""
    top = float(max(1.0, np.ceil(values.max() * 5) / 5))
    quarter = np.quantile(values, [0.05, 0.5, 0.95])
    lead = (
        f"One distance per probe: median {number(quarter[1])}, 90 % between {number(quarter[0])} "
        f"and {number(quarter[2])}."
    )
    return section("Distribution of the distance over probes", charts.histogram(values, top), lead)


def _figures_section(content: Difference, completeness: tuple[float, ...] | None) -> str:
    d, p, alike = content.distance, content.probes, content.agreement
    keys = ['<span class="of-a"><span class=key>A</span></span>', '<span class="of-b"><span class=key>B</span></span>']
    rows = [("models", "<br>".join(f"{k}{escape(m.name)} <code>{escape(m.digest)}</code>"
             for k, m in zip(keys, content.models, strict=True)))]  # fmt: skip
    rows.append(("distance", number(d.value, 6)))
    if d.interval is not None:
        rows.append(("95 % interval", f"{number(d.interval[0], 4)} to {number(d.interval[1], 4)}, over probes"))
    rows.append(("coverage", f"defined at {percent(d.coverage, 1)} of {len(p):,} probes"))
    agreement_text = (
        "not comparable" if alike.alike is None else f"the same top answer to {percent(alike.alike, 1)} of the probes"
    )
    rows.append(("label agreement", agreement_text))
    accuracies = (alike.accuracy_a, alike.accuracy_b)
    if any(x is not None for x in accuracies):
        unknown_text = "not known" if None in accuracies else ""
        texts = [
            f"{k}{percent(x, 1)}" if x is not None else f"{k}{unknown_text}"
            for k, x in zip(keys, accuracies, strict=True)
        ]
        rows.append(("accuracy", " &nbsp; ".join(texts)))
    if completeness is not None:
        texts = [f"{k}{percent(x, 2)}" for k, x in zip(keys, completeness, strict=True)]
        rows.append(("completeness error", " &nbsp; ".join(texts) + "<br><small>difference between the integral of "
                     "each field and the change of its output from baseline to probe</small>"))  # fmt: skip
    rows.append(("probes", f"{escape(p.source)}, {escape(p.kind)} {list(p.shape)}<br><code>{escape(p.digest)}</code>"))
    for name, spec in (("method", d.fingerprint), ("measure", d.measure)):
        given = ", ".join(f"{escape(k)} {escape(v)}" for k, v in spec.params.items())
        rows.append((name, f"{escape(spec.name)} version {spec.version}<br><small>{given}</small>"))
    rows.append(
        ("networks", "<br>".join(f"{k}<code>{escape(x)}</code>" for k, x in zip(keys, (d.a, d.b), strict=True)))
    )
    return section("Figures", table(rows))


def _limitations(content: Difference, mapped: bool) -> str:
    sentences = [
        f"Other inputs: the distance is measured on these {len(content.probes):,} probes and on the paths to them.",
        "Provenance: two models can be close because one derives from the other, or because both learned the same "
        "task. A comparison of weights, or with independent models, distinguishes these.",
        "Obfuscation: a model can be trained to give the same outputs with other gradients. A large distance does not "
        "prove independence.",
    ]
    if mapped:
        sentences += [
            "Causes: a bright region is weighted differently by the two models; this alone may not change any output.",
            "Coordinates where a probe equals its baseline: the field is zero there for both models."
            if getattr(content.method, "times_input", False)
            else "Scale: a model that reacts more strongly everywhere in the same directions has distance 0.",
        ]
    return section("Limitations", bullets(sentences))
