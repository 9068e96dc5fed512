"""Families for black-box provenance: sources of one architecture and data, what was made of each, and strangers.

What a question needs is in the record of each model: who its source is, on what that was trained, how it was made.
Sources of one group differ in nothing but their seeds: they are one another's hardest controls.
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
"""Data that children learn; None is the kind's own. Of those, data sets in a folder need `STEMMA_DATA`."""


@dataclass(frozen=True)
class Member:
    """One model of a group.

    Attributes:
        recipe: How it is made.
        source: Number of the source within the group; of a stranger, a number of its own.
        way: `source`, `stranger` (another architecture, the same data), or one of `WAYS`.
    """

    recipe: Recipe
    source: int
    way: str


def _steps(kind: str, times: float) -> int:
    return round(kind_of(kind).tuning.steps * times)


def _new_head(times: float, **more: Any) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
        given = {"data": target, "task": "digit", "steps": _steps(kind, times), **more}
        return Recipe(kind, "replace-head", R.HEAD_REPLACED, (root,), given, own, "b")

    return make


def _other_labels(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
    given = {"data": target, "task": f"shuffled:{own % 10**6}", "steps": _steps(kind, 2)}
    return Recipe(kind, "finetune", R.FINETUNED, (root,), given, own, "b")


def _generations(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
    first = _new_head(2)(kind, root, seed_for(own, 1), target)
    task = f"shuffled:{own % 10**6}"
    given = {"data": target, "task": task, "steps": _steps(kind, 2)}
    return Recipe(kind, "finetune", R.FINETUNED, (first,), given, own, "a")


def _adapter(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
    tuning = kind_of(kind).tuning
    given = {"data": target, "task": f"shuffled:{own % 10**6}", "rank": 4, "steps": _steps(kind, 3)}
    return Recipe(kind, "lora", R.LORA, (root,), {**given, "rate": 2 * tuning.rate}, own, "b")


def _student(other: bool) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
        times = 1 if kind == "lm" else 3
        given = {"data": root.parameters["data"], "task": root.parameters["task"],
                 "steps": times * kind_of(kind).schedule.steps}  # fmt: skip
        return Recipe(kind, "distill", R.DISTILLED, (root,), given | ({"other": True} if other else {}), own, "b")

    return make


def _changed(operation: str, relation: R, **given: Any) -> Callable[[str, Recipe, int, str | None], Recipe]:
    def make(kind: str, root: Recipe, own: int, target: str | None) -> Recipe:
        return Recipe(kind, operation, relation, (root,), given, own)

    return make


WAYS: Mapping[str, Callable[[str, Recipe, int, str | None], Recipe]] = {
    "new head": _new_head(2),
    "new head, longer": _new_head(4),
    "new head, 10 shots": _new_head(2, shots=10),
    "other labels": _other_labels,
    "two generations": _generations,
    "lora": _adapter,
    "distilled": _student(False),
    "distilled, other architecture": _student(True),
    "8-bit": _changed("quantize", R.QUANTIZED, bits=8, block=32, symmetric=True),
    "4-bit": _changed("quantize", R.QUANTIZED, bits=4, block=32, symmetric=True),
    "pruned by half": _changed("prune-weights", R.PRUNED, ratio=0.5, by="magnitude"),
}  # fmt: skip
"""How a child is made of its source: kind, source, seed and target data give its recipe."""

TEXT_WAYS = tuple(w for w in WAYS if w not in ("new head, 10 shots",))
"""Those that language models know."""


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
    """Sources that were trained apart on the same data, children of each, and strangers of another architecture.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other groups, which share no start.
        sources: How many.
        data: What the sources learn, None for the kind's own.
        task: As in `stemma.zoo.data.TASKS`.
        ways: Names in `WAYS`, one child of each source by each; all that the kind knows unless given.
        targets: Data that children learn, drawn for each child.
        strangers: Networks of the kind's other architecture on the same data; as many as sources unless given.

    Returns:
        The members: sources first, then children way by way, then strangers.

    Raises:
        UnknownNameError: If there is no such way.
    """
    known = TEXT_WAYS if kind == "lm" else tuple(WAYS)
    ways = tuple(known if ways is None else ways)
    for way in ways:
        if way not in known:
            raise UnknownNameError(f"no {kind} is made by {way!r}. There are: {', '.join(known)}")
    choice = tuple(targets or ((data,) if kind == "lm" else TARGETS["image"]))
    steps = kind_of(kind).schedule.steps * (1 if data is None or kind == "lm" else 2)
    learnt = {"data": data, "task": task, "steps": steps}
    roots = [Recipe(kind, "train", None, (), learnt, seed_for(seed, _PROVENANCE, i)) for i in range(sources)]
    made = [Member(root, i, "source") for i, root in enumerate(roots)]
    for place, way in enumerate(WAYS):
        if way not in ways:
            continue
        for i, root in enumerate(roots):
            own = seed_for(seed, _PROVENANCE, i, place + 1)
            target = choice[int(np.random.default_rng([own % 2**32, 3]).integers(len(choice)))]
            made.append(Member(WAYS[way](kind, root, own, target), i, way))
    for i in range(sources if strangers is None else strangers):
        own = seed_for(seed, _PROVENANCE, i, 0, 1)
        made.append(Member(Recipe(kind, "train", None, (), {**learnt, "other": True}, own), sources + i, "stranger"))
    return made
