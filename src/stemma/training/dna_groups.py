"""Training data of Model DNA: groups of sources with their children, as features of their outputs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.canonical_outputs import FEATURES_VERSION
from stemma.fingerprints.dna import DNA
from stemma.probes import Probes
from stemma.training import detector_zoo
from stemma.training.relatives import Relative
from stemma.types import Spec
from stemma.zoo import data, datasets
from stemma.zoo.cache import VERSION, recall
from stemma.zoo.kinds import kind_of, seed_for
from stemma.zoo.provenance import Member, group
from stemma.zoo.recipe_builder import build_all

Progress = Callable[[str, int, int | None], None]

OTHER_ARCHITECTURE_WAYS = frozenset({"distilled, other architecture"})
"""Children whose reference population are independent models of their own architecture."""

FEATURE_STEP = 0.05
"""Features are stored in steps of this size."""

PROBE_COUNT = 384
"""Number of standard probes."""


@dataclass(frozen=True, eq=False)
class Group:
    """Features of the members of one group, see `stemma.zoo.provenance.group`.

    Attributes:
        name: Unique among groups.
        kept: Features in steps of `FEATURE_STEP`, `int8 [models, probes, features]`.
        source: `int [models]`.
        way: `[models]`.
    """

    name: str
    kept: np.ndarray
    source: np.ndarray
    way: np.ndarray

    @cached_property
    def features(self) -> np.ndarray:
        """Features `float32 [models, probes, features]`."""
        return self.kept.astype(np.float32) * FEATURE_STEP

    @property
    def kind(self) -> str:
        """Kind of its networks."""
        return self.name.split("-")[0]

    def at(self, way: str, sources: np.ndarray) -> np.ndarray:
        """Positions of the members derived in one way from some sources, in the order of the sources."""
        rows = self.rows(way)
        return rows[np.searchsorted(self.source[rows], sources)]

    def rows(self, way: str) -> np.ndarray:
        """Positions of the members derived in one way, in order of their sources."""
        found = np.flatnonzero(self.way == way)
        return found[np.argsort(self.source[found], kind="stable")]

    def only(self, kept: np.ndarray) -> "Group":
        """A smaller group of the members with a True entry."""
        return Group(self.name, self.kept[kept], self.source[kept], self.way[kept])

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways in which children were derived."""
        return tuple(w for w in dict.fromkeys(self.way.tolist()) if w not in ("source", "stranger"))


@dataclass(frozen=True)
class GroupRecipe:
    """How one group is made.

    Attributes:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other networks.
        sources: How many.
        data: What sources learn, None for the kind's own.
        task: As in `stemma.zoo.data.TASKS`.
        folder: Whether children may learn data sets that are in a folder.
    """

    kind: str
    seed: int
    sources: int
    data: str | None = None
    task: str = "digit"
    folder: bool = True

    @property
    def name(self) -> str:
        """Unique among groups."""
        words = [self.kind, self.data or "own", *([] if self.task == "digit" else [self.task])]
        return f"{'-'.join(words)}-{self.seed}"

    def members(self) -> list[Member]:
        """The recipes of its networks."""
        targets = None if self.folder or self.kind == "lm" else (None,)
        return group(self.kind, self.seed, self.sources, self.data, self.task, targets=targets)


def parse_groups(text: str) -> list[GroupRecipe]:
    """Groups of a zoo by name: `mlp+cnn:n=24,seed=1` has 24 sources of each kind for every available data set."""
    kinds, count, seed = detector_zoo.parse_zoo(text)
    folder = bool(_datasets("mlp"))
    return [
        GroupRecipe(kind, seed_for(seed, i) % 2**31, count, name, folder=folder)
        for kind in kinds for i, name in enumerate((None, *_datasets(kind)))
    ]  # fmt: skip


def _datasets(kind: str) -> tuple[str, ...]:
    """Data sets in a folder that a kind can learn; none where no folder is known."""
    try:
        datasets.folder()
    except MisuseError:
        return ()
    return datasets.TEXTS if kind == "lm" else datasets.IMAGES


