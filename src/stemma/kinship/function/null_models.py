"""The models that a test is about, the null (control) models, and what a rank among them says."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.types import Fingerprint

CLAIM = "the function of one model derives from the other"
"""The claim of all functional tests."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The subject of a functional test: a model, or what is stored of its function.

    Attributes:
        name: The model's name.
        load: Reads the model; None where it is no longer available.
        sketch: Its functional sketch for these probes, where one is stored.
        kept: What was already taken from it for the question in hand, by what takes it.
    """

    name: str
    load: Callable[[], Model] | None = field(default=None, repr=False)
    sketch: Fingerprint | None = field(default=None, repr=False)
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Model) -> "Subject":
        """A loaded model as a subject."""
        return cls(model.name, lambda: model)


@dataclass(frozen=True, eq=False)
class NullModels:
    """Null (control) models: independently trained, so they show which distances arise without shared provenance.

    Attributes:
        source: Where the models come from, as shown to users.
        models: Each trained independently of the others and of the tested pair.
        left_out: Models that were considered and excluded, with the reason.
    """

    source: str
    models: tuple[Subject, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: "Sequence[Model] | NullModels", source: str = "models given") -> "NullModels":
        """Null models from loaded models that the caller knows to be independent."""
        return models if isinstance(models, NullModels) else cls(source, tuple(Subject.of(m) for m in models))

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)


def duplicate_reason(name: str, identity: str, known: dict[str, str]) -> str | None:
    """Why a null model counts no second time (its network is in `known`), or None; adds it to `known`."""
    earlier = known.setdefault(identity, "")
    if earlier:
        return f"{name}: the same network as {earlier}"
    known[identity] = name
    return None


def check_alpha(alpha: float) -> None:
    """Raise `MisuseError` unless the significance level lies between 0 and 1."""
    if not 0 < alpha < 1:
        raise MisuseError(f"the significance level alpha must lie between 0 and 1, for example 0.01, but it is {alpha}")


def models_needed(alpha: float) -> int:
    """Smallest number m of null models with 1 / (m + 1) <= alpha."""
    return max(1, ceil(round(1 / alpha, 9)) - 1)


def too_few_sentence(size: int, smallest_p: float, lacking: int, alpha: float) -> str:
    """A sentence: m null models cannot reach alpha, and `lacking` more are needed."""
    models, are = "model" if size == 1 else "models", "is" if lacking == 1 else "are"
    return (
        f"the smallest attainable p-value with {size} control {models} is {smallest_p:.3g}: "
        f"{lacking} more {are} needed for alpha {alpha:g}"
    )


def conformal_p_value(value: float, null: "Sequence[float]") -> float:
    """Probability that one of m + 1 exchangeable values is as small as the observed one.

    Args:
        value: The observed value; small values speak against the null hypothesis.
        null: The m other values.

    Returns:
        (1 + number of null values at or below it) / (m + 1); ties count against the claim.

    Source: Vovk, Gammerman and Shafer 2005, chapter 2; Phipson and Smyth 2010 for the one that is added.
    """
    return (1 + sum(v <= value for v in null)) / (len(null) + 1)
