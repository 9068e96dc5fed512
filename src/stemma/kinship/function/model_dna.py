"""Test of a pair by model DNA: codes compared with codes of independent models, without running any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any, ClassVar

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.dna import SCALARS, is_valid, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import embedding_distance
from stemma.kinship.function.null_models import (
    CLAIM,
    NullModels,
    check_alpha,
    conformal_p_value,
    models_needed,
    too_few_sentence,
)
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict

SHRINK = 0.1
"""Added to the spread of a population, in units of its median: with few models a probe's spread may be too small."""

MAX_DIRECTIONS = 6
"""Most main directions of a population that are removed: they reflect the task rather than provenance."""

MODELS_PER_DIRECTION = 8
"""Models of the population needed per such direction."""


@dataclass(frozen=True, eq=False)
class Population:
    """What independent models have in common at each probe.

    Attributes:
        mean: `[probes, channels]`.
        spread: Standard deviation with shrinkage, `[probes, channels]`.
        directions: `[channels, directions, probes]`, orthonormal, in which these models differ most.
    """

    mean: np.ndarray
    spread: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> "Population":
        """The population of some codes; the more tasks it covers, the better it removes the effect of the task.

        Args:
            codes: `[models, probes, channels]`.

        Returns:
            Mean, spread and main directions; for a single model zeros and ones.
        """
        none = np.zeros((codes.shape[2], 0, codes.shape[1]))
        if len(codes) < 2:
            return cls(np.zeros(codes.shape[1:]), np.ones(codes.shape[1:]), none)
        spread = codes.std(0)
        plain = cls(codes.mean(0), spread + SHRINK * max(float(np.median(spread)), 1e-6), none)
        count = min(MAX_DIRECTIONS, len(codes) // MODELS_PER_DIRECTION)
        if not count:
            return plain
        seen = np.moveaxis(plain(codes), -1, 0)
        seen = seen - seen.mean(1, keepdims=True)
        return replace(plain, directions=np.linalg.svd(seen, full_matrices=False)[2][:, :count])

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[…, probes, channels]` as deviations from the population, centred, of norm 1 per channel."""
        found = (codes - self.mean) / self.spread
        found = _unit(found - found.mean(-2, keepdims=True), -2)
        if not self.directions.shape[1]:
            return found
        along = np.einsum("...pc,ckp->...ck", found, self.directions)
        return _unit(found - np.einsum("...ck,ckp->...pc", along, self.directions), -2)


def channel_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation over probes of codes `[n, probes, channels]` and `[m, …]`, per channel `[n, m, channels]`."""
    return np.einsum("apc,bpc->abc", a, b)


@dataclass(frozen=True, eq=False)
class DnaIndex:
    """Approximate nearest-neighbour index of codes: each is projected to a short vector.

    Attributes:
        population: The population that codes are standardised by.
        projection: `float32 [probes * channels, width]`.
        vectors: `float32 [models, width]`, each of norm 1.

    Source: random projections, Johnson and Lindenstrauss 1984; the nearest are candidates to test, not an answer.
    """

    population: Population
    projection: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(
        cls, codes: np.ndarray, population: Population | None = None, channel_weights: np.ndarray | None = None,
        width: int = 128, seed: int = 0,
    ) -> "DnaIndex":  # fmt: skip
        """Index codes.

        Cost: one pass over the codes; a random projection, so nothing is fitted.

        Args:
            codes: Channels `[models, probes, channels]`.
            population: Standardises them; the codes themselves unless given.
            channel_weights: How much each channel counts, see `ProvenanceClassifier`; equal unless given.
            width: Numbers per model.
            seed: Of the projection.

        Returns:
            The index.
        """
        against = population or Population.of(codes)
        size = codes.shape[1] * codes.shape[2]
        drawn = np.random.default_rng([seed, 67]).standard_normal((size, width)).astype(np.float32)
        count = np.ones(codes.shape[2]) if channel_weights is None else np.sqrt(channel_weights)
        projection = drawn / np.sqrt(width) * np.tile(count, codes.shape[1])[:, None].astype(np.float32)
        vectors = np.concatenate([
            against(codes[i : i + 512]).reshape(-1, size).astype(np.float32) @ projection
            for i in range(0, len(codes), 512)
        ])  # fmt: skip
        return cls(against, projection, _unit(vectors))

    def nearest(self, code: np.ndarray, count: int) -> np.ndarray:
        """Positions of the `count` models whose codes are nearest to a code `[probes, channels]`, nearest first."""
        query = _unit(self.population(code).reshape(1, -1).astype(np.float32) @ self.projection)[0]
        found = self.vectors @ query
        most = min(count, len(found))
        best = np.argpartition(-found, most - 1)[:most]
        return best[np.argsort(-found[best], kind="stable")]


def _unit(vectors: np.ndarray, axis: int = 1) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-9)


@dataclass(frozen=True, eq=False)
class ProvenanceClassifier:
    """Log-odds of shared provenance from correlations of DNA channels."""

    arrays: Mapping[str, np.ndarray]

    def log_odds(self, correlations: np.ndarray) -> np.ndarray:
        """Log-odds `[…]` of correlations `[…, channels]` at even priors; without weights, the mean."""
        if "kin.inner" not in self.arrays:
            return correlations.mean(-1)
        w = self.arrays
        hidden = np.tanh(correlations @ w["kin.inner"] + w["kin.bias"])
        return hidden @ w["kin.outer"] + correlations @ w["kin.linear"] + w["kin.offset"][0]

    def channel_weights(self, channels: int) -> np.ndarray:
        """How much each channel contributes to the log-odds, `[channels]`, of mean 1."""
        alone = self.log_odds(0.3 * np.eye(channels)) - self.log_odds(np.zeros(channels))
        kept = np.maximum(alone, 0.05 * max(float(alone.max()), 1e-9))
        return kept / kept.mean()

    def probability(self, log_odds: float) -> float | None:
        """The probability of given log-odds; None where nothing was learnt."""
        return float(1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))) if "kin.inner" in self.arrays else None


def channels_of(dna: Fingerprint) -> np.ndarray:
    """Channels of a DNA, `float64 [probes, channels]`."""
    return unpack(np.asarray(dna.values["code"])).astype(np.float64)


def scalars_of(dna: Fingerprint) -> dict[str, float]:
    """Summary numbers of a model's answers by name, see `stemma.fingerprints.dna.SCALARS`."""
    named = zip(SCALARS, np.asarray(dna.values["scalars"], float).tolist(), strict=True)
    sampled = len(dna.values["sample"]) > 0
    return {name: round(value, 4) for name, value in named if sampled or not name.endswith("own sample")}


def sample_distance(a: Fingerprint, b: Fingerprint) -> float | None:
    """Distance between the mean embeddings of two models' training samples; None where one has no sample."""
    one, two = np.asarray(a.values["sample"]), np.asarray(b.values["sample"])
    return embedding_distance(one, two) if len(one) and len(two) else None


@dataclass(frozen=True)
class CloserDnaThanIndependent:
    """Conformal test of shared provenance by DNA: a rank among independently trained models.

    If b was made without a, it is one more independent model. So b and the null models form one population, codes are
    standardised by it, and b's closeness to a is ranked among the null models'. All m + 1 are treated alike, so the
    p-value is exact; exchanging a and b gives another, and the larger is reported. Null models that cannot stand in
    for b (other outputs or architectures) still belong to the population. Cost: microseconds per null model; no model
    is run.

    Attributes:
        alpha: Significance level.
        encoder: The DNA encoder, with the classifier that scores the codes.
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closer-dna-than-independent"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and the encoder."""
        return Spec(self.name, self.version, {"alpha": self.alpha, "encoder": self._encoder.full_digest})

    @property
    def _encoder(self) -> FragmentEncoder:
        return self.encoder or FragmentEncoder.untrained()

    def __call__(
        self, a: Fingerprint, b: Fingerprint, null: Sequence[Fingerprint], source: str = "models given",
        left_out: Sequence[str] = (),
    ) -> Evidence:  # fmt: skip
        """Test a pair.

        Args:
            a: DNA of the first model.
            b: DNA of the second model.
            null: DNA of independently trained models.
            source: Where the null models come from.
            left_out: Models that were excluded, with the reason.

        Returns:
            `SUPPORTED` where p <= alpha, else `INCONCLUSIVE`.

        Raises:
            MisuseError: If the DNAs are of other probes or encoders.
        """
        check_comparable(a, (b, *null))
        judge = ProvenanceClassifier(self._encoder.classifier)
        views = [_rank_test(x, y, null, judge) for x, y in ((a, b), (b, a))]
        tested = [v for v in views if v["size"]]
        deciding = max(tested, key=lambda v: v["p"]) if tested else views[0]
        least = min((v["size"] for v in tested), default=0)
        p = deciding["p"] if tested else None
        verdict, reason = dna_verdict(p, deciding["size"], least, self.alpha)
        chance = judge.probability(deciding["value"])
        nulls = NullModels(source, (), tuple(left_out))
        details: dict[str, Any] = {
            "channels": [round(float(c), 4) for c in deciding["correlations"]], "probability": chance,
            "log_odds": deciding["value"] if chance is not None else None, "n_probes": len(a.values["code"]),
            "training_samples_apart": sample_distance(a, b), "answers": [scalars_of(a), scalars_of(b)],
            "left_out": list(nulls.left_out),
            "null_models_missing": max(0, models_needed(self.alpha) - least), "bytes": dna_bytes(a),
        }  # fmt: skip
        kept = Null(source, deciding["size"], 1 / (deciding["size"] + 1), tuple(sorted(deciding["null"])))
        mean = float(np.mean(deciding["correlations"]))
        effect = float(np.clip(mean, 0, 1))
        return Evidence(
            claim=CLAIM,
            axis=Axis.FUNCTION,
            statistic=self.name,
            value=1 - mean,
            null=kept,
            p_value=p,
            log10_p=None if p is None else log10(p),
            effect=effect,
            verdict=verdict,
            reason=reason,
            spec=self.spec,
            inputs=(a.model, b.model),
            details=details,
        )


def check_comparable(a: Fingerprint, others: Sequence[Fingerprint]) -> None:
    """Raise `MisuseError` if DNAs are damaged, or of other probes or encoders."""
    for other in others:
        if (other.probes, other.spec.digest) != (a.probes, a.spec.digest):
            raise MisuseError("these DNAs are of different probes or encoders: compute them again with the same ones")
    if not all(is_valid(d) for d in (a, *others)):
        raise MisuseError("one of the DNAs is damaged: compute it again")


def dna_verdict(p: float | None, m: int, least: int, alpha: float) -> tuple[Verdict, str]:
    """Verdict and reason for a p-value from m null models; `least` is the smaller number of both rank tests."""
    lacking = models_needed(alpha) - least
    if p is None:
        return Verdict.INCONCLUSIVE, f"no control model to compare the DNA with: {lacking} are needed"
    if lacking > 0:
        return Verdict.INCONCLUSIVE, f"by DNA: {too_few_sentence(least, 1 / (least + 1), lacking, alpha)}"
    near = f"by DNA {round(p * (m + 1)) - 1 or 'none'} of {m} control models"
    if p > alpha:
        return Verdict.INCONCLUSIVE, f"{near} are as close; this does not prove independence"
    return Verdict.SUPPORTED, f"{near} is as close"


def _rank_test(
    reference: Fingerprint, other: Fingerprint, null: Sequence[Fingerprint], judge: ProvenanceClassifier
) -> dict[str, Any]:
    """Rank of `other` among the null models that can stand in for it, by DNA, as seen from `reference`."""
    stand_ins = [n for n in null if can_stand_in(n, other)]
    others = [n for n in null if not can_stand_in(n, other)]
    codes = np.stack([channels_of(d) for d in (other, *stand_ins, *others)])
    population = Population.of(codes)
    found = channel_correlations(population(channels_of(reference))[None], population(codes[: 1 + len(stand_ins)]))[0]
    values = [float(v) for v in judge.log_odds(found)]
    p = conformal_p_value(-values[0], [-v for v in values[1:]])
    return {"p": p, "size": len(stand_ins), "value": values[0], "null": values[1:], "correlations": found[0].tolist()}


def can_stand_in(null: Fingerprint, other: Fingerprint) -> bool:
    """Whether a null model has the same number of classes, form of answers and (where known) architecture."""
    one, two = (np.asarray(d.values["head"]) for d in (null, other))
    form, wanted = (np.asarray(d.values["architecture"]) for d in (null, other))
    unknown = not len(form) or not len(wanted)
    return np.array_equal(one, two) and (unknown or np.array_equal(form, wanted))


def dna_bytes(dna: Fingerprint) -> int:
    """Size of a DNA in bytes."""
    return sum(np.asarray(v).nbytes for v in dna.values.values())
