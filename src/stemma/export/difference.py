"""The page that shows how far apart two models are, and where in the inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.export import charts, probe_cards
from stemma.export.page import bullets, document, number, percent, said, section, table
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.evaluation import answers
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.paths import starts
from stemma.measures.agreement import Agreement, agreement
from stemma.measures.base import AbstractMeasure, Law, summarised
from stemma.measures.difference_map import Located, located
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.pairwise import pairwise
from stemma.probes import Probes
from stemma.types import Comparison, Distance, Fingerprint

MOST = 8
"""Probes that are shown because the models differ most there."""

LEAST = 2
"""Probes that are shown as a control because they differ least there."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Everything that the page tells.

    Attributes:
        models: Both models.
        probes: What they were asked.
        method: How they were asked.
        measure: How the answers were compared.
        distance: How far apart they are.
        outputs: Their outputs to the probes.
        agreement: How often they answer alike.
        comparison: The verdict on the pair, where it was asked for.
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
        """Ask both models and measure how far apart they are.

        Args:
            a: The one model.
            b: The other.
            probes: What both are asked.
            method: How; the gradient field unless given.
            measure: How the answers are compared, a mean over probes; the field cosine unless given.

        Returns:
            What a page tells.
        """
        method, measure = method or GradientField(), measure or FieldCosine()
        found = pairwise([a, b], probes, method, measure)
        ends = [Fingerprint(digest, probes.digest, method.spec, {}) for digest in found.models]
        distance = summarised(ends[0], ends[1], measure.spec, found.per_probe[0, 1], counted=measure.counted)
        outputs = answers(a, probes), answers(b, probes)
        return cls((a, b), probes, method, measure, distance, outputs, agreement(*outputs, probes))


def difference_page(told: Difference, progress: Callable[[str, int, int | None], None] | None = None) -> bytes:
    """The page.

    Cost: where the method gives a field, the fields of both models are taken once more; memory is that of one block
    of probes and of the maps that are shown.

    Args:
        told: What it tells.
        progress: Told how many probes are done.

    Returns:
        HTML, complete in itself.
    """
    most, least = _chosen(told.distance)
    maps, completeness = _maps(told, {*most, *least}, progress)
    names = [model.name for model in told.models]
    labels = tuple(_labels(model) for model in told.models)
    cards = probe_cards.Cards(told.probes, told.outputs, labels, maps, most, _starts(told))
    parts = [_header(told), _verdict(told), _where(told, cards, most, least), _average(cards)]
    parts += [_spread(told.distance), _figures(told, completeness), _blind(told, maps is not None)]
    return document(f"{names[0]} and {names[1]}: where they differ", [part for part in parts if part])


def _chosen(distance: Distance) -> tuple[list[int], list[int]]:
    """The probes with the largest distances, and those with the smallest."""
    known = [(v, i) for i, v in enumerate(distance.per_probe) if v is not None]
    falling = [i for _, i in sorted(known, key=lambda pair: (-pair[0], pair[1]))]
    least = falling[MOST:][::-1][:LEAST]
    return falling[:MOST], least


def _maps(
    told: Difference, chosen: set[int], progress: Callable[[str, int, int | None], None] | None
) -> tuple[Located | None, tuple[float, ...] | None]:
    """Where the fields differ, and by how much each model's integral misses its potential."""
    method, measure = told.method, told.measure
    if not (isinstance(method, GradientField) and isinstance(measure, FieldCosine)) or method.sketch:
        return None, None
    shape = told.probes.shape[1:] if method.channel_mean else told.probes.shape
    missed: list[list[tuple[float, float]]] = [[], []]

    def pairs() -> Any:
        streams = [method.blocks(model, told.probes) for model in told.models]
        for a, b in zip(*streams, strict=True):
            for found, block in zip(missed, (a, b), strict=True):
                found.append((float(block.values["gap"].sum()), float(block.values["change"].sum())))
            yield a, b
            if progress is not None:
                progress("drawing where they differ", a.start + len(a), len(told.probes))

    maps = located(pairs(), chosen, shape, measure)
    sums = [np.sum(found, 0) for found in missed]
    return maps, tuple(float(gap / change) if change else 0.0 for gap, change in sums)


def _starts(told: Difference) -> np.ndarray | None:
    """Where paths start, if that is one input per probe, or one that is worth a look."""
    if not isinstance(told.method, GradientField):
        return None
    (name, found), *more = starts(told.probes, told.method.baseline, told.method.seed)
    seen = name in ("probe", "given") or (name == "mean" and told.probes.kind != "tokens")
    return found if seen and not more else None


