"""Families of small real networks with a known history: list, show and build them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.suggestions import did_you_mean
from stemma.errors import MisuseError, UnknownNameError
from stemma.types import ModelRef, jsonable

if TYPE_CHECKING:
    from stemma.types import Digest
    from stemma.zoo.collection import Zoo
    from stemma.zoo.recipe import Map, Recipe

LINEAGES = {
    "tree": "a root and generations of fine-tunes, each on its own task: 21 models",
    "forest": "several trees without a common ancestor: 95 models",
    "flat": "many roots, and children of each by one operation",
    "siblings": "candidates that are fine-tunes of one root, and children of each",
    "decoys": "independent models: trained separately on the same data",
    "relations": "models between which every relation holds",
}
"""What can be built beside the families, as `LINEAGE:KIND`."""


@dataclass(frozen=True, kw_only=True)
class ZooListRequest:
    """What `stemma zoo list` is asked: nothing."""


@dataclass(frozen=True, kw_only=True)
class ZooShowRequest:
    """What `stemma zoo show` is asked.

    Attributes:
        name: A member, for example mlp/permuted, or a lineage, for example tree:mlp.
        seed: Of the family or lineage.
    """

    name: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ZooBuildRequest:
    """What `stemma zoo build` is asked.

    Attributes:
        kind: A family or a lineage.
        out: Folder for the checkpoints.
        only: Members that are built; all if null.
        seed: Of the family or lineage.
        cluster: Address of the cluster that trains; this machine if null.
    """

    kind: str
    out: str
    only: tuple[str, ...] | None = None
    seed: int = 0
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class MemberPart:
    """How one network is made.

    Attributes:
        name: Name of the network.
        digest: Digest of the recipe.
        relation: What it is to its parents; null for a network that is trained from scratch.
        parents: Networks that it is made from.
        operation: What is done to them.
        parameters: Parameters of the operation.
        seed: Seed of the operation.
        part: Part of the data that it is trained on.
    """

    name: str
    digest: str
    relation: str | None
    parents: tuple[str, ...]
    operation: str
    parameters: Mapping[str, Any]
    seed: int
    part: str | None


@dataclass(frozen=True, kw_only=True)
class ZooListDocument(Document):
    """What can be built.

    Attributes:
        members: Networks of the families.
        lineages: Lineages that can be built beside them.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.zoo-list", 1)

    asked: ZooListRequest
    members: tuple[MemberPart, ...]
    lineages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ZooShowDocument(Document):
    """How one network is made.

    Attributes:
        name: Name of the network.
        digest: Digest of the recipe.
        relation: What it is to its parents; null for a network that is trained from scratch.
        parents: Networks that it is made from.
        operation: What is done to them.
        parameters: Parameters of the operation.
        seed: Seed of the operation.
        part: Part of the data that it is trained on.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.zoo-show", 1)

    asked: ZooShowRequest
    name: str
    digest: str
    relation: str | None
    parents: tuple[str, ...]
    operation: str
    parameters: Mapping[str, Any]
    seed: int
    part: str | None


@dataclass(frozen=True, kw_only=True)
class ZooLineageDocument(Document):
    """How every network of a lineage is made.

    Attributes:
        members: The networks.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.zoo-lineage", 1)

    asked: ZooShowRequest
    members: tuple[MemberPart, ...]


@dataclass(frozen=True, kw_only=True)
class ZooBuildDocument(Document):
    """Networks that were built.

    Attributes:
        folder: Folder of the checkpoints.
        members: The networks.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.zoo-build", 1)

    asked: ZooBuildRequest
    folder: str
    members: tuple[ModelRef, ...]


@dataclass(frozen=True, kw_only=True)
class ZooListAnswer:
    """What can be built.

    Attributes:
        request: What was asked.
        members: Networks of the families.
        lineages: Lineages that can be built beside them.
    """

    request: ZooListRequest
    members: tuple[MemberPart, ...]
    lineages: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The document that `stemma zoo list --json` prints."""
        return ZooListDocument.of(self.request, members=self.members, lineages=self.lineages).to_dict()


@dataclass(frozen=True, kw_only=True)
class ZooShowAnswer:
    """How one network, or every network of a lineage, is made.

    Attributes:
        request: What was asked.
        members: The one network, or all of them.
    """

    request: ZooShowRequest
    members: tuple[MemberPart, ...]

    @property
    def is_lineage(self) -> bool:
        """Whether a lineage was asked for."""
        return ":" in self.request.name

    def document(self) -> dict[str, Any]:
        """The document that `stemma zoo show --json` prints."""
        if self.is_lineage:
            return ZooLineageDocument.of(self.request, members=self.members).to_dict()
        return ZooShowDocument.of(self.request, **jsonable(self.members[0])).to_dict()


