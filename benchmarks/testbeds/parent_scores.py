"""Scores of every candidate for every child by many methods at once, and how often they name the right one.

All methods share one pass over the networks: features of both sides, and the derivative of the parent's features along
the difference of weights. The Taylor form needs the inner product of that derivative with the gradient of the
similarity, the same number as its backward pass gives; `agreement` checks that against the methods of the library.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.kinship.function.feature_similarities import similarity
from stemma.kinship.function.finetuning_approximation import FineTuningApproximation, direction, shorten_steps
from stemma.kinship.function.network_body import body_up_to, difference, feature_tangents
from stemma.kinship.function.pooled_tails import pooled_tails
from stemma.measures.intervals import at_boundary
from stemma.probes import Probes
from testbeds.parent_zoos import Question

SIMILARITIES = ("l1", "l2", "lp", "lse", "cka", "dc")
TAYLOR = (0.01, 0.1, 1.0)
LINEAR = (1.0,)
DRAWS, CHUNK = 2000, 50

Scorer = Callable[[Sequence[Model], Sequence[Model], Probes], np.ndarray]
"""Any method: candidates, children, probes to scores `[k, c]`, larger for nearer."""


def all_scores(
    q: Question,
    linear: Sequence[float] = LINEAR,
    taylor: Sequence[float] = TAYLOR,
    names: Sequence[str] = SIMILARITIES,
) -> dict[str, dict[str, np.ndarray]]:
    """Scores `[k, c]` by similarity and form.

    Some have one form: `direction`, the cosine of J (c - p) with the difference of features; `combined`, what the
    library pools of it, `l1` and `cka`; and two baselines, `weights`, the distance of weights, and `step`, the length
    of J (c - p).
    """
    children = [body_up_to(c, q.probes) for c in q.children]
    theirs = torch.stack([c.features_of_all(q.probes, len(q.probes)) for c in children])
    rows: dict[str, dict[str, list[torch.Tensor]]] = {}
    for candidate in q.candidates:
        parent = body_up_to(candidate, q.probes)
        own = parent.features_of_all(q.probes, len(q.probes))
        added = [difference(parent, c) for c in children]
        step_of_features = torch.cat(
            [
                feature_tangents(parent, added[i : i + CHUNK], q.probes, len(q.probes))
                for i in range(0, len(added), CHUNK)
            ]
        )
        for name in names:
            here = rows.setdefault(name, {})
            for form, found in _forms(name, own, theirs, step_of_features, linear, taylor).items():
                here.setdefault(form, []).append(found)
        distance = torch.stack([torch.stack([d.double().square().sum() for d in a.values()]).sum() for a in added])
        rows.setdefault("weights", {}).setdefault("plain", []).append(-distance.sqrt())
        rows.setdefault("step", {}).setdefault("plain", []).append(-step_of_features.flatten(1).norm(dim=1))
        rows.setdefault("direction", {}).setdefault("plain", []).append(direction(step_of_features, theirs - own))
    found = {s: {form: torch.stack(r).numpy() for form, r in forms.items()} for s, forms in rows.items()}
    if {"l1", "cka"} <= set(found) and "linear 1" in found["l1"]:
        near = [-np.log(np.maximum(-found["l1"][form], 1e-300)) for form in ("plain", "linear 1")]
        near.append(-np.log(np.maximum(1 - found["cka"]["linear 1 bounded"], 1e-300)))
        near.append(np.arctanh(np.clip(found["direction"]["plain"], -1 + 1e-12, 1 - 1e-12)))
        found["combined"] = {"plain": pooled_tails(np.stack(near))}
    return found


def _forms(
    name: str, own: torch.Tensor, theirs: torch.Tensor, step_of_features: torch.Tensor, linear: Sequence[float],
    taylor: Sequence[float],
) -> dict[str, torch.Tensor]:  # fmt: skip
    measure = similarity(name, 4.0, 0.01)
    s = measure.value(own, theirs)
    slope = (measure.gradient(own, theirs) * step_of_features).sum((1, 2))
    found = {"plain": measure.score(s)}
    for alpha in linear:
        found[f"linear {alpha:g}"] = measure.score(measure.value(own + alpha * step_of_features, theirs))
        if measure.scale_invariant:
            short = shorten_steps(alpha * step_of_features, theirs - own)
            found[f"linear {alpha:g} bounded"] = measure.score(measure.value(own + short, theirs))
    for alpha in taylor:
        found[f"taylor {alpha:g}"] = measure.score(s + alpha * slope)
    return found


def default_form(name: str) -> str:
    """Which of the linear forms the library takes by default."""
    return "linear 1 bounded" if name in {"cka", "dc"} else "linear 1"


def agreement(q: Question, scores: Mapping[str, Mapping[str, np.ndarray]], children: int = 6) -> float:
    """Largest relative difference to what the library's methods give for the first candidate and a few children."""
    worst = 0.0
    for name in SIMILARITIES:
        methods = {
            "plain": FineTuningApproximation("plain", name),
            default_form(name): FineTuningApproximation("linear", name),
            "taylor 0.1": FineTuningApproximation("taylor", name, 0.1),
        }
        for form, method in methods.items():
            found, kept = method(q.candidates[0], q.children[:children], q.probes), scores[name][form][0, :children]
            worst = max(worst, float(np.abs(found - kept).max() / np.abs(kept).max().clip(1e-9)))
    pooled = FineTuningApproximation("combined").matrix(q.candidates, q.children[:children], q.probes).values
    kept = scores["combined"]["plain"][:, :children]
    return max(worst, float(np.abs(pooled - kept).max() / np.abs(kept).max()))