def _labels(model: Model) -> Mapping[int, str]:
    named = (model.config or {}).get("id2label")
    if not isinstance(named, Mapping):
        return {}
    return {int(k): str(v) for k, v in named.items() if str(k).isdigit()}


def _header(told: Difference) -> str:
    d, measure = told.distance, told.measure
    models = "".join(
        f'<div class="model of-{side}"><b><span class=key>{side.upper()}</span>{said(m.name)}</b><small>'
        f"{len(m.tensors):,} tensors, {m.parameters:,} parameters</small>"
        f"<small><code>{said(m.digest[:27])}…</code></small></div>"
        for side, m in zip("ab", told.models, strict=True)
    )
    null = _null(told)
    top = max(1.0, d.value * 1.05, *(x * 1.05 for x in (d.interval or ())), *(null or ()))
    if measure.name == FieldCosine.name and top > 1:
        top = min(2.0, np.ceil(top * 5) / 5)
    interval = "" if d.interval is None else f"95 % interval {number(d.interval[0])} to {number(d.interval[1])}"
    said_value = f"<strong>{number(d.value)}</strong><span>{interval}<br>over {len(told.probes):,} probes</span>"
    title = "How far apart these two models are, and where"
    title = title if told.comparison is None else "What these two models are to each other, and where they differ"
    by = f"What they do with the same inputs, measured by {said(d.fingerprint.name)} and {said(d.measure.name)}."
    return (
        f"<header><h1>{title}</h1><p class=soft>{by}</p>"
        f'<div class="pair">{models}</div><div class="value">{said_value}</div>'
        f"{charts.scale(d.value, d.interval, top, null)}"
        f"<p class=soft>{meaning(measure, null=null is not None)}</p></header>"
    )


def _null(told: Difference) -> tuple[float, float, float] | None:
    """Where independent models lie by this method and measure, if the comparison looked."""
    function = told.comparison.function if told.comparison else None
    for entry in function.details.get("measures", ()) if function else ():
        if (entry["fingerprint"], entry["measure"]) == (told.method.name, told.measure.name) and "null_median" in entry:
            return entry["null_smallest"], entry["null_median"], entry["null_largest"]
    return None


def meaning(measure: AbstractMeasure, *, null: bool) -> str:
    """What the numbers of a measure mean, for a page.

    Args:
        measure: The measure.
        null: Whether independent models are shown beside the distance.

    Returns:
        Sentences.
    """
    if isinstance(measure, FieldCosine):
        scale = (
            "0: the two models lean on the same parts of the input in the same way, up to scale. 1: their fields have "
            "nothing in common. Above 1: they lean in opposite directions."
        )
    else:
        scale = "0: the same." + (f" {measure.top:g} is the most there is." if Law.BOUNDED in measure.laws else "")
    told = (
        "The grey band spans the distances of independent models, the dashed line is their median."
        if null
        else "A distance alone is no verdict: what is near depends on the task, and independent models of the same "
        "task tell (<code>stemma compare A B --probes P --null PATH</code>)."
    )
    return f"{scale} {told}"


def _verdict(told: Difference) -> str:
    found = told.comparison
    if found is None:
        return ""
    rows = [("verdict", f"<b>{said(found.verdict)}</b>"), ("relation", said(_relation(found)))]
    for name, evidence in (("weights", found.weights), ("function", found.function)):
        if evidence is not None:
            p = "not tested" if evidence.p_value is None else f"p = {number(evidence.p_value, 2)}"
            rows.append((name, f"{said(evidence.reason)} <small>({p}; {said(evidence.statistic)})</small>"))
    rows += [("not tested", said(t["why"])) for t in found.open_questions if t["why"] != found.weights.reason]
    rows.append(("cannot see", said(" · ".join(found.cannot_see) or "nothing known to be missing")))
    return section("What they are to each other", table(rows))


def _relation(found: Comparison) -> str:
    return "undetermined" if found.undetermined else found.relation.kind.value


def _where(told: Difference, cards: "probe_cards.Cards", most: Sequence[int], least: Sequence[int]) -> str:
    if not most:
        return ""
    each = {i: cards.card(i, v) for i in (*most, *least) if (v := told.distance.per_probe[i]) is not None}
    lead = "The probes at which the two models differ most, and what each answers."
    if cards.maps is not None and told.probes.kind == "tokens":
        lead = (
            "The probes at which the two models differ most. The darker a position, the more it adds to the distance: "
            "together the positions sum to it exactly. Below, what each model takes to come next."
        )
    elif cards.maps is not None:
        lead = (
            "The probes at which the two models differ most. The map shows how much every place of an input adds to "
            "the distance: together its places sum to it exactly."
        )
        lead += " Then, the places that each model leans on itself." if cards.is_picture else ""
    out = section(
        "Where they differ most", cards.bar() + f'<div class="cards">{"".join(each[i] for i in most)}</div>', lead
    )
    if least:
        control = "The control: the probes at which they differ least, in the same colours."
        out += section(
            "Where they differ least", f'<div class="cards">{"".join(each[i] for i in least)}</div>', control
        )
    return out