@dataclass(frozen=True, kw_only=True)
class ZooBuildAnswer:
    """Networks that were built.

    Attributes:
        request: What was asked.
        result: The networks.
    """

    request: ZooBuildRequest
    result: "Zoo"

    def document(self) -> dict[str, Any]:
        """The document that `stemma zoo build --json` prints."""
        members = tuple(ModelRef(m.name, m.model.digest) for m in self.result.members)
        return ZooBuildDocument.of(self.request, folder=self.request.out, members=members).to_dict()


def list_zoo() -> ZooListAnswer:
    """List the families with their networks, and the lineages."""
    from stemma.zoo.kinds import KINDS
    from stemma.zoo.pedigree import NAMES

    members = tuple(_member(f"{kind}/{name}", 0) for kind, names in NAMES.items() for name in names)
    lineages = tuple(f"{name}:{kind}" for name in LINEAGES for kind in KINDS)
    return ZooListAnswer(request=ZooListRequest(), members=members, lineages=lineages)


def show_zoo(request: ZooShowRequest) -> ZooShowAnswer:
    """Tell how one network, or every network of a lineage, is made."""
    if ":" not in request.name:
        return ZooShowAnswer(request=request, members=(_member(request.name, request.seed),))
    from stemma.zoo.lineages import recipes_by_name

    recipes = recipes_by_name(request.name, request.seed)
    names = {recipe.digest: name for name, recipe in reversed(list(recipes.items()))}
    members = tuple(_described(name, recipe, names) for name, recipe in recipes.items())
    return ZooShowAnswer(request=request, members=members)


def build_zoo(request: ZooBuildRequest, progress: Progress | None = None) -> ZooBuildAnswer:
    """Train a family or a lineage, and write every network as a checkpoint.

    Args:
        request: What to build, and where.
        progress: Told what is being done.

    Returns:
        The networks.

    Raises:
        MisuseError: If the folder is not empty.
    """
    out = Path(request.out)
    if out.exists() and any(out.iterdir()):
        raise MisuseError(f"{out} is not empty. Give a folder that is empty or does not exist yet")
    from stemma.workspace.engines import engine_for
    from stemma.workspace.engines.run_tasks import spread_over

    engine = engine_for(1, request.cluster)
    if progress is not None:
        progress(f"training {request.kind}", 0, None)
    with nullcontext() if engine is None else spread_over(engine) as spread:
        zoo = _zoo(request.kind, request.seed, request.only, progress, spread)
    zoo.write(out)
    return ZooBuildAnswer(request=request, result=zoo)


def _zoo(
    kind: str, seed: int, only: Sequence[str] | None, progress: Progress | None, spread: "Map | None" = None
) -> "Zoo":
    """A family, or the lineage of this name; of it, only the members that are wanted."""
    from stemma.zoo import lineages
    from stemma.zoo.pedigree import family

    if ":" not in kind:
        return family(kind, seed, only=None if only is None else list(only), spread=spread)
    recipes = lineages.recipes_by_name(kind, seed)
    short = {name.partition("/")[2]: name for name in recipes}
    if unknown := sorted(set(only or ()) - {*short, *recipes}):
        raise UnknownNameError(f"{kind} has no model {unknown[0]!r}. There are: {', '.join(short)}.")
    wanted = {short.get(name, name) for name in only or recipes}
    chosen = {n: r for n, r in recipes.items() if n in wanted}
    return lineages.as_zoo(chosen, among=recipes, progress=progress, spread=spread)


def _member(name: str, seed: int) -> MemberPart:
    from stemma.zoo.pedigree import NAMES, recipes

    kind, _, member = name.partition("/")
    known = recipes(kind, seed) if kind in NAMES else {}
    if member not in known:
        members = [f"{kind}/{member}" for kind, names in NAMES.items() for member in names]
        raise UnknownNameError(f"the zoo has no member '{name}'.{did_you_mean(name, members)} See: stemma zoo list")
    names = {other.digest: f"{kind}/{other_name}" for other_name, other in reversed(known.items())}
    return _described(name, known[member], names)


def _described(name: str, recipe: "Recipe", names: "Mapping[Digest, str]") -> MemberPart:
    return MemberPart(
        name=name,
        digest=recipe.digest,
        relation=None if recipe.relation is None else recipe.relation.value,
        parents=tuple(names[parent.digest] for parent in recipe.parents),
        operation=recipe.operation,
        parameters=jsonable(recipe.parameters),
        seed=recipe.seed,
        part=recipe.part,
    )