def right(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each child's parent scores highest, `[c]`; where several share the highest, their fair share of it."""
    best = scores == scores.max(0)
    return best[truth, np.arange(len(truth))] / best.sum(0)


def interval(values: np.ndarray, family: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """A mean with its 95 % interval: families are drawn again with replacement.

    Args:
        values: One per child.
        family: Of each child.
        seed: Of the draws.

    Returns:
        `mean`, `low`, `high`.
    """
    groups = [values[family == f] for f in np.unique(family)]
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(seed).integers(len(groups), size=(DRAWS, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = at_boundary(tuple(np.quantile(means, [0.025, 0.975])), float(values.mean()), len(groups))
    return {"mean": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def hits(questions: Sequence[Question], scores: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> tuple[
    dict[str, dict[str, np.ndarray]], np.ndarray
]:  # fmt: skip
    """Whether each child of all questions was placed right, by similarity and form, and the family of each."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, forms in scores[0].items():
        found[name] = {
            form: np.concatenate([right(s[name][form], q.truth) for q, s in zip(questions, scores, strict=True)])
            for form in forms
        }
    return found, np.concatenate([q.family for q in questions])


def table(found: Mapping[str, Mapping[str, np.ndarray]], family: np.ndarray) -> dict[str, Any]:
    """Top-1 by similarity and form with intervals, and paired differences to the plain form."""
    out: dict[str, Any] = {}
    for name, forms in found.items():
        row: dict[str, Any] = {}
        for form, v in forms.items():
            label = "linear" if form == default_form(name) else "linear unbounded" if form == "linear 1" else form
            row[label] = interval(v, family)
        if name in SIMILARITIES:
            for label, form in (("linear", default_form(name)), ("taylor 0.01", "taylor 0.01")):
                if form in forms:
                    row[f"{label} - plain"] = interval(forms[form] - forms["plain"], family)
        out[name] = row
    return out


def relative_change(q: Question) -> float:
    """Mean length of the change from parent to child over the length of the parent, heads left out."""
    parents = [body_up_to(p, q.probes) for p in q.candidates]
    found = []
    for child, t in zip(q.children, q.truth, strict=True):
        parent = parents[t]
        made = _length(difference(parent, body_up_to(child, q.probes)))
        found.append(made / _length(parent.parameters))
    return round(float(np.mean(found)), 3)


def _length(parameters: Mapping[str, torch.Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in parameters.values()]).sum().sqrt())


def shipped_detector(candidates: Sequence[Model], children: Sequence[Model], probes: Probes) -> np.ndarray:
    """The learned detector that the package ships: probabilities `[k, c]`, without those of "none of them"."""
    from stemma.kinship.learned.detector import LineageDetector
    from stemma.training import PRETRAINED

    detector = LineageDetector.load(PRETRAINED / "lineage_detector.safetensors")
    return np.array([detector(child, candidates, probes).probabilities for child in children]).T
