"""What a model's files say of it, set against what its weights show."""

from dataclasses import dataclass
from typing import Literal

SURE = 0.95
"""Probability from which an edge or a role leaves nothing open; one without is shown by the change itself."""

ClaimVerdict = Literal["agrees", "contradicted", "not checked"]


@dataclass(frozen=True, slots=True)
class ClaimLine:
    """One claim and what was found.

    Attributes:
        about: What the claim is about.
        stated: What the files say; empty where they are silent although a parent was found.
        verdict: Whether the findings agree with the claim, contradict it, or say nothing about it.
        sentence: Claim and finding, in one sentence.
        models: Names of the models that the finding is about.
    """

    about: Literal["origin", "base model", "relation", "licence"]
    stated: str
    verdict: ClaimVerdict
    sentence: str
    models: tuple[str, ...] = ()
