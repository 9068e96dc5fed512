"""Competition strength: how much of a unimodal concept cannot be decoded from the fused representation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.errors import MisuseError

NEGLIGIBLE = 1e-6
"""Directions of the concept with less variance than this fraction of the largest are left out."""

ACTIVE = 15
"""Fit probes at which a feature has to differ from its median, so that its scale can be estimated."""

FEWEST = 20
"""Fewest probes to fit or test with."""

PENALTIES = tuple(10.0**e for e in range(-4, 7))
"""Ridge penalties that are tried, of standardised features and summed squared errors."""


@dataclass(frozen=True)
class CompetitionStrength:
    """How strongly one modality is competed against in a fused network: 0 not at all.

    Attributes:
        whitened: Unexplained fraction of the concept's variance, every direction weighted equally. 0: all of the
            concept is linearly decodable from the fused features; 1: nothing but its mean; above 1 if the fit misleads.
        interval: 95 % of it, over test probes (over concepts where several were given); with few test probes per
            direction it lies lower than the figure, which whitening by the same probes makes too large.
        plain: The same with directions weighted by their variance: 1 - R^2.
        plain_interval: 95 % of it.
        penalty: Ridge penalty of the fit, the one with the smallest cross-validated error unless given.
        directions: Number of directions of the concept.
        features: Width of the fused representation.
        fitted: Probes that the decoder was fitted on.
        tested: Probes that it was tested on.
        concepts: Networks that the concept was averaged over.
        reason: Why the figure is unreliable, empty if it is not.
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
    cross-validated; K counts the directions that are kept, so that a decoder of nothing but the mean scores exactly 1.
    """

    penalty: float | None = None
    scaled: bool = True
    folds: int = 5
    draws: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.draws < 1 or not (self.penalty is None or 0 <= self.penalty < np.inf):
            raise MisuseError(
                f"folds has to be 2 or more, draws 1 or more and penalty 0 or more, but they are {self.folds}, "
                f"{self.draws} and {self.penalty}"
            )

    def __call__(
        self, fit_features: np.ndarray, fit_concept: np.ndarray, features: np.ndarray, concept: np.ndarray
    ) -> CompetitionStrength:
        """Competition strength from arrays.

        Args:
            fit_features: `[fitted, width]`, the fused representation on probes that the network was not trained on.
            fit_concept: `[fitted, outputs]`, the outputs of the modality's concept on the same.
            features: `[tested, width]`, on other probes.
            concept: `[tested, outputs]`.

        Returns:
            The strength with its intervals.

        Raises:
            MisuseError: If the arrays do not match, or the concept is constant.
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
        # The basic bootstrap: reflected quantiles remove the bias of the sample.
        high, low = 2 * np.array(figures) - np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
        low, high = low.clip(0), high.clip(0)
        few, rare = len(x) < 2 * x.shape[1], int((np.isinf(scale) & (fit_features.std(0) > 0)).sum())
        shaky = (
            f"{len(x)} probes to fit {x.shape[1]} features: too few for a stable fit" if few else "",
            f"{rare} features that differ from their median at fewer than {ACTIVE} fit probes are left out"
            * bool(rare),
        )
        return CompetitionStrength(
            whitened, (float(low[0]), float(high[0])), plain, (float(low[1]), float(high[1])), float(penalty),
            directions, features.shape[1], len(x), len(features),
            reason=_joined(*shaky),
        )  # fmt: skip

    def _chosen(self, x: np.ndarray, y: np.ndarray) -> float:
        """The penalty with the smallest cross-validated error, every direction of the concept weighted equally."""
        fold = np.random.default_rng(self.seed).permutation(len(x)) % min(self.folds, len(x))
        errors = np.zeros(len(PENALTIES))
        for k in range(fold.max() + 1):
            kept, out = x[fold != k], x[fold == k]
            mean, aim = kept.mean(0), y[fold != k].mean(0)
            for i, coefficients in enumerate(_ridges(kept - mean, y[fold != k] - aim, PENALTIES)):
                errors[i] += np.square((out - mean) @ coefficients + aim - y[fold == k]).sum()
        return PENALTIES[int(errors.argmin())]


def over_concepts(strengths: Sequence[CompetitionStrength]) -> CompetitionStrength:
    """The mean over independently trained concepts, with an interval over them."""
    # The interval (Student, 95 %) is over concepts where there are three or more; with fewer, it is the widest of
    # their own, and `reason` says so.
    if len(strengths) == 1:
        return replace(
            strengths[0], reason=_joined(strengths[0].reason, "one concept: variation over training seeds is unknown")
        )
    means = {}
    for name, own in (("whitened", "interval"), ("plain", "plain_interval")):
        values = np.array([getattr(f, name) for f in strengths])
        means[name] = float(values.mean())
        if len(strengths) < 3:
            means[own] = (min(getattr(f, own)[0] for f in strengths), max(getattr(f, own)[1] for f in strengths))
        else:
            from scipy.stats import t

            half = float(t.ppf(0.975, len(strengths) - 1) * values.std(ddof=1) / len(strengths) ** 0.5)
            means[own] = (means[name] - half, means[name] + half)
    few = "" if len(strengths) > 2 else "two concepts: an interval over training seeds needs three or more"
    return replace(strengths[0], **means, concepts=len(strengths), reason=_joined(strengths[0].reason, few))


def _joined(*reasons: str) -> str:
    return "; ".join(r for r in reasons if r)


def _unexplained(error: np.ndarray, concept: np.ndarray) -> tuple[float, float]:
    """Whitened and plain fraction of the concept's variance that an error leaves."""
    centred = concept - concept.mean(0)
    white = _whitener(centred)
    total = np.square(centred).sum()
    return float(np.square(error @ white).mean()), float(np.square(error).sum() / total)


def _whitener(centred: np.ndarray) -> np.ndarray:
    """Maps a centred concept to directions of unit variance; those with almost none are left out."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = variances > NEGLIGIBLE * variances[-1]
    return axes[:, kept] / np.sqrt(variances[kept])


def _standardised(features: np.ndarray, scaled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, scale = features.mean(0), features.std(0)
    active = (features != np.median(features, axis=0)).sum(0) >= ACTIVE
    known = active & (scale > 1e-9 * max(float(scale.max()), 1e-30))
    scale = np.where(known, scale, np.inf) if scaled else np.ones_like(scale)  # constant features carry no information
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
            "competition strength needs features [n, width] and a concept [n, outputs] of the same probes, to fit and "
            f"to test, but the shapes are {', '.join(str(list(a.shape)) for a in arrays)}"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise MisuseError("features and concept contain NaN or infinite values: check the networks and the probes")
    if min(len(features), len(fit_features)) < FEWEST:
        raise MisuseError(f"{len(fit_features)} probes to fit and {len(features)} to test are too few: give hundreds")
    if not all(np.ptp(c, axis=0).max() > 0 for c in (fit_concept, concept)):
        raise MisuseError("the concept has the same output for every probe, so nothing can be decoded: is it trained?")
