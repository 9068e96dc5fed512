"""Families for black-box provenance: sources of one architecture and data, models derived from each, and controls.

The record of each model names its source and how it was derived. Sources of one group differ in nothing but their
seeds: they are one another's hardest controls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.errors import UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo.kinds import kind_of, seed_for
from stemma.zoo.recipe import Recipe

_PROVENANCE = 43

TARGETS: Mapping[str, tuple[str | None, ...]] = {"image": (None, "mnist8", "fashion8"), "lm": (None,)}
"""Data that children learn; None is the kind's own. Data sets in a folder need `STEMMA_DATA`."""


@dataclass(frozen=True)
class Member:
    """One model of a group.

    Attributes:
        recipe: How it is made.
        source: Number of the source within the group; a separate number for a model of the other architecture.
        way: `source`, `stranger` (another architecture, the same data), or one of `DERIVATIONS`.
    """

    recipe: Recipe
    source: int
    way: str


def _steps(kind: str, times: float) -> int:
    return round(kind_of(kind).tuning.steps * times)


def _replace_head(times: float, **more: Any) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
        given = {"data": target, "task": "digit", "steps": _steps(kind, times), **more}
        return Recipe(kind, "replace-head", R.HEAD_REPLACED, (root,), given, own_seed, "b")

    return make


def _finetune_on_other_labels(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
    given = {"data": target, "task": f"shuffled:{own_seed % 10**6}", "steps": _steps(kind, 2)}
    return Recipe(kind, "finetune", R.FINETUNED, (root,), given, own_seed, "b")


def _two_generations(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
    first = _replace_head(2)(kind, root, seed_for(own_seed, 1), target)
    task = f"shuffled:{own_seed % 10**6}"
    given = {"data": target, "task": task, "steps": _steps(kind, 2)}
    return Recipe(kind, "finetune", R.FINETUNED, (first,), given, own_seed, "a")


def _lora(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
    tuning = kind_of(kind).tuning
    given = {"data": target, "task": f"shuffled:{own_seed % 10**6}", "rank": 4, "steps": _steps(kind, 3)}
    return Recipe(kind, "lora", R.LORA, (root,), {**given, "rate": 2 * tuning.rate}, own_seed, "b")


def _distill(other: bool) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
        times = 1 if kind == "lm" else 3
        given = {"data": root.parameters["data"], "task": root.parameters["task"],
                 "steps": times * kind_of(kind).schedule.steps}  # fmt: skip
        return Recipe(kind, "distill", R.DISTILLED, (root,), given | ({"other": True} if other else {}), own_seed, "b")

    return make


def _edit(operation: str, relation: R, **given: Any) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own_seed: int, target: str | None) -> Recipe:
        return Recipe(kind, operation, relation, (root,), given, own_seed)

    return make


DERIVATIONS: Mapping[str, Callable[[str, Recipe, int, str | None], Recipe]] = {
    "new head": _replace_head(2),
    "new head, longer": _replace_head(4),
    "new head, 10 shots": _replace_head(2, shots=10),
    "other labels": _finetune_on_other_labels,
    "two generations": _two_generations,
    "lora": _lora,
    "distilled": _distill(False),
    "distilled, other architecture": _distill(True),
    "8-bit": _edit("quantize", R.QUANTIZED, bits=8, block=32, symmetric=True),
    "4-bit": _edit("quantize", R.QUANTIZED, bits=4, block=32, symmetric=True),
    "pruned by half": _edit("prune-weights", R.PRUNED, ratio=0.5, by="magnitude"),
}  # fmt: skip
"""How a child is derived from its source: kind, source, seed and target data give its recipe."""

TEXT_DERIVATIONS = tuple(w for w in DERIVATIONS if w not in ("new head, 10 shots",))
"""Those for language models."""


def group(
    kind: str,
    seed: int,
    sources: int,
    data: str | None = None,
    task: str = "digit",
    *,
    ways: Sequence[str] | None = None,
    targets: Sequence[str | None] | None = None,
    strangers: int | None = None,
) -> list[Member]:
    """Independently trained sources on the same data, children of each, and controls of another architecture.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other groups, which share no start.
        sources: How many.
        data: What the sources learn, None for the kind's own.
        task: As in `stemma.zoo.data.TASKS`.
        ways: Names in `DERIVATIONS`, one child of each source by each; all of the kind unless given.
        targets: Data that children learn, drawn for each child.
        strangers: Networks of the kind's other architecture on the same data; as many as sources unless given.

    Returns:
        The members: sources first, then children derivation by derivation, then those of another architecture.

    Raises:
        UnknownNameError: If there is no such derivation.
    """
    known = TEXT_DERIVATIONS if kind == "lm" else tuple(DERIVATIONS)
    ways = tuple(known if ways is None else ways)
    for way in ways:
        if way not in known:
            raise UnknownNameError(f"no {kind} is made by {way!r}. There are: {', '.join(known)}")
    target_choice = tuple(targets or ((data,) if kind == "lm" else TARGETS["image"]))
    steps = kind_of(kind).schedule.steps * (1 if data is None or kind == "lm" else 2)
    source_parameters = {"data": data, "task": task, "steps": steps}
    roots = [Recipe(kind, "train", None, (), source_parameters, seed_for(seed, _PROVENANCE, i)) for i in range(sources)]
    made = [Member(root, i, "source") for i, root in enumerate(roots)]
    for place, way in enumerate(DERIVATIONS):
        if way not in ways:
            continue
        for i, root in enumerate(roots):
            own_seed = seed_for(seed, _PROVENANCE, i, place + 1)
            target = target_choice[int(np.random.default_rng([own_seed % 2**32, 3]).integers(len(target_choice)))]
            made.append(Member(DERIVATIONS[way](kind, root, own_seed, target), i, way))
    for i in range(sources if strangers is None else strangers):
        own_seed = seed_for(seed, _PROVENANCE, i, 0, 1)
        made.append(
            Member(
                Recipe(kind, "train", None, (), {**source_parameters, "other": True}, own_seed), sources + i, "stranger"
            )
        )
    return made
