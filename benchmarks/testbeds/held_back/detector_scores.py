"""What the shipped detector answers to the questions of a bed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemma.kinship.learned.detector import LineageDetector
from stemma.probes import Probes
from testbeds.held_back.questions import Question
from testbeds.held_back.rates import rate

SURE, ROOT_SURE = 0.95, 0.9
FRESH_SAME_SHAPE = ("new head", "new head, again", "partly frozen", "few-shot", "imbalanced", "long new head")


@dataclass(frozen=True, eq=False)
class Said:
    """An answer.

    Attributes:
        question: What was asked.
        named: Name of the candidate that is called the parent, None for none or no answer.
        highest: Largest probability of a candidate.
        none: Probability of none.
        related: Names of the candidates that are called related, where the detector says so.
    """

    question: Question
    named: str | None
    highest: float
    none: float
    related: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """The parent is named, or none where it is not there."""
        return self.named == self.question.parent

    @property
    def wrong(self) -> bool:
        """Somebody else is named."""
        return self.named is not None and not self.right

    @property
    def missed(self) -> bool:
        """The parent is there, and none is said to be at `SURE`."""
        return self.named is None and self.question.parent is not None and self.none >= SURE

    @property
    def shown(self) -> bool:
        """The parent is named, or called related."""
        return self.question.parent in (self.named, *self.related)

    @property
    def strange(self) -> bool:
        """A network of another source, or a student's teacher, is called related."""
        own = {c.name for c in self.question.candidates if c.source == self.question.source}
        return any(n not in own or self.question.child.kind == "distilled" for n in self.related)

    @property
    def abstained(self) -> bool:
        """The parent is there, nobody is named, and none is not sure."""
        return self.named is None and self.question.parent is not None and not self.missed


def answered(detector: LineageDetector, asked: Sequence[Question], probes: Probes | None = None) -> list[Said]:
    """The detector's answers to all questions."""
    out = []
    for q in asked:
        found = detector(q.child.model, [c.model for c in q.candidates], probes)
        named = None if found.parent is None else found.parent.name
        related = tuple(r.name for r in getattr(found, "relatives", ()))
        out.append(Said(q, named, max(found.probabilities), found.none, related))
    return out


def table(said: Sequence[Said]) -> dict[str, Any]:
    """Outcomes over all questions, by scenario, by kind where the parent is there, and the figures of the claims."""
    scenarios = list(dict.fromkeys(s.question.scenario for s in said))
    kinds = list(dict.fromkeys(s.question.kind for s in said if s.question.scenario == "parent"))
    parents = [s for s in said if s.question.scenario == "parent"]
    fresh = [s for s in parents if s.question.kind in FRESH_SAME_SHAPE]
    roots = [s for s in said if s.question.scenario.startswith("root and") and s.question.child.generation == 0]
    return {
        "all": _outcomes(said),
        "fresh heads named": _rate(fresh, [s.right for s in fresh]),
        "fresh heads named or called related": _rate(fresh, [s.shown for s in fresh]),
        "roots given a child": _rate(roots, [s.wrong for s in roots]),
        f"roots given a child at {ROOT_SURE}": _rate(roots, [s.wrong and s.highest >= ROOT_SURE for s in roots]),
        "scenarios": {n: _outcomes([s for s in said if s.question.scenario == n]) for n in scenarios},
        "parent, by kind": {k: _outcomes([s for s in parents if s.question.kind == k]) for k in kinds},
    }


def _outcomes(said: Sequence[Said]) -> dict[str, Any]:
    return {
        "right": _rate(said, [s.right for s in said]),
        "abstained": _rate(said, [s.abstained for s in said]),
        "right or abstained": _rate(said, [s.right or s.abstained for s in said]),
        "somebody else named": _rate(said, [s.wrong for s in said]),
        "a stranger called related": _rate(said, [s.strange for s in said]),
        f"none at {SURE} though the parent is there": _rate(said, [s.missed for s in said]),
        f"wrong at {SURE}": _rate(said, [s.missed or (s.wrong and s.highest >= SURE) for s in said]),
    }


def _rate(said: Sequence[Said], hits: Sequence[bool]) -> dict[str, Any]:
    return rate(hits, [s.question.source for s in said])
