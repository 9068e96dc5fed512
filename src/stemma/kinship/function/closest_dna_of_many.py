"""Test of one suspect's DNA against the DNA of many candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import ClassVar

import numpy as np

from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.dna_closeness import (
    ProvenanceClassifier,
    calibrated,
    partial_correlations,
    partial_to_others,
    standardised_closeness,
)
from stemma.kinship.function.model_dna import (
    MODELS,
    can_stand_in,
    channels_of,
    check_comparable,
    dna_bytes,
    dna_verdict,
    sample_distance,
    scalars_of,
    stand_ins_first,
)
from stemma.kinship.function.multiple_testing import correct_statistics
from stemma.kinship.function.null_models import CLAIM, check_alpha, models_needed
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec


@dataclass(frozen=True)
class ClosestDnaOfMany:
    """Is a suspect's DNA closer to a candidate's than an independent model's is to its closest candidate?

    Null models take the suspect's place, so they have its number of classes and, where known, its architecture.
    A code is compared with a candidate's in what the suspect and the null models do not explain, and every closeness
    is taken in units of what the same model shows towards the null models: all are treated alike. No model is run.

    Attributes:
        alpha: Significance level of the whole search.
        encoder: The DNA encoder, with the classifier that scores the codes.
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closest-dna-of-many"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and the encoder."""
        own = self.encoder or FragmentEncoder.untrained()
        return Spec(self.name, self.version, {"alpha": self.alpha, "encoder": own.full_digest})

    def __call__(
        self, suspect: Fingerprint, candidates: Sequence[Fingerprint], null: Sequence[Fingerprint],
        source: str = "models given", left_out: Sequence[str] = (),
    ) -> list[Evidence]:  # fmt: skip
        """Test a suspect against all candidates.

        Args:
            suspect: DNA of the model in question.
            candidates: DNA of its possible origins.
            null: DNA of independently trained models.
            source: Where the null models come from.
            left_out: Models that were excluded, with the reason.

        Returns:
            For each candidate the evidence, with p-values corrected for the whole search.

        Raises:
            MisuseError: If the DNAs are of other probes or encoders.
        """
        check_comparable(suspect, (*candidates, *null))
        if not candidates:
            return []
        judge = ProvenanceClassifier((self.encoder or FragmentEncoder.untrained()).classifier)
        null = stand_ins_first(null, suspect)
        stand_ins = [n for n in null if can_stand_in(n, suspect)]
        pool = [suspect, *stand_ins, *(n for n in null if not can_stand_in(n, suspect))]
        found, values = _standardised(pool, candidates, judge)
        found, values = found[: 1 + len(stand_ins)], values[: 1 + len(stand_ins)]
        for i, n in enumerate(stand_ins, 1):  # a null model that is also a candidate has distance 0 to itself
            same = [c.model == n.model for c in candidates]
            values[i, same] = values[0, same]
        result = correct_statistics(-values[0], -values[1:], self.alpha)
        m = len(stand_ins)
        out = []
        for j, c in enumerate(candidates):
            p = float(result.p_values[j]) if stand_ins else None
            tested = {"p": p, "size": m, "missing": max(0, models_needed(self.alpha) - m), "smallest p": 1 / (m + 1),
                      "compared with": MODELS}  # fmt: skip
            verdict, reason = dna_verdict(tested, self.alpha)
            odds, chance = calibrated(standardised_closeness(float(values[0, j]), values[1:, j].tolist()))
            details = {
                "channels": [round(float(x), 4) for x in found[0, j]], "probability": chance, "log_odds": odds,
                "smallest_p": result.smallest_p,
                "n_probes": len(c.values["code"]), "training_samples_apart": sample_distance(c, suspect),
                "answers": [scalars_of(c), scalars_of(suspect)],
                "corrected_for": len(candidates), "correction": result.method, "left_out": list(left_out),
                "null_models_missing": tested["missing"], "bytes": dna_bytes(c),
            }  # fmt: skip
            nulls = Null(source, m, result.smallest_p, tuple(sorted(float(v) for v in values[1:, j])))
            mean = float(np.mean(found[0, j]))
            effect = float(np.clip(mean, 0, 1))
            out.append(
                Evidence(
                    claim=CLAIM,
                    axis=Axis.FUNCTION,
                    statistic=self.name,
                    value=1 - mean,
                    null=nulls,
                    p_value=p,
                    log10_p=None if p is None else log10(p),
                    effect=effect,
                    verdict=verdict,
                    reason=reason,
                    spec=self.spec,
                    inputs=(c.model, suspect.model),
                    details=details,
                )
            )
        return out


def _standardised(
    pool: Sequence[Fingerprint], candidates: Sequence[Fingerprint], judge: ProvenanceClassifier
) -> tuple[np.ndarray, np.ndarray]:
    """Channels and scores of each model of the pool and each candidate, given the rest of the pool.

    Scores are in units of the spread of the same model's scores with the rest of the pool.

    Returns:
        Channels `[pool, candidates, channels]` and scores `[pool, candidates]`.
    """
    codes = np.stack([channels_of(d) for d in pool])
    inside = partial_correlations(codes)
    found = partial_to_others(codes, np.stack([channels_of(c) for c in candidates]))
    for j, c in enumerate(candidates):  # a candidate that is in the pool is compared without itself
        for i, n in enumerate(pool):
            if n.model == c.model and i:
                found[:, j] = inside[:, i]
    values, cohort = judge.log_odds(found), judge.log_odds(inside)
    n = len(pool)
    if n < 4:
        return found, values
    rows = np.stack([np.delete(cohort[i], i) for i in range(n)])
    return found, (values - rows.mean(1, keepdims=True)) / np.maximum(rows.std(1, ddof=1, keepdims=True), 1e-9)
