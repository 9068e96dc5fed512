"""Test of one suspect's DNA against the DNA of many candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import ClassVar

import numpy as np

from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.model_dna import (
    Population,
    ProvenanceClassifier,
    can_stand_in,
    channel_correlations,
    channels_of,
    check_comparable,
    dna_bytes,
    dna_verdict,
    sample_distance,
    scalars_of,
)
from stemma.kinship.function.multiple_testing import correct_statistics
from stemma.kinship.function.null_models import CLAIM, check_alpha, models_needed
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec


@dataclass(frozen=True)
class ClosestDnaOfMany:
    """Is a suspect's DNA closer to a candidate's than an independent model's is to its closest candidate?

    Null models take the suspect's place, so they have its number of classes and, where known, its architecture.
    Suspect and null models form the population that codes are standardised by. No model is run.

    Attributes:
        alpha: Significance level of the whole search.
        encoder: The DNA encoder, with the classifier that scores the codes.
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closest-dna-of-many"
    version: ClassVar[int] = 1

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
        stand_ins = [n for n in null if can_stand_in(n, suspect)]
        other_models = [n for n in null if not can_stand_in(n, suspect)]
        population_codes = np.stack([channels_of(d) for d in (suspect, *stand_ins, *other_models)])
        population, codes = Population.of(population_codes), population_codes[: 1 + len(stand_ins)]
        others = population(np.stack([channels_of(c) for c in candidates]))
        found = channel_correlations(population(codes), others)
        values = judge.log_odds(found)
        for i, n in enumerate(stand_ins, 1):  # a null model that is also a candidate has distance 0 to itself
            values[i, [c.model == n.model for c in candidates]] = values[0, [c.model == n.model for c in candidates]]
        result = correct_statistics(-values[0], -values[1:], self.alpha)
        out = []
        for j, c in enumerate(candidates):
            p = float(result.p_values[j]) if stand_ins else None
            verdict, reason = dna_verdict(p, len(stand_ins), len(stand_ins), self.alpha)
            chance = judge.probability(float(values[0, j]))
            details = {
                "channels": [round(float(x), 4) for x in found[0, j]], "probability": chance,
                "n_probes": codes.shape[1], "training_samples_apart": sample_distance(c, suspect),
                "answers": [scalars_of(c), scalars_of(suspect)],
                "corrected_for": len(candidates), "correction": result.method, "left_out": list(left_out),
                "null_models_missing": max(0, models_needed(self.alpha) - len(stand_ins)), "bytes": dna_bytes(c),
            }  # fmt: skip
            nulls = Null(source, len(stand_ins), result.smallest_p, tuple(sorted(float(v) for v in values[1:, j])))
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
