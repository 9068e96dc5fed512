"""What DNA is learnt from: groups of sources with their children, as their answers show them."""

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

STRANGER_WAYS = frozenset({"distilled, other architecture"})
"""Children whose population are strangers, for they have their architecture."""

STEP = 0.05
"""Features are kept in steps of this size."""

ROWS = 384
"""Probes of the standard questions."""


@dataclass(frozen=True, eq=False)
class Group:
    """What is seen of the members of one group, see `stemma.zoo.provenance.group`.

    Attributes:
        name: Unique among groups.
        kept: Features in steps of `STEP`, `int8 [models, probes, features]`.
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
        return self.kept.astype(np.float32) * STEP

    @property
    def kind(self) -> str:
        """Kind of its networks."""
        return self.name.split("-")[0]

    def at(self, way: str, sources: np.ndarray) -> np.ndarray:
        """Members made in one way of some sources.

        Args:
            way: How they were made.
            sources: Numbers of the sources.

        Returns:
            Their positions, in the order of the sources given.
        """
        rows = self.rows(way)
        return rows[np.searchsorted(self.source[rows], sources)]

    def rows(self, way: str) -> np.ndarray:
        """Members made in one way, in order of their sources.

        Returns:
            Their positions.
        """
        found = np.flatnonzero(self.way == way)
        return found[np.argsort(self.source[found], kind="stable")]

    def only(self, kept: np.ndarray) -> "Group":
        """Some of the members.

        Args:
            kept: A truth value for each.

        Returns:
            A smaller group.
        """
        return Group(self.name, self.kept[kept], self.source[kept], self.way[kept])

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways in which children were made."""
        return tuple(w for w in dict.fromkeys(self.way.tolist()) if w not in ("source", "stranger"))


@dataclass(frozen=True)
class GroupRecipe:
    """What one group is made of.

    Attributes:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other networks.
        sources: How many.
        data: What sources learn, None for the kind's own.
        task: As in `stemma.zoo.data.TASKS`.
        folder: Whether children may learn data sets that lie in a folder.
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
        """The networks.

        Returns:
            Their recipes.
        """
        targets = None if self.folder or self.kind == "lm" else (None,)
        return group(self.kind, self.seed, self.sources, self.data, self.task, targets=targets)


def parsed(text: str) -> list[GroupRecipe]:
    """A zoo by name: `mlp+cnn:n=24,seed=1` is a group of 24 sources of each kind for every data set that is at hand.

    Args:
        text: Kinds joined by `+`, then after a colon the number of sources in a group and the seed.

    Returns:
        The groups. Data sets are those that are always there and, where `STEMMA_DATA` names a folder, those in it.

    Raises:
        MisuseError: If it is written otherwise.
    """
    kinds, count, seed = detector_zoo.parsed(text)
    folder = bool(_sets("mlp"))
    return [
        GroupRecipe(kind, seed_for(seed, i) % 2**31, count, name, folder=folder)
        for kind in kinds for i, name in enumerate((None, *_sets(kind)))
    ]  # fmt: skip


def _sets(kind: str) -> tuple[str, ...]:
    """Data sets in a folder that a kind can learn; none where no folder is known."""
    try:
        datasets.folder()
    except MisuseError:
        return ()
    return datasets.TEXTS if kind == "lm" else datasets.IMAGES


def questions(kind: str, rows: int = ROWS, seed: int = 0, only: Sequence[str | None] | None = None) -> Probes:
    """Public inputs that networks of a kind are asked: of every data set at hand, what no network learns from.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        rows: How many.
        seed: Of the draw.
        only: Data sets; all at hand unless given.

    Returns:
        The probes, mixed.
    """
    sets = (None, *_sets(kind)) if only is None else tuple(only)
    rng = np.random.default_rng([seed, 59])
    parts = []
    for place, name in enumerate(sets):
        known = data.examples(kind_of(kind).name, "test", data=name).inputs
        count = rows // len(sets) + (place < rows % len(sets))
        parts.append(known[np.sort(rng.choice(len(known), min(count, len(known)), replace=False))])
    inputs = np.concatenate(parts)
    return Probes.of(inputs[rng.permutation(len(inputs))], source=f"{', '.join(s or 'own' for s in sets)}, test part")


def seen(
    recipe: GroupRecipe, probes: Probes | None = None, dna: DNA | None = None, progress: Progress | None = None
) -> Group:
    """Look at the members of a group; what was seen is kept in the zoo's cache.

    Cost: the networks, if they are not in the cache, and 40 ms for each on one core.

    Args:
        recipe: The group.
        probes: What all are asked; the standard questions of the kind unless given.
        dna: How; the defaults unless given.
        progress: Told how many networks are made.

    Returns:
        The group.
    """
    members, look, asked = recipe.members(), dna or DNA(), probes or questions(recipe.kind)
    known = {"recipes": [m.recipe.digest for m in members], "probes": asked.digest, "rows": look.rows,
             "seed": look.seed, "canonical": FEATURES_VERSION, "dna": look.version}  # fmt: skip

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"features": _features(build_all([m.recipe for m in members], progress=progress), asked, look)}, {}

    arrays, _ = recall(Spec("dna-group", VERSION, known).digest, make, keep=True)
    return Group(
        recipe.name,
        arrays["features"],
        np.array([m.source for m in members]),
        np.array([m.way for m in members]),
    )


def of_relatives(name: str, relatives: Sequence[Relative], probes: Probes, dna: DNA | None = None) -> Group:
    """The models of one's own zoo as a group: of each family the model with most children, and these.

    Families share no history, so each source is a control of all others. Cost: every model that is used is asked.

    Args:
        name: Of the zoo.
        relatives: Its models, as `stemma.training.relatives` reads them.
        probes: What all are asked.
        dna: How; the defaults unless given.

    Returns:
        The group; its children's ways are `child 1`, `child 2`, …

    Raises:
        MisuseError: If no family has a model with children.
        StemmaError: If a model cannot be asked.
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


def _features(models: Sequence[Model], probes: Probes, look: DNA) -> np.ndarray:
    """Features of every model in steps of `STEP`."""
    found = [look.fragments(model, probes)[0] for model in models]
    return np.stack([np.clip(np.round(f / STEP), -127, 127).astype(np.int8) for f in found])
