"""How near a model is to the original and to retrained models, input by input, in its answers and inside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.measures.scores import probabilities

MOST_SAMPLES = 1000
"""At most so many inputs of each sample enter the kernel test, whose cost grows with their square."""

COUNTED = 0.25
"""What is unrecovered at an input counts up to this share: bounded losses are judged with fewer inputs."""

WIDTHS = (0.1, 0.3, 1.0)
"""Widths of the kernel on probability vectors, whose largest distance is the root of 2."""

HALFWAY = 0.5
"""Place between the retrained models (0) and the original (1) beyond which a model is nearer to the original."""

UNLIKE_LABELS = 0.001
"""Level at which labels show that two sets of inputs were not drawn alike."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers and what its last hidden layer holds, by set of inputs.

    Attributes:
        name: Name of the model.
        outputs: `[n, …]` by set: `forget`, and `unseen` where given.
        features: `[n, p]` by set: `forget`, `retained` and `unseen`, as far as given; empty for a black box.
    """

    name: str
    outputs: Mapping[str, np.ndarray]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


def blind(models: Sequence[Answers]) -> str:
    """Why hidden layers cannot be read; empty where they can."""
    if "retained" not in models[0].features and models[0].features:
        return "no retained inputs were given"
    shut = [m.name for m in models if not {"forget", "retained"} <= set(m.features)]
    return f"the hidden layers of {shut[0]} cannot be read" if shut else ""


def sample_views(model: Answers, name: str, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Samples of one set, by view: probabilities, features, and the loss where the true class is known."""
    p, _ = probabilities({"outputs": model.outputs[name]}, {"outputs": model.outputs[name]}, "aggregated-mmd")
    out = {"outputs": p.reshape(len(p), -1, p.shape[-1]).mean(1)}
    if name in model.features:
        out["features"] = model.features[name]
    if name in labels and p.ndim == 2 and labels[name].max() < p.shape[1]:
        out["loss"] = -np.log(np.clip(p[np.arange(len(p)), labels[name]], 1e-12, 1))[:, None]
    return out


def labels_differ(labels: Mapping[str, np.ndarray]) -> bool:
    """Whether the forget set and the unseen inputs have their classes in other shares; False where one has none.

    Args:
        labels: Classes by set of inputs.

    Returns:
        Whether the chi-squared test of homogeneity rejects at `UNLIKE_LABELS`.
    """
    if not {"forget", "unseen"} <= set(labels):
        return False
    from scipy.stats import chi2_contingency

    sets = [np.asarray(labels[name]).ravel() for name in ("forget", "unseen")]
    classes = np.unique(np.concatenate(sets))
    counts = np.array([[(s == c).sum() for c in classes] for s in sets])
    return len(classes) > 1 and float(chi2_contingency(counts).pvalue) <= UNLIKE_LABELS


def unrecovered(model: Answers, original: Answers, ridge: float) -> np.ndarray:
    """How little of the original's hidden response to each forget input the model's hidden layer yields: 0 is all.

    A linear map from the one's features to the other's is fitted on retained inputs only; per forget input, the squared
    error as a share of itself and the squared response. A new last layer, a mask or a rotation change nothing.

    Args:
        model: The model whose hidden layer is read.
        original: The model whose response is sought.
        ridge: Of the map, relative to the mean square of a feature vector.

    Returns:
        `[n]` in [0, 1].
    """
    seen, sought = (m.features["retained"].astype(np.float64) for m in (model, original))
    asked, wanted = (m.features["forget"].astype(np.float64) for m in (model, original))
    spread = seen.std(0)
    live = spread > 0
    x, x_new = ((v - seen.mean(0))[:, live] / spread[live] for v in (seen, asked))
    scale = np.concatenate([sought, wanted]).std(0)
    moves = scale > 0
    y, y_new = ((v - sought.mean(0))[:, moves] / scale[moves] for v in (sought, wanted))
    if x.shape[1] <= len(x):
        penalty = ridge / max(x.shape[1], 1)
        found = x_new @ np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ y / len(x))
    else:
        penalty = ridge / x.shape[1] * len(x)
        found = (x_new @ x.T) @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)
    error, response = np.square(found - y_new).sum(1), np.square(y_new).sum(1)
    return np.where(error > 0, error / np.maximum(error + response, 1e-300), 0.0)


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kernel in [0, 1] of probability vectors, row by row: the mean of Gaussian kernels of fixed widths."""
    square = np.square(a - b).sum(-1)
    return np.mean([np.exp(-square / (2 * width**2)) for width in WIDTHS], axis=0)


def nearer_in_outputs(model: Answers, original: Answers, retrained: Sequence[Answers], seed: int) -> np.ndarray:
    """Independent values in [-1, 1] whose mean has the sign of `MMD(model, retrained) - MMD(model, original)`.

    One per pair of forget inputs: the terms of the squared discrepancies for the pair (Gretton et al. 2012, lemma 14;
    the relative form is that of Bounliphone et al. 2016). Samples are compared, never the answers to one input: two
    trainings err at different inputs, and would seem to differ.

    Args:
        model: The model that is placed.
        original: The model before.
        retrained: Models that never saw the forget set.
        seed: Of the pairs.

    Returns:
        `[n / 2]`.
    """
    u, o, *rest = (sample_views(m, "forget", {})["outputs"] for m in (model, original, *retrained))
    order = np.random.default_rng([seed, len(u), 2]).permutation(len(u))
    i, j = order[: len(u) // 2], order[len(u) // 2 : len(u) // 2 * 2]

    def squared(other: np.ndarray) -> np.ndarray:
        return likeness(other[i], other[j]) - likeness(u[i], other[j]) - likeness(u[j], other[i])

    return (np.mean([squared(r) for r in rest], axis=0) - squared(o)) / 3


def discrepancy(a: Answers, b: Answers) -> float:
    """Squared maximum mean discrepancy of two models' answers to the forget set, at most 1,000 inputs; 0 or more."""
    x, y = (sample_views(m, "forget", {})["outputs"][:MOST_SAMPLES] for m in (a, b))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([likeness(row, q).mean() for row in p]))

    return max(0.0, mean(x, x) + mean(y, y) - 2 * mean(x, y))


def nearer_inside(model: Answers, original: Answers, retrained: Sequence[Answers], ridge: float) -> np.ndarray:
    """By how much less than half as much as in the retrained models is unrecovered, per input, in [-1, 1]."""
    left, *others = (np.minimum(unrecovered(m, original, ridge), COUNTED) / COUNTED for m in (model, *retrained))
    return HALFWAY * np.mean(others, axis=0) - left


def place(
    model: Answers, original: Answers, retrained: Sequence[Answers], ridge: float, *, inside: bool
) -> dict[str, float]:
    """Where the model stands by view, between the retrained models (0) and the original (1)."""
    far = discrepancy(model, original)
    near = float(np.mean([discrepancy(model, r) for r in retrained]))
    out = {"outputs": near / (near + far) if near + far > 0 else HALFWAY}
    if inside:
        left = float(unrecovered(model, original, ridge).mean())
        reference = float(np.mean([unrecovered(r, original, ridge).mean() for r in retrained]))
        out["inside"] = 1 - left / reference if reference > 0 else HALFWAY
    return out
