"""What DNA is learnt from: groups of sources with their children, as their answers show them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.canonical_outputs import CANONICAL
from stemma.fingerprints.dna import DNA
from stemma.probes import Probes
from stemma.types import Spec
from stemma.zoo import data, datasets
from stemma.zoo.cache import VERSION, recall
from stemma.zoo.kinds import KINDS, kind_of, seed_for
from stemma.zoo.provenance import Member, group
from stemma.zoo.recipe import build_all

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
        scalars: `[models, 8]`, see `stemma.fingerprints.dna.SCALARS`.
        source: `int [models]`.
        way: `[models]`.
    """

    name: str
    kept: np.ndarray
    scalars: np.ndarray
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
        return Group(self.name, self.kept[kept], self.scalars[kept], self.source[kept], self.way[kept])

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways in which children were made."""
        return tuple(w for w in dict.fromkeys(self.way.tolist()) if w not in ("source", "stranger"))


@dataclass(frozen=True)
class Recipe:
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


def parsed(text: str) -> list[Recipe]:
    """A zoo by name: `mlp+cnn:n=24,seed=1` is a group of 24 sources of each kind for every data set that is at hand.

    Args:
        text: Kinds joined by `+`, then after a colon the number of sources in a group and the seed.

    Returns:
        The groups. Data sets are those that are always there and, where `STEMMA_DATA` names a folder, those in it.

    Raises:
        MisuseError: If it is written otherwise.
    """
    found = re.fullmatch(r"([a-z+]+)(?::((?:(?:n|seed)=\d+,?)*))?", text)
    kinds = tuple(dict.fromkeys(found[1].split("+"))) if found else ()
    if not found or any(k not in KINDS for k in kinds):
        raise MisuseError(
            f"'{text}' is no zoo of sources and children: write for example mlp+cnn:n=24,seed=1, of the kinds "
            f"{', '.join(KINDS)}"
        )
    given = dict(re.findall(r"(\w+)=(\d+)", found[2] or ""))
    count, seed, folder = int(given.get("n", 16)), int(given.get("seed", 0)), bool(_sets("mlp"))
    return [
        Recipe(kind, seed_for(seed, i) % 2**31, count, name, folder=folder)
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
    recipe: Recipe, probes: Probes | None = None, dna: DNA | None = None, progress: Progress | None = None
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
             "seed": look.seed, "canonical": CANONICAL, "dna": look.version}  # fmt: skip

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        found = [look.fragments(m, asked) for m in build_all([m.recipe for m in members], progress=progress)]
        kept = np.stack([np.clip(np.round(f / STEP), -127, 127).astype(np.int8) for f, _ in found])
        return {"features": kept, "scalars": np.stack([s for _, s in found]).astype(np.float32)}, {}

    arrays, _ = recall(Spec("dna-group", VERSION, known).digest, make, keep=True)
    return Group(
        recipe.name,
        arrays["features"],
        arrays["scalars"],
        np.array([m.source for m in members]),
        np.array([m.way for m in members]),
    )
