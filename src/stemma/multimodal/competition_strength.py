"""How much of what a modality does alone is no longer readable from the fused representation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.errors import MisuseError

NEGLIGIBLE = 1e-6
"""Directions of the concept with less variance than this share of the largest are left out."""

ACTIVE = 15
"""Fit probes at which a feature has to differ from its median: one that hardly ever does has a scale that other probes
exceed a thousandfold."""

FEWEST = 20
"""Probes below which nothing is fitted or tested."""

PENALTIES = tuple(10.0**e for e in range(-4, 7))
"""Ridge penalties that are tried, of standardised features and summed squared errors."""


@dataclass(frozen=True)
class CompetitionStrength:
    """How strongly one modality is competed against in a fused network: 0 not at all.

    Attributes:
        whitened: Unexplained share of the concept's variance, every direction counted alike. 0: all of the concept is
            linearly readable from the fused features; 1: nothing but its mean; above 1 if the fit misleads.
        interval: 95 % of it, over test probes (over concepts where several were given); with few test probes for the
            directions it lies lower than the figure, which whitening by the same probes makes too large.
        plain: The same with directions weighted by their variance: 1 - R^2.
        plain_interval: 95 % of it.
        penalty: Ridge penalty of the fit, the one with the smallest cross-validated error unless given.
        directions: Of the concept that were counted.
        features: Width of the fused representation.
        fitted: Probes that the readout was fitted on.
        tested: Probes that it was tested on.
        concepts: Networks that the concept was averaged over.
        reason: What makes the figure shaky, empty if nothing does.
    """

    whitened: float
    interval: tuple[float, float]
    plain: float
    plain_interval: tuple[float, float]
    penalty: float
    directions: int
    features: int
    fitted: int
    tested: int
    concepts: int = 1
    reason: str = ""


@dataclass(frozen=True)
class CompetitionTest:
    """The fit and the test behind a competition strength.

    Attributes:
        penalty: Of the ridge regression; chosen by cross-validation if None.
        scaled: Whether features are standardised first; the published test takes them as they are.
        folds: Of the cross-validation.
        draws: Bootstrap samples behind an interval.
        seed: Of folds and bootstrap.

    Source: Li et al., ICCV 2023, as coded there: d = trace(E (N Sigma)^+ E^T) / K with ridge penalty 120. Departures:
    features are standardised (those that differ from their median at fewer than 15 probes left out), and the penalty is
    cross-validated; K counts the directions that are kept, so that a readout of nothing but the mean scores exactly 1.
    """

    penalty: float | None = None
    scaled: bool = True
    folds: int = 5
    draws: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.draws < 1 or not (self.penalty is None or 0 <= self.penalty < np.inf):
            raise MisuseError(
                "a readout takes two folds or more, one bootstrap sample or more, and a penalty of 0 or more, but they "
                f"are {self.folds}, {self.draws} and {self.penalty}"
            )

    def __call__(
        self, fit_features: np.ndarray, fit_concept: np.ndarray, features: np.ndarray, concept: np.ndarray
    ) -> CompetitionStrength:
        """Competition strength from arrays.

        Args:
            fit_features: `[fitted, width]`, the fused representation on probes the network was not trained on.
            fit_concept: `[fitted, outputs]`, what the modality's concept answers to the same.
            features: `[tested, width]`, on other probes.
            concept: `[tested, outputs]`.

        Returns:
            The strength with its intervals.

        Raises:
            MisuseError: If the arrays do not belong together, or the concept is constant.
        """
        _check(fit_features, fit_concept, features, concept)
        x, mean, scale = _standardised(fit_features, self.scaled)
        centre = fit_concept.mean(0)
        white = _whitener(fit_concept - centre)
        penalty = self._chosen(x, (fit_concept - centre) @ white) if self.penalty is None else self.penalty
        predicted = (features - mean) / scale @ _ridge(x, fit_concept - centre, penalty) + centre
        error = predicted - concept
        directions = _whitener(concept - concept.mean(0)).shape[1]
        draw = np.random.default_rng(self.seed)
        drawn = [_unexplained(error[r], concept[r]) for r in draw.integers(0, len(error), (self.draws, len(error)))]
        whitened, plain = figures = _unexplained(error, concept)
        # The bootstrap is off by as much as the sample is: turned over, its quantiles take that away.
        high, low = 2 * np.array(figures) - np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
        low, high = low.clip(0), high.clip(0)
        few, rare = len(x) < 2 * x.shape[1], int((np.isinf(scale) & (fit_features.std(0) > 0)).sum())
        shaky = (
            f"{len(x)} probes to fit {x.shape[1]} features: too few to be stable" if few else "",
            f"{rare} features that differ from their median at fewer than {ACTIVE} fit probes are left out"
            * bool(rare),
        )
        return CompetitionStrength(
            whitened, (float(low[0]), float(high[0])), plain, (float(low[1]), float(high[1])), float(penalty),
            directions, features.shape[1], len(x), len(features),
            reason=_joined(*shaky),
        )  # fmt: skip

    def _chosen(self, x: np.ndarray, y: np.ndarray) -> float:
        """The penalty with the smallest cross-validated error, every direction of the concept counted alike."""
        fold = np.random.default_rng(self.seed).permutation(len(x)) % min(self.folds, len(x))
        errors = np.zeros(len(PENALTIES))
        for k in range(fold.max() + 1):
            kept, out = x[fold != k], x[fold == k]
            mean, aim = kept.mean(0), y[fold != k].mean(0)
            for i, coefficients in enumerate(_ridges(kept - mean, y[fold != k] - aim, PENALTIES)):
                errors[i] += np.square((out - mean) @ coefficients + aim - y[fold == k]).sum()
        return PENALTIES[int(errors.argmin())]


def over_concepts(found: Sequence[CompetitionStrength]) -> CompetitionStrength:
    """The mean over concepts that were trained apart, with an interval over them.

    Args:
        found: One strength per concept.

    Returns:
        Their mean. The interval (Student, 95 %) is over concepts where there are three or more; with fewer, it is the
        widest of their own, and `reason` says so.
    """
    if len(found) == 1:
        return replace(found[0], reason=_joined(found[0].reason, "one concept: its training seed is not averaged out"))
    means = {}
    for name, own in (("whitened", "interval"), ("plain", "plain_interval")):
        values = np.array([getattr(f, name) for f in found])
        means[name] = float(values.mean())
        if len(found) < 3:
            means[own] = (min(getattr(f, own)[0] for f in found), max(getattr(f, own)[1] for f in found))
        else:
            from scipy.stats import t

            half = float(t.ppf(0.975, len(found) - 1) * values.std(ddof=1) / len(found) ** 0.5)
            means[own] = (means[name] - half, means[name] + half)
    few = "" if len(found) > 2 else "two concepts: three or more give an interval over their training"
    return replace(found[0], **means, concepts=len(found), reason=_joined(found[0].reason, few))


def _joined(*reasons: str) -> str:
    return "; ".join(r for r in reasons if r)


def _unexplained(error: np.ndarray, concept: np.ndarray) -> tuple[float, float]:
    """Whitened and plain share of the concept's variance that an error leaves."""
    centred = concept - concept.mean(0)
    white = _whitener(centred)
    total = np.square(centred).sum()
    return float(np.square(error @ white).mean()), float(np.square(error).sum() / total)


