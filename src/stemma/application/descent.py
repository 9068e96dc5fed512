"""The descendants or ancestors of a model, as a part of the lineage document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stemma.types import Lineage

if TYPE_CHECKING:
    from stemma.ancestry.trees.kin import Kin, KinOf, Path


@dataclass(frozen=True, slots=True)
class StepPart:
    """One edge of a path.

    Attributes:
        parent: Name of the older model; of either, where the two are forms of one network.
        child: Name of the other model.
        relation: What the child is to the parent.
        confidence: Probability of the edge; null where the change itself shows it, or at a missing ancestor.
        share: Share of the parent in a merge; null for other relations.
    """

    parent: str
    child: str
    relation: str
    confidence: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class PathPart:
    """One way from a model to its descendant.

    Attributes:
        steps: Edges from the older model to the younger one.
        probability: Product of the edges' probabilities; null where an edge has none.
        share: Share of the weights that the merges on the path pass on; null without merges that state shares.
    """

    steps: tuple[StepPart, ...]
    probability: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class KinPart:
    """A descendant or an ancestor.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights; null for a missing ancestor.
        same: Whether it is the model in question in another form.
        probability: Probability of the descent, if edges are independent; null where it is known between bounds only.
        at_least: Lower bound of the probability.
        at_most: Upper bound of the probability.
        steps: Number of edges of the most probable path.
        relations: Relations along that path, from the older model to the younger one.
        share: Share of the weights that merges pass on, over all paths; null without merges that state shares.
        licence: Licence as read; null where none is recorded.
        n_paths: Number of all paths.
        paths: The most probable paths, eight at most.
    """

    name: str
    digest: str | None
    same: bool
    probability: float | None
    at_least: float
    at_most: float
    steps: int
    relations: tuple[str, ...]
    share: float | None
    licence: str | None
    n_paths: int
    paths: tuple[PathPart, ...]


@dataclass(frozen=True, slots=True)
class UndecidedPart:
    """A model that may be a descendant or an ancestor.

    Attributes:
        model: Name of the model; empty for a file that cannot be read.
        why: Why it is not decided, in one sentence.
        licence: Licence as read; null where none is recorded.
    """

    model: str
    why: str
    licence: str | None


@dataclass(frozen=True, slots=True)
class DescentPart:
    """All descendants or ancestors of a model.

    Attributes:
        of: Name of the model.
        digest: Digest of its weights; null for a missing ancestor.
        direction: Which of the two was asked.
        n_established: Number of models to which edges with a probability lead.
        n_possible: Number of models that may be among them.
        models: Models to which edges lead, forms of the model itself first, then the most probable.
        undecided: Models that no edge shows and that nothing excludes.
    """

    of: str
    digest: str | None
    direction: Literal["descendants", "ancestors"]
    n_established: int
    n_possible: int
    models: tuple[KinPart, ...]
    undecided: tuple[UndecidedPart, ...]


def descent_part(kin: "KinOf", lineage: Lineage, licences: Mapping[str, str]) -> DescentPart:
    """The descendants or ancestors of a model as a part of a document."""
    digests = {m.name: str(m.digest) for m in lineage.models}
    return DescentPart(
        of=kin.of,
        digest=digests.get(kin.of),
        direction=kin.direction,
        n_established=len(kin.established),
        n_possible=len(kin.possible),
        models=tuple(_kin_part(k, digests.get(k.name), licences.get(k.name)) for k in kin.models),
        undecided=tuple(UndecidedPart(name, why, licences.get(name)) for name, why in kin.undecided),
    )


def _kin_part(kin: "Kin", digest: str | None, licence: str | None) -> KinPart:
    first = kin.paths[0].edges if kin.paths else ()
    return KinPart(
        name=kin.name,
        digest=digest,
        same=kin.same,
        probability=_rounded(kin.reached.probability),
        at_least=round(kin.reached.at_least, 6),
        at_most=round(kin.reached.at_most, 6),
        steps=len(first),
        relations=tuple(e.relation for e in first),
        share=kin.share,
        licence=licence,
        n_paths=kin.n_paths,
        paths=tuple(map(_path_part, kin.paths)),
    )


def _path_part(path: "Path") -> PathPart:
    steps = tuple(StepPart(e.parent, e.child, e.relation, e.confidence, e.share) for e in path.edges)
    return PathPart(steps=steps, probability=_rounded(path.probability), share=path.share)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
