"""Distances between models on a forget set, by several views: forgetting that one hides shows in another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.linear_cka import LinearCka
from stemma.measures.pairwise import pairwise
from stemma.probes import Probes

VIEWS = ("outputs", "field", "features", "separation")
"""The views by name, those that need least access first."""

INTERNAL_VIEWS = frozenset({"features", "separation"})
"""Views of hidden layers: a new last layer or masked outputs can hide knowledge from all others."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class ViewInputs:
    """What the views of all models are computed with.

    Attributes:
        forget: The forget set, with labels where there are any.
        retained: The retain set, None without.
        steps: Nodes per path of the gradient fields.
        ridge: Of the linear probe, relative to the mean square of a feature vector.
    """

    forget: Probes
    retained: Probes | None = None
    steps: int = 4
    ridge: float = 0.1


@dataclass(frozen=True, eq=False)
class ViewDistances:
    """Distances between models, by view.

    Attributes:
        distances: `[n, n]` by name of the view.
        unavailable: Why a view could not be computed, by name.
        outputs: Outputs on the forget set, per model.
        retained_outputs: Outputs on the retain set, per model; empty without.
    """

    distances: Mapping[str, np.ndarray]
    unavailable: Mapping[str, str]
    outputs: Sequence[np.ndarray]
    retained_outputs: Sequence[np.ndarray]


def measure_distances(
    models: Sequence[Model], given: ViewInputs, views: Sequence[str], progress: Progress | None = None
) -> ViewDistances:
    """Distances between two or more models by every view; one that fails for a model is left out for all."""
    # Cost: per model one pass over the probes, one more for its features, and `steps` forward and backward passes per
    # forget probe.
    report = progress or (lambda what, done, total: None)
    outputs, retained_outputs = [], []
    for i, model in enumerate(models):
        report(f"running {model.name}", i, len(models))
        outputs.append(Outputs()(model, given.forget).values["outputs"])
        if given.retained is not None:
            retained_outputs.append(Outputs()(model, given.retained).values["outputs"])
    distances, unavailable = {}, {}
    makers = {
        "outputs": lambda: JensenShannon().gram([{"outputs": a} for a in outputs]).mean(2),
        "field": lambda: _field(models, given, progress),
        "features": lambda: _features(models, given),
        "separation": lambda: _separation(models, given),
    }
    for name in views:
        report(f"comparing {name}", 0, None)
        try:
            found = makers[name]()
        except StemmaError as error:
            unavailable[name] = str(error)
            continue
        if np.isfinite(found).all():
            distances[name] = (found + found.T) / 2
        else:
            unavailable[name] = "the distance between two of the models is undefined at every probe"
    return ViewDistances(distances, unavailable, outputs, retained_outputs)


def field_method(steps: int) -> GradientField:
    """The gradient field of the view `field`: of the forget labels' log-probability, along paths from zero."""
    return GradientField(steps=steps, baseline="zero")


def _field(models: Sequence[Model], given: ViewInputs, progress: Progress | None) -> np.ndarray:
    return pairwise(models, given.forget, field_method(given.steps), FieldCosine(), progress=progress).values


def _features(models: Sequence[Model], given: ViewInputs) -> np.ndarray:
    features = [{"features": Activations()(m, given.forget).values["features"]} for m in models]
    return LinearCka().gram(features)[:, :, 0]


def _separation(models: Sequence[Model], given: ViewInputs) -> np.ndarray:
    if given.retained is None:
        raise StemmaError("no retained probes were given")
    found = np.array([
        separation(*(Activations()(m, p).values["features"] for p in (given.forget, given.retained)), given.ridge)
        for m in models
    ])  # fmt: skip
    return np.abs(found[:, None] - found[None])


def separation(forget: np.ndarray, retained: np.ndarray, ridge: float) -> float:
    """How well a linear probe separates features `[k, p]` of the forget set from those `[n, p]` of the retain set."""
    # The fraction of the variance of "forget or not" that ridge regression explains, leave-one-out: at most 1; 0 or
    # below is chance. A model that has learned a class separates it in its last hidden layer, whatever was done to
    # the layer after it. `ridge` is relative to the mean square of a standardised feature vector.
    x = np.concatenate([forget, retained]).astype(np.float64)
    spread = x.std(0)
    x = (x - x.mean(0))[:, spread > 0] / spread[spread > 0]
    if not x.size:
        raise StemmaError("the last hidden layer of a model has the same values at all probes")
    y = np.repeat([1.0, 0.0], [len(forget), len(retained)])
    y = y - y.mean()
    left, values, _ = np.linalg.svd(x / x.shape[1] ** 0.5, full_matrices=False)
    hat = (left * (values**2 / (values**2 + ridge))) @ left.T + 1 / len(x)
    residuals = (y - hat @ y) / (1 - np.diag(hat))
    return float(1 - np.square(residuals).sum() / np.square(y).sum())