def _average(cards: "probe_cards.Cards") -> str:
    average = cards.average()
    if not average:
        return ""
    lead = (
        "The same maps averaged over all probes, in colour scales of their own. An even map says that the models "
        "differ everywhere alike; a bright place, that they read this part of the inputs differently."
    )
    return section("On average over all probes", f'<div class="average">{average}</div>', lead)


def _spread(distance: Distance) -> str:
    values = np.array([v for v in distance.per_probe if v is not None])
    if not len(values):
        return ""
    top = float(max(1.0, np.ceil(values.max() * 5) / 5))
    quarter = np.quantile(values, [0.05, 0.5, 0.95])
    lead = (
        f"One distance per probe: half of them below {number(quarter[1])}, nine tenths between {number(quarter[0])} "
        f"and {number(quarter[2])}."
    )
    return section("How the distance spreads over the probes", charts.histogram(values, top), lead)


def _figures(told: Difference, completeness: tuple[float, ...] | None) -> str:
    d, p, alike = told.distance, told.probes, told.agreement
    keys = ['<span class="of-a"><span class=key>A</span></span>', '<span class="of-b"><span class=key>B</span></span>']
    rows = [("models", "<br>".join(f"{k}{said(m.name)} <code>{said(m.digest)}</code>"
             for k, m in zip(keys, told.models, strict=True)))]  # fmt: skip
    rows.append(("distance", number(d.value, 6)))
    if d.interval is not None:
        rows.append(("95 % interval", f"{number(d.interval[0], 4)} to {number(d.interval[1], 4)}, over probes"))
    rows.append(("coverage", f"defined at {percent(d.coverage, 1)} of {len(p):,} probes"))
    known = (
        "not comparable" if alike.alike is None else f"the same top answer to {percent(alike.alike, 1)} of the probes"
    )
    rows.append(("label agreement", known))
    accuracies = (alike.accuracy_a, alike.accuracy_b)
    if any(x is not None for x in accuracies):
        told_apart = "not known" if None in accuracies else ""
        each = [
            f"{k}{percent(x, 1)}" if x is not None else f"{k}{told_apart}"
            for k, x in zip(keys, accuracies, strict=True)
        ]
        rows.append(("accuracy", " &nbsp; ".join(each)))
    if completeness is not None:
        each = [f"{k}{percent(x, 2)}" for k, x in zip(keys, completeness, strict=True)]
        rows.append(("completeness error", " &nbsp; ".join(each) + "<br><small>by how much the integral of each field "
                     "misses the change of its output from baseline to probe</small>"))  # fmt: skip
    rows.append(("probes", f"{said(p.source)}, {said(p.kind)} {list(p.shape)}<br><code>{said(p.digest)}</code>"))
    for name, spec in (("method", d.fingerprint), ("measure", d.measure)):
        given = ", ".join(f"{said(k)} {said(v)}" for k, v in spec.params.items())
        rows.append((name, f"{said(spec.name)} version {spec.version}<br><small>{given}</small>"))
    rows.append(("networks", "<br>".join(f"{k}<code>{said(x)}</code>" for k, x in zip(keys, (d.a, d.b), strict=True))))
    return section("Figures", table(rows))


def _blind(told: Difference, mapped: bool) -> str:
    sentences = [
        f"Inputs unlike these {len(told.probes):,} probes: the distance is measured at them and on the paths to them.",
        "Kinship: two models can be near because one comes from the other, or because both learned the same task. "
        "Weights and a null of independent models tell these apart.",
        "Intent: a model can be trained to give the same answers with another field. A large distance is no proof of "
        "independence.",
    ]
    if mapped:
        sentences += [
            "Causes: a bright place is one that the two models weigh differently; by itself it may change no answer.",
            "Places where a probe is equal to the start of its path: nothing moves there, so neither field does."
            if getattr(told.method, "times_input", False)
            else "Scale: a model that reacts more strongly everywhere, in the same directions, is at distance 0.",
        ]
    return section("What this cannot see", bullets(sentences))