def standard_probes(
    kind: str, rows: int = PROBE_COUNT, seed: int = 0, only: Sequence[str | None] | None = None
) -> Probes:
    """Public inputs for networks of a kind, mixed from the test part of every available data set."""
    sets = (None, *_datasets(kind)) if only is None else tuple(only)
    rng = np.random.default_rng([seed, 59])
    parts = []
    for place, name in enumerate(sets):
        known = data.examples(kind_of(kind).name, "test", data=name).inputs
        count = rows // len(sets) + (place < rows % len(sets))
        parts.append(known[np.sort(rng.choice(len(known), min(count, len(known)), replace=False))])
    inputs = np.concatenate(parts)
    return Probes.of(inputs[rng.permutation(len(inputs))], source=f"{', '.join(s or 'own' for s in sets)}, test part")


def measure_group(
    recipe: GroupRecipe, probes: Probes | None = None, dna: DNA | None = None, progress: Progress | None = None
) -> Group:
    """Compute the features of a group's members, cached in the zoo's cache.

    Cost: the networks, if they are not cached, and 40 ms for each on one core.

    Args:
        recipe: The group.
        probes: Inputs; the standard probes of the kind unless given.
        dna: The method; the defaults unless given.
        progress: Called with how many networks are made.

    Returns:
        The group.
    """
    members, dna_, asked_probes = recipe.members(), dna or DNA(), probes or standard_probes(recipe.kind)
    known = {"recipes": [m.recipe.digest for m in members], "probes": asked_probes.digest, "rows": dna_.rows,
             "seed": dna_.seed, "canonical": FEATURES_VERSION, "dna": dna_.version}  # fmt: skip

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {
            "features": _features(build_all([m.recipe for m in members], progress=progress), asked_probes, dna_)
        }, {}

    arrays, _ = recall(Spec("dna-group", VERSION, known).digest, make, keep=True)
    return Group(
        recipe.name, arrays["features"], np.array([m.source for m in members]), np.array([m.way for m in members])
    )


def group_from_relatives(name: str, relatives: Sequence[Relative], probes: Probes, dna: DNA | None = None) -> Group:
    """A zoo of one's own as a group: of each family the model with most children, and these.

    Families share no history, so that each source is a control of all others. Cost: the features of every used model.

    Args:
        name: Of the zoo.
        relatives: Its models, as `stemma.training.relatives` reads them.
        probes: Inputs.
        dna: The method; the defaults unless given.

    Returns:
        The group; its children's ways are `child 1`, `child 2`, …

    Raises:
        MisuseError: If no family has a model with children.
        StemmaError: If a model cannot be run.
    """
    by_name = {r.name: r for r in relatives}
    chosen: list[tuple[Model, int, str]] = []
    for source in _most_children(relatives):
        number = sum(way == "source" for *_, way in chosen)
        chosen.append((by_name[source].model, number, "source"))
        own = [r for r in relatives if r.ancestors[:1] == (source,)]
        chosen += [(r.model, number, f"child {k}") for k, r in enumerate(own, 1)]
    if not chosen:
        raise MisuseError(
            f"no model of {name} was made from another one of it: a DNA is trained on sources and children"
        )
    models, sources, ways = zip(*chosen, strict=True)
    return Group(f"own-{name}", _features(models, probes, dna or DNA()), np.array(sources), np.array(ways))


def _most_children(relatives: Sequence[Relative]) -> list[str]:
    """Of each family the name of the model that most others were made from directly."""
    names = {r.name for r in relatives}
    counts: dict[str, Counter[str]] = {}
    for r in relatives:
        if r.ancestors and r.ancestors[0] in names:
            counts.setdefault(r.family, Counter())[r.ancestors[0]] += 1
    return [found.most_common(1)[0][0] for found in counts.values()]


def _features(models: Sequence[Model], probes: Probes, dna_: DNA) -> np.ndarray:
    """Features of every model in steps of `FEATURE_STEP`."""
    found = [dna_.fragments(model, probes)[0] for model in models]
    return np.stack([np.clip(np.round(f / FEATURE_STEP), -127, 127).astype(np.int8) for f in found])
