"""Does one model's DNA come from another's? Codes against codes of independent models, without the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any, ClassVar

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.dna import SCALARS, is_valid, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import embedding_distance
from stemma.kinship.function.null_models import NullModels, check_level, conformal, floor_sentence, needed
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict

CLAIM = "the function of the one comes from the other"

SHRINK = 0.1
"""Added to the spread of a population, in units of its median, so that few models do not make a probe look telling."""

DIRECTIONS = 6
"""Main directions of a population that are taken out: by what task it does a model differs from others, too."""

PER_DIRECTION = 8
"""Models of the population that each such direction takes."""


@dataclass(frozen=True, eq=False)
class Population:
    """What models that are not in question have in common at each probe.

    Attributes:
        mean: `[probes, channels]`.
        spread: Likewise.
        directions: `[channels, directions, probes]`, orthonormal, in which these models differ most.
    """

    mean: np.ndarray
    spread: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> "Population":
        """The population of some channels; the more tasks it is of, the better it hides what a task explains.

        Args:
            codes: `[models, probes, channels]`.

        Returns:
            Mean, spread and main directions; of a single model nothing but zeros and ones.
        """
        none = np.zeros((codes.shape[2], 0, codes.shape[1]))
        if len(codes) < 2:
            return cls(np.zeros(codes.shape[1:]), np.ones(codes.shape[1:]), none)
        spread = codes.std(0)
        plain = cls(codes.mean(0), spread + SHRINK * max(float(np.median(spread)), 1e-6), none)
        count = min(DIRECTIONS, len(codes) // PER_DIRECTION)
        if not count:
            return plain
        seen = np.moveaxis(plain(codes), -1, 0)
        seen = seen - seen.mean(1, keepdims=True)
        return replace(plain, directions=np.linalg.svd(seen, full_matrices=False)[2][:, :count])

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes as deviations from the population.

        Args:
            codes: `[…, probes, channels]`.

        Returns:
            The same shape, each channel centred over probes and of norm 1.
        """
        found = (codes - self.mean) / self.spread
        found = _unit(found - found.mean(-2, keepdims=True), -2)
        if not self.directions.shape[1]:
            return found
        along = np.einsum("...pc,ckp->...ck", found, self.directions)
        return _unit(found - np.einsum("...ck,ckp->...pc", along, self.directions), -2)


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation over probes, channel by channel.

    Args:
        a: `[n, probes, channels]`, as a population shows them.
        b: `[m, probes, channels]`.

    Returns:
        `[n, m, channels]`.
    """
    return np.einsum("apc,bpc->abc", a, b)


@dataclass(frozen=True, eq=False)
class DnaIndex:
    """Many codes to search among: each is projected to a short vector, and those nearest to a query are listed.

    Attributes:
        population: What all are seen as deviations from.
        projection: `float32 [probes * channels, width]`.
        vectors: `float32 [models, width]`, each of norm 1.

    Source: random projections, Johnson and Lindenstrauss 1984; the nearest are a short list to test, not an answer.
    """

    population: Population
    projection: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(
        cls, codes: np.ndarray, population: Population | None = None, shares: np.ndarray | None = None,
        width: int = 128, seed: int = 0,
    ) -> "DnaIndex":  # fmt: skip
        """Index codes.

        Cost: one pass over the codes; a random projection, so nothing is fitted.

        Args:
            codes: Channels `[models, probes, channels]`.
            population: What they are seen against; the codes themselves unless given.
            shares: How much each channel counts, see `ProvenanceClassifier.shares`; alike unless given.
            width: Numbers per model.
            seed: Of the projection.

        Returns:
            The index.
        """
        against = population or Population.of(codes)
        size = codes.shape[1] * codes.shape[2]
        drawn = np.random.default_rng([seed, 67]).standard_normal((size, width)).astype(np.float32)
        count = np.ones(codes.shape[2]) if shares is None else np.sqrt(shares)
        projection = drawn / np.sqrt(width) * np.tile(count, codes.shape[1])[:, None].astype(np.float32)
        vectors = np.concatenate([
            against(codes[i : i + 512]).reshape(-1, size).astype(np.float32) @ projection
            for i in range(0, len(codes), 512)
        ])  # fmt: skip
        return cls(against, projection, _unit(vectors))

    def nearest(self, code: np.ndarray, count: int) -> np.ndarray:
        """The models whose codes lie nearest to one.

        Args:
            code: Channels `[probes, channels]`.
            count: How many.

        Returns:
            Their positions, nearest first.
        """
        query = _unit(self.population(code).reshape(1, -1).astype(np.float32) @ self.projection)[0]
        found = self.vectors @ query
        most = min(count, len(found))
        best = np.argpartition(-found, most - 1)[:most]
        return best[np.argsort(-found[best], kind="stable")]


def _unit(vectors: np.ndarray, axis: int = 1) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=axis, keepdims=True), 1e-9)


@dataclass(frozen=True, eq=False)
class ProvenanceClassifier:
    """From correlations to the log-odds of kinship.

    Attributes:
        arrays: Weights by name; without any, the mean correlation takes the place of the log-odds.
    """

    arrays: Mapping[str, np.ndarray]

    def kin(self, correlations: np.ndarray) -> np.ndarray:
        """How much speaks for kinship.

        Args:
            correlations: `[…, channels]`.

        Returns:
            Log-odds `[…]`, for as many kin as strangers; a mean correlation where nothing was learnt.
        """
        if "kin.inner" not in self.arrays:
            return correlations.mean(-1)
        w = self.arrays
        hidden = np.tanh(correlations @ w["kin.inner"] + w["kin.bias"])
        return hidden @ w["kin.outer"] + correlations @ w["kin.linear"] + w["kin.offset"][0]

    def shares(self, channels: int) -> np.ndarray:
        """How much each channel speaks for kinship by itself.

        Args:
            channels: Of a code.

        Returns:
            `[channels]`, not negative, of mean 1.
        """
        alone = self.kin(0.3 * np.eye(channels)) - self.kin(np.zeros(channels))
        kept = np.maximum(alone, 0.05 * max(float(alone.max()), 1e-9))
        return kept / kept.mean()

    def probability(self, kin: float) -> float | None:
        """The log-odds as a probability.

        Returns:
            For as many kin as strangers; None where nothing was learnt.
        """
        return float(1 / (1 + np.exp(-np.clip(kin, -30, 30)))) if "kin.inner" in self.arrays else None


def channels_of(dna: Fingerprint) -> np.ndarray:
    """The channels in a DNA.

    Returns:
        `float64 [probes, channels]`.
    """
    return unpack(np.asarray(dna.values["code"])).astype(np.float64)


def scalars_of(dna: Fingerprint) -> dict[str, float]:
    """What a DNA says of a model's answers as a whole, for people.

    Returns:
        Numbers by name, see `stemma.fingerprints.dna.SCALARS`; those of the own sample only where there is one.
    """
    named = zip(SCALARS, np.asarray(dna.values["scalars"], float).tolist(), strict=True)
    sampled = len(dna.values["sample"]) > 0
    return {name: round(value, 4) for name, value in named if sampled or not name.endswith("own sample")}


def sample_distance(a: Fingerprint, b: Fingerprint) -> float | None:
    """How far apart the training samples of two models are.

    Returns:
        The distance of their mean embeddings; None where one has no sample.
    """
    one, two = np.asarray(a.values["sample"]), np.asarray(b.values["sample"])
    return embedding_distance(one, two) if len(one) and len(two) else None


@dataclass(frozen=True)
class CloserDnaThanIndependent:
    """The conformal test of kinship by DNA: a rank among models that were trained apart.

    If b was made without a, it is one more independent model. So b and the null models make one population, everything
    is seen as deviation from it, and how near b comes to a is ranked among how near they come. All m + 1 are treated
    alike, so the p-value is exact; the other view, in which a stands among them, gives another, and the larger is
    reported. Null models that cannot stand in for b, of other heads or architectures, are part of the population all
    the same. Cost: microseconds per null model; no model is asked.

    Attributes:
        alpha: Level of the decision.
        encoder: With the classifier that the codes are judged by.
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closer-dna-than-independent"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_level(self.alpha)

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
            a: DNA of the one.
            b: Of the other.
            null: Of independent models.
            source: Where these come from.
            left_out: Models that could not stand among them, with the reason.

        Returns:
            `SUPPORTED` where p <= alpha, else `INCONCLUSIVE`.

        Raises:
            MisuseError: If the DNAs are of other probes or encoders.
        """
        same_question(a, (b, *null))
        judge = ProvenanceClassifier(self._encoder.classifier)
        views = [_view(x, y, null, judge) for x, y in ((a, b), (b, a))]
        tested = [v for v in views if v["size"]]
        deciding = max(tested, key=lambda v: v["p"]) if tested else views[0]
        least = min((v["size"] for v in tested), default=0)
        p = deciding["p"] if tested else None
        verdict, reason = decided(p, deciding["size"], least, self.alpha)
        chance = judge.probability(deciding["value"])
        nulls = NullModels(source, (), tuple(left_out))
        details: dict[str, Any] = {
            "channels": [round(float(c), 4) for c in deciding["correlations"]], "probability": chance,
            "log_odds": deciding["value"] if chance is not None else None, "n_probes": len(a.values["code"]),
            "training_samples_apart": sample_distance(a, b), "answers": [scalars_of(a), scalars_of(b)],
            "left_out": list(nulls.left_out),
            "null_models_missing": max(0, needed(self.alpha) - least), "bytes": size(a),
        }  # fmt: skip
        kept = Null(source, deciding["size"], 1 / (deciding["size"] + 1), tuple(sorted(deciding["null"])))
        mean = float(np.mean(deciding["correlations"]))
        effect = float(np.clip(mean, 0, 1))
        return Evidence(CLAIM, Axis.FUNCTION, self.name, 1 - mean, kept, p, None if p is None else log10(p), effect,
                        verdict, reason, self.spec, (a.model, b.model), details)  # fmt: skip


def same_question(a: Fingerprint, others: Sequence[Fingerprint]) -> None:
    """Refuse DNAs that say nothing of one another.

    Args:
        a: A DNA.
        others: What it is compared with.

    Raises:
        MisuseError: If one is of other probes or of another encoder.
    """
    for other in others:
        if (other.probes, other.spec.digest) != (a.probes, a.spec.digest):
            raise MisuseError("DNAs can be compared if the same probes and encoder made them: make them again")
    if not all(is_valid(d) for d in (a, *others)):
        raise MisuseError("one of the DNAs is damaged: make it again")


def decided(p: float | None, m: int, least: int, alpha: float) -> tuple[Verdict, str]:
    """What a p-value comes to.

    Args:
        p: The p-value, None without null models.
        m: Null models of the view that decides.
        least: Null models of the view that has fewest.
        alpha: Level of the decision.

    Returns:
        Verdict and reason.
    """
    lacking = needed(alpha) - least
    if p is None:
        return Verdict.INCONCLUSIVE, f"no independent model to compare the DNA with: {lacking} are needed"
    if lacking > 0:
        return Verdict.INCONCLUSIVE, f"by DNA: {floor_sentence(least, 1 / (least + 1), lacking, alpha)}"
    near = f"by DNA {round(p * (m + 1)) - 1 or 'none'} of {m} independent models"
    if p > alpha:
        return Verdict.INCONCLUSIVE, f"{near} come as near, which does not show independence either"
    return Verdict.SUPPORTED, f"{near} comes as near"


def _view(
    seen_from: Fingerprint, other: Fingerprint, null: Sequence[Fingerprint], judge: ProvenanceClassifier
) -> dict[str, Any]:
    """How near the other comes, and how near the null models do that could stand in for it."""
    alike = [n for n in null if may_stand_in(n, other)]
    others = [n for n in null if not may_stand_in(n, other)]
    codes = np.stack([channels_of(d) for d in (other, *alike, *others)])
    population = Population.of(codes)
    found = likeness(population(channels_of(seen_from))[None], population(codes[: 1 + len(alike)]))[0]
    values = [float(v) for v in judge.kin(found)]
    p = conformal(-values[0], [-v for v in values[1:]])
    return {"p": p, "size": len(alike), "value": values[0], "null": values[1:], "correlations": found[0].tolist()}


def may_stand_in(null: Fingerprint, other: Fingerprint) -> bool:
    """Whether a null model answers alike: as many classes, the same form, the same architecture where both are known.

    Forms are logits, probabilities, rounded ones, and labels.

    Args:
        null: DNA of the null model.
        other: Of the model whose part it is to play.

    Returns:
        The answer.
    """
    one, two = (np.asarray(d.values["head"]) for d in (null, other))
    form, wanted = (np.asarray(d.values["architecture"]) for d in (null, other))
    unknown = not len(form) or not len(wanted)
    return np.array_equal(one, two) and (unknown or np.array_equal(form, wanted))


def size(dna: Fingerprint) -> int:
    """Bytes of a DNA.

    Returns:
        Of all its arrays.
    """
    return sum(np.asarray(v).nbytes for v in dna.values.values())