def _whitener(centred: np.ndarray) -> np.ndarray:
    """Maps a centred concept to directions of unit variance; those with next to none are left out."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = variances > NEGLIGIBLE * variances[-1]
    return axes[:, kept] / np.sqrt(variances[kept])


def _standardised(features: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, scale = features.mean(0), features.std(0)
    active = (features != np.median(features, axis=0)).sum(0) >= ACTIVE
    known = active & (scale > 1e-9 * max(float(scale.max()), 1e-30))
    scale = np.where(known, scale, np.inf) if scaled else np.ones_like(scale)  # what is constant says nothing
    return (features - mean) / scale, mean, scale


def _ridges(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    left, values, right = np.linalg.svd(x, full_matrices=False)
    aimed = left.T @ y
    kept = values > values.max(initial=0) * max(x.shape) * np.finfo(x.dtype).eps
    values, aimed, right = values[kept], aimed[kept], right[kept]
    return [right.T @ (aimed * (values / (values**2 + p))[:, None]) for p in penalties]


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    return _ridges(x, y, [penalty])[0]


def _check(fit_features: np.ndarray, fit_concept: np.ndarray, features: np.ndarray, concept: np.ndarray) -> None:
    arrays = (fit_features, fit_concept, features, concept)
    paired = len(fit_features) == len(fit_concept) and len(features) == len(concept)
    same = fit_features.shape[1:] == features.shape[1:] and fit_concept.shape[1:] == concept.shape[1:]
    if any(a.ndim != 2 for a in arrays) or not paired or not same:
        raise MisuseError(
            "competition strength takes features and a concept of the same probes, [n, width] and [n, outputs], once "
            f"to fit and once to test, but the shapes are {', '.join(str(list(a.shape)) for a in arrays)}"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise MisuseError("features and concept have to be finite, but there are NaN or infinite values among them")
    if min(len(features), len(fit_features)) < FEWEST:
        raise MisuseError(f"{len(fit_features)} probes to fit and {len(features)} to test are too few: give hundreds")
    if not all(np.ptp(c, axis=0).max() > 0 for c in (fit_concept, concept)):
        raise MisuseError(
            "the concept answers the same to every probe, so there is nothing to be read: was it trained?"
        )
