"""How far models are apart on a forget set, seen in several ways: what hides forgetting from one shows in another."""

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
"""The views by name, cheapest access first."""

INSIDE = frozenset({"features", "separation"})
"""Those that look into the network: what a new last layer or a masked answer hides shows only there."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class Questions:
    """What all models are asked.

    Attributes:
        forget: The forget set, with labels where there are any.
        retained: Inputs that are to be kept, None without.
        steps: Nodes per path of the gradient fields.
        ridge: Of the linear probe, relative to the mean square of a feature vector.
    """

    forget: Probes
    retained: Probes | None = None
    steps: int = 4
    ridge: float = 0.1


@dataclass(frozen=True, eq=False)
class Seen:
    """Distances among models by each view that could be taken.

    Attributes:
        distances: `[n, n]` by name of the view.
        left_out: Why a view could not be taken, by name.
        answers: Outputs on the forget set, per model.
        kept_answers: Outputs on the retained probes, per model; empty without.
    """

    distances: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    answers: Sequence[np.ndarray]
    kept_answers: Sequence[np.ndarray]


def look(models: Sequence[Model], asked: Questions, views: Sequence[str], progress: Progress | None = None) -> Seen:
    """Take every view of all models; one that cannot be taken of each of them is left out for all, with the reason.

    Cost: per model one pass over the probes, one more for its features, and `steps` forward and backward passes per
    forget probe.

    Args:
        models: The models, two or more.
        asked: The probes.
        views: Names from `VIEWS`.
        progress: Told what happens, how much is done and of how much.

    Returns:
        What was seen.
    """
    tell = progress or (lambda what, done, total: None)
    answers, kept_answers = [], []
    for i, model in enumerate(models):
        tell(f"asking {model.name}", i, len(models))
        answers.append(Outputs()(model, asked.forget).values["outputs"])
        if asked.retained is not None:
            kept_answers.append(Outputs()(model, asked.retained).values["outputs"])
    distances, left_out = {}, {}
    makers = {
        "outputs": lambda: _outputs(answers),
        "field": lambda: _field(models, asked, progress),
        "features": lambda: _features(models, asked),
        "separation": lambda: _separation(models, asked),
    }
    for name in views:
        tell(f"comparing {name}", 0, None)
        try:
            found = makers[name]()
        except StemmaError as error:
            left_out[name] = str(error)
            continue
        if np.isfinite(found).all():
            distances[name] = (found + found.T) / 2
        else:
            left_out[name] = "the distance between two of the models is undefined at every probe"
    return Seen(distances, left_out, answers, kept_answers)


def field_method(steps: int) -> GradientField:
    """The gradient field of the view: of the log-probability of the forget labels, along paths from zero.

    Returns:
        The method.
    """
    return GradientField(steps=steps, baseline="zero")


def _outputs(answers: Sequence[np.ndarray]) -> np.ndarray:
    return JensenShannon().gram([{"outputs": a} for a in answers]).mean(2)


def _field(models: Sequence[Model], asked: Questions, progress: Progress | None) -> np.ndarray:
    return pairwise(models, asked.forget, field_method(asked.steps), FieldCosine(), progress=progress).values


def _features(models: Sequence[Model], asked: Questions) -> np.ndarray:
    seen = [{"features": Activations()(m, asked.forget).values["features"]} for m in models]
    return LinearCka().gram(seen)[:, :, 0]


def _separation(models: Sequence[Model], asked: Questions) -> np.ndarray:
    if asked.retained is None:
        raise StemmaError("no retained probes were given")
    found = np.array([
        separation(*(Activations()(m, p).values["features"] for p in (asked.forget, asked.retained)), asked.ridge)
        for m in models
    ])  # fmt: skip
    return np.abs(found[:, None] - found[None])


def separation(forget: np.ndarray, retained: np.ndarray, ridge: float) -> float:
    """How well a linear probe on the last hidden layer tells the forget set from the rest, on inputs left out of it.

    A model that has learned a class keeps it apart there, whatever was done to the layer after it.

    Args:
        forget: Features `[k, p]`.
        retained: Features `[n, p]`.
        ridge: Relative to the mean square of a feature vector, after standardising.

    Returns:
        Share of the variance of "forget or not" that ridge regression explains, leave-one-out: at most 1; 0 or below
        knows nothing.

    Raises:
        StemmaError: If the features have no spread.
    """
    x = np.concatenate([forget, retained]).astype(np.float64)
    spread = x.std(0)
    x = (x - x.mean(0))[:, spread > 0] / spread[spread > 0]
    if not x.size:
        raise StemmaError("the last hidden layer of a model has the same values at all probes")
    y = np.repeat([1.0, 0.0], [len(forget), len(retained)])
    y = y - y.mean()
    left, values, _ = np.linalg.svd(x / x.shape[1] ** 0.5, full_matrices=False)
    hat = (left * (values**2 / (values**2 + ridge))) @ left.T + 1 / len(x)
    misses = (y - hat @ y) / (1 - np.diag(hat))
    return float(1 - np.square(misses).sum() / np.square(y).sum())
