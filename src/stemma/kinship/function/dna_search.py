"""The DNA of one suspect against those of many candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import ClassVar

import numpy as np

from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.model_dna import (
    CLAIM,
    Population,
    ProvenanceClassifier,
    channels_of,
    decided,
    likeness,
    may_stand_in,
    same_question,
    sample_distance,
    scalars_of,
    size,
)
from stemma.kinship.function.multiple_testing import ranked
from stemma.kinship.function.null_models import check_level, needed
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec


@dataclass(frozen=True)
class ClosestDnaOfMany:
    """Is a suspect's DNA closer to a candidate's than a stranger's comes to the closest of all candidates?

    The null models play the suspect's part, so they answer among as many classes and are of its architecture where
    both are known. Suspect and null models make the population that everything is seen against. No model is asked.

    Attributes:
        alpha: Level of the whole search.
        encoder: With the classifier that the codes are judged by.
    """

    alpha: float = 0.01
    encoder: FragmentEncoder | None = None

    name: ClassVar[str] = "closest-dna-of-many"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_level(self.alpha)

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
            candidates: Of what it may come from.
            null: Of independent models.
            source: Where these come from.
            left_out: Models that could not stand among them, with the reason.

        Returns:
            For each candidate the evidence, with p-values that hold for all of them together.

        Raises:
            MisuseError: If the DNAs are of other probes or encoders.
        """
        same_question(suspect, (*candidates, *null))
        if not candidates:
            return []
        judge = ProvenanceClassifier((self.encoder or FragmentEncoder.untrained()).classifier)
        alike = [n for n in null if may_stand_in(n, suspect)]
        apart = [n for n in null if not may_stand_in(n, suspect)]
        everyone = np.stack([channels_of(d) for d in (suspect, *alike, *apart)])
        population, codes = Population.of(everyone), everyone[: 1 + len(alike)]
        others = population(np.stack([channels_of(c) for c in candidates]))
        found = likeness(population(codes), others)
        values = judge.kin(found)
        for i, n in enumerate(alike, 1):  # a null model that is a candidate too would find itself
            values[i, [c.model == n.model for c in candidates]] = values[0, [c.model == n.model for c in candidates]]
        result = ranked(-values[0], -values[1:], self.alpha)
        out = []
        for j, c in enumerate(candidates):
            p = float(result.p_values[j]) if alike else None
            verdict, reason = decided(p, len(alike), len(alike), self.alpha)
            chance = judge.probability(float(values[0, j]))
            details = {
                "channels": [round(float(x), 4) for x in found[0, j]], "probability": chance,
                "n_probes": codes.shape[1], "training_samples_apart": sample_distance(c, suspect),
                "answers": [scalars_of(c), scalars_of(suspect)],
                "corrected_for": len(candidates), "correction": result.method, "left_out": list(left_out),
                "null_models_missing": max(0, needed(self.alpha) - len(alike)), "bytes": size(c),
            }  # fmt: skip
            nulls = Null(source, len(alike), result.floor, tuple(sorted(float(v) for v in values[1:, j])))
            mean = float(np.mean(found[0, j]))
            effect = float(np.clip(mean, 0, 1))
            out.append(Evidence(CLAIM, Axis.FUNCTION, self.name, 1 - mean, nulls, p, None if p is None else log10(p),
                                effect, verdict, reason, self.spec, (c.model, suspect.model), details))  # fmt: skip
        return out
