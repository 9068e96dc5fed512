"""Which of two related models came first, asked of their answers alone: each is put to the other's training inputs.

A child has seen what its parent learnt, long ago; a parent has never seen what its child learnt. So a child is surer of
itself on its parent's inputs than the parent is on the child's.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.canonical_outputs import log_probabilities
from stemma.fingerprints.questioning import answers
from stemma.models.model import Model
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict

CLAIM = "the first model came before the second"

FEWEST = 32
"""Inputs of each sample below which nothing is said."""


@dataclass(frozen=True)
class CrossEvaluation:
    """Two related models, each asked about a sample of its own training inputs and one of the other's.

    It says nothing about whether they are related, and it needs both samples to be true. Cost: four forward passes per
    input.

    Each model's doubt (mean entropy of its answers) about the other's inputs is taken beyond its doubt about its own,
    so that one that was merely trained for longer is not taken for the older one.

    Attributes:
        certain: Difference of doubts from which an order is given.
        rows: Most inputs of each sample that are used.

    Source: forgetting and specialisation as signs of order, this project's form of them.
    """

    certain: float = 0.2
    rows: int = 256

    name: ClassVar[str] = "cross-evaluation"
    version: ClassVar[int] = 1

    @property
    def spec(self) -> Spec:
        """Identity of the test with its parameters."""
        return Spec(self.name, self.version, {"certain": self.certain, "rows": self.rows})

    def __call__(self, a: Model, b: Model, sample_a: Probes, sample_b: Probes) -> Evidence:
        """Ask which came first.

        Args:
            a: The one model.
            b: The other.
            sample_a: Inputs that a was trained on.
            sample_b: Inputs that b was trained on.

        Returns:
            `SUPPORTED` where a came first, `REFUTED` where b did, else `INCONCLUSIVE`.

        Raises:
            MisuseError: If a sample is too small.
        """
        for sample, of in ((sample_a, a), (sample_b, b)):
            if len(sample) < FEWEST:
                raise MisuseError(f"cross-evaluation needs {FEWEST} inputs that {of.name} was trained on, but "
                                  f"{len(sample)} were given")  # fmt: skip
        few = [s.take(np.linspace(0, len(s) - 1, min(self.rows, len(s))).astype(int)) for s in (sample_a, sample_b)]
        (a_a, a_b), (b_a, b_b) = ([_doubt(m, s) for s in few] for m in (a, b))
        value = (a_b - a_a) - (b_a - b_b)
        verdict, reason = Verdict.INCONCLUSIVE, "neither is clearly surer about what the other learnt"
        if abs(value) >= self.certain:
            verdict = Verdict.SUPPORTED if value > 0 else Verdict.REFUTED
            first, second = (a, b) if value > 0 else (b, a)
            reason = f"{second.name} is surer about what {first.name} learnt than the other way round"
        doubts = {"a on its own": a_a, "a on b's": a_b, "b on a's": b_a, "b on its own": b_b}
        ends = (a.network.digest, b.network.digest)
        effect, null = min(1.0, abs(value)), Null("none: an order is read off a difference")
        return Evidence(CLAIM, Axis.FUNCTION, self.name, value, null, None, None, effect, verdict, reason, self.spec,
                         ends, {"doubt": {k: round(v, 4) for k, v in doubts.items()}})  # fmt: skip


def _doubt(model: Model, sample: Probes) -> float:
    """Mean entropy of the answers as a share of the largest."""
    given = answers(model, sample)
    rows = log_probabilities(given.reshape(-1, given.shape[-1]) if sample.kind == "tokens" else given)
    return float(-(np.exp(rows) * rows).sum(1).mean() / np.log(rows.shape[1]))
