"""Which models stand for independence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.types import Fingerprint


@dataclass(frozen=True, eq=False)
class Party:
    """A model in a question: itself, or what is kept of its function.

    Attributes:
        name: The model's name.
        load: Reads it; None where it is gone.
        sketch: Its functional sketch for these probes, where one is kept.
    """

    name: str
    load: Callable[[], Model] | None = field(default=None, repr=False)
    sketch: Fingerprint | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Model) -> "Party":
        """A model that is at hand.

        Returns:
            The party.
        """
        return cls(model.name, lambda: model)


@dataclass(frozen=True, eq=False)
class NullModels:
    """What independence looks like for one question.

    Attributes:
        source: Where the models come from, for people.
        models: Each trained apart from the others and from the pair.
        left_out: Models that were looked at and are none, with the reason.
    """

    source: str
    models: tuple[Party, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: "Sequence[Model] | NullModels", source: str = "models given") -> "NullModels":
        """Null models from models that somebody vouches for.

        Returns:
            The null models.
        """
        return models if isinstance(models, NullModels) else cls(source, tuple(Party.of(m) for m in models))

    def __iter__(self) -> Iterator[Party]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)


def again(name: str, identity: str, known: dict[str, str]) -> str | None:
    """Why a network is no further draw: it was counted already, or is one of those in question.

    Args:
        name: The null model's name.
        identity: Which network it is.
        known: Names of the networks so far, by identity; this one is added.

    Returns:
        The reason; None for a network that is new.
    """
    first = known.setdefault(identity, "")
    if first:
        return f"{name}: the same network as {first}"
    known[identity] = name
    return None


def check_level(alpha: float) -> None:
    """Refuse what is no level.

    Args:
        alpha: Level of a decision.

    Raises:
        MisuseError: If it does not lie between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise MisuseError(f"{alpha} is no level: give a number between 0 and 1, for example 0.01")


def needed(alpha: float) -> int:
    """How many null models a p-value of alpha takes.

    Args:
        alpha: Level of a decision.

    Returns:
        The smallest m with 1 / (m + 1) <= alpha.
    """
    return max(1, ceil(round(1 / alpha, 9)) - 1)


def floor_sentence(size: int, floor: float, lacking: int, alpha: float) -> str:
    """Why so few null models decide nothing.

    Args:
        size: Null models at hand.
        floor: The smallest p-value that they can give.
        lacking: How many more a decision takes.
        alpha: Level of the decision.

    Returns:
        A sentence.
    """
    models, are = "model" if size == 1 else "models", "is" if lacking == 1 else "are"
    return f"the floor with {size} independent {models} is {floor:.3g}: {lacking} more {are} needed for alpha {alpha:g}"


def conformal(value: float, null: "Sequence[float]") -> float:
    """Chance that one of m + 1 exchangeable values is as small as the one observed.

    Args:
        value: The observed one; small values speak against the null.
        null: The m others.

    Returns:
        (1 + number of null values at or below it) / (m + 1); ties count against the claim.

    Source: Vovk, Gammerman and Shafer 2005, chapter 2; Phipson and Smyth 2010 for the one that is added.
    """
    return (1 + sum(v <= value for v in null)) / (len(null) + 1)
