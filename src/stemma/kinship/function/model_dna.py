"""Test of a pair by model DNA: codes compared with codes of independent models, without running any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, log10
from typing import Any, ClassVar

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.dna import SCALARS, is_valid, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import embedding_distance
from stemma.kinship.function.dna_closeness import (
    ProvenanceClassifier,
    calibrated,
    pair_p_value,
    pairs_needed,
    partial_correlations,
    standardised_closeness,
)
from stemma.kinship.function.dna_population import Population, unit
from stemma.kinship.function.null_models import (
    CLAIM,
    NullModels,
    check_alpha,
    conformal_p_value,
    models_needed,
    too_few_sentence,
)
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict

MAX_CONTROLS = 1000
"""Most control models that are used: the cost grows with the cube of their number."""

MODELS, PAIRS = "control models", "pairs of models"
"""What a closeness is ranked among."""


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
        return cls(against, projection, unit(vectors))

    def nearest(self, code: np.ndarray, count: int) -> np.ndarray:
        """Positions of the `count` models whose codes are nearest to a code `[probes, channels]`, nearest first."""
        query = unit(self.population(code).reshape(1, -1).astype(np.float32) @ self.projection)[0]
        found = self.vectors @ query
        most = min(count, len(found))
        best = np.argpartition(-found, most - 1)[:most]
        return best[np.argsort(-found[best], kind="stable")]


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

    The first model is the supposed source. If the second was made without it, the source is one more model that is
    independent of the second, like the control models that were made as the source was. So its closeness to the
    second is ranked among theirs, whatever the second was trained on. All m + 1 are treated alike, so the p-value is
    exact. Closeness is what the codes share beyond what all the other models explain.

    Where so few control models cannot reach `alpha`, and they can stand in for both models, the pair is ranked among
    all pairs: exact if the second model, too, is like the control models. Which test decides depends on `alpha` and
    the number of control models, never on a result. Controls that cannot stand in for the source (other outputs or
    architecture) may stand in for the second model; without any nothing is concluded. No model is run.

    Attributes:
        alpha: Significance level.
        encoder: The DNA encoder, with the classifier that scores the codes if one was learned.

    Source: Vovk et al. 2005 for ranks; the scores of one query standardised by its scores against a cohort are those
    of speaker verification (Auckenthaler et al. 2000).
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closer-dna-than-independent"
    version: ClassVar[int] = 2

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
            a: DNA of the supposed source.
            b: DNA of the suspect.
            null: DNA of independently trained models.
            source: Where the null models come from.
            left_out: Models that were excluded, with the reason.

        Returns:
            `SUPPORTED` where p <= alpha, else `INCONCLUSIVE`.

        Raises:
            MisuseError: If the DNAs are of other probes or encoders.
        """
        check_comparable(a, (b, *null))
        found = _rank_test(a, b, null, ProvenanceClassifier(self._encoder.classifier), self.alpha)
        p = found["p"]
        verdict, reason = dna_verdict(found, self.alpha)
        odds, chance = calibrated(standardised_closeness(found["value"], found["null"]))
        nulls = NullModels(source, (), tuple(left_out))
        details: dict[str, Any] = {
            "channels": [round(float(c), 4) for c in found["correlations"]], "probability": chance, "log_odds": odds,
            "score": found["value"], "compared_with": found["compared with"], "smallest_p": found["smallest p"],
            "n_probes": len(a.values["code"]),
            "training_samples_apart": sample_distance(a, b), "answers": [scalars_of(a), scalars_of(b)],
            "left_out": list(nulls.left_out), "null_models_missing": found["missing"], "bytes": dna_bytes(a),
        }  # fmt: skip
        kept = Null(source, found["size"], found["smallest p"], tuple(sorted(found["null"])))
        mean = float(np.mean(found["correlations"]))
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


def dna_verdict(found: Mapping[str, Any], alpha: float) -> tuple[Verdict, str]:
    """Verdict and reason, with the smallest p-value that these control models allow."""
    p, m, lacking, floor = found["p"], found["size"], found["missing"], found["smallest p"]
    if p is None:
        return Verdict.INCONCLUSIVE, f"no control model to compare the DNA with: {lacking} are needed"
    if lacking > 0:
        return Verdict.INCONCLUSIVE, f"by DNA: {too_few_sentence(m, floor, lacking, alpha)}"
    places = round(p / floor) - 1
    what = f"of {comb(m + 2, 2) - 1} other pairs" if found["compared with"] == PAIRS else f"of {m} control models"
    near = f"by DNA {places or 'none'} {what} {'is' if not places else 'are'} as close"
    near += f" (p {p:.3g}, the smallest attainable is {floor:.3g})"
    if p > alpha:
        return Verdict.INCONCLUSIVE, f"{near}; this does not prove independence"
    return Verdict.SUPPORTED, near


def _rank_test(
    a: Fingerprint, b: Fingerprint, null: Sequence[Fingerprint], judge: ProvenanceClassifier, alpha: float
) -> dict[str, Any]:
    """Rank of a source among the null models that can stand in for it, as seen from b, or of the pair among pairs."""
    null = stand_ins_first(null, a, b)
    for_a, for_b = (np.array([i for i, n in enumerate(null, 2) if can_stand_in(n, x)], int) for x in (a, b))
    channels = partial_correlations(np.stack([channels_of(d) for d in (a, b, *null)]))
    values = judge.log_odds(channels)
    reference, asked, chosen = (1, 0, for_a) if len(for_a) else (0, 1, for_b)
    m = len(chosen)
    out = {"value": float(values[0, 1]), "null": values[reference, chosen].tolist(), "size": m,
           "correlations": channels[0, 1].tolist(), "compared with": MODELS, "smallest p": 1 / (m + 1),
           "missing": max(0, models_needed(alpha) - m)}  # fmt: skip
    both = np.intersect1d(for_a, for_b) if can_stand_in(b, a) else for_a[:0]
    if not m:
        return {**out, "p": None}
    if out["missing"] and len(both):
        every = np.array([0, 1, *both])
        p = pair_p_value(values[np.ix_(every, every)])
        return {**out, "p": p, "size": len(both), "null": values[1, both].tolist(), "compared with": PAIRS,
                "smallest p": 1 / comb(len(every), 2), "missing": max(0, pairs_needed(alpha) - len(both))}  # fmt: skip
    p = conformal_p_value(-float(values[reference, asked]), (-values[reference, chosen]).tolist())
    return {**out, "p": p}


def stand_ins_first(null: Sequence[Fingerprint], *models: Fingerprint) -> list[Fingerprint]:
    """At most `MAX_CONTROLS` null models, those first that can stand in for one of the models."""
    return sorted(null, key=lambda n: not any(can_stand_in(n, m) for m in models))[:MAX_CONTROLS]


def can_stand_in(null: Fingerprint, other: Fingerprint) -> bool:
    """Whether a null model has the same number of classes, form of answers and (where known) architecture."""
    one, two = (np.asarray(d.values["head"]) for d in (null, other))
    form, wanted = (np.asarray(d.values["architecture"]) for d in (null, other))
    unknown = not len(form) or not len(wanted)
    return np.array_equal(one, two) and (unknown or np.array_equal(form, wanted))


def dna_bytes(dna: Fingerprint) -> int:
    """Size of a DNA in bytes."""
    return sum(np.asarray(v).nbytes for v in dna.values.values())
