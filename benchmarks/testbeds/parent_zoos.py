"""Children, the candidates that may be their parents, and probes: what the ranking of parents is measured on.

Families are told apart by seed: those of `SELECTION` serve for choices, those of `TEST` for figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.probes import Probes
from stemma.types import RelationKind
from stemma.zoo import data
from stemma.zoo.kinds import kind_of, seed_for
from stemma.zoo.lineages import FinetuningRecipe, forest, sibling_candidates
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build_all

SELECTION, TEST = 5101, 7301
"""Seeds of the families that choices are made on, and of those that are scored."""

PROBES = 64
"""The first so many training inputs of the children's data."""

SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {"steps": 2, "rate": 3},
    "heavy": {"steps": 5, "rate": 4},
    "1 shot": {"steps": 1, "rate": 3, "shots": 1},
    "5 shots": {"steps": 1, "rate": 3, "shots": 5},
    "10 shots": {"steps": 1, "rate": 3, "shots": 10},
    "20 shots": {"steps": 1, "rate": 3, "shots": 20},
    "50 shots": {"steps": 1, "rate": 3, "shots": 50},
    "imbalanced 10": {"steps": 2, "rate": 3, "imbalance": 10},
    "imbalanced 50": {"steps": 2, "rate": 3, "imbalance": 50},
    "head kept": {"steps": 2, "rate": 3, "operation": "finetune"},
    "labels exchanged": {"steps": 2, "rate": 3, "operation": "finetune", "task": "shuffled:1"},
}
"""How children are fine-tuned: steps and rate as multiples of their kind's own fine-tuning. They get a fresh head,
except in the last two, where the parent's head has to learn other labels; in the last, of the same pictures."""

DATA: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "digits": ({}, {"task": "rotated+shuffled:1"}),
    "fashion": ({"data": "mnist8"}, {"task": "digit", "data": "fashion8"}),
}
"""What parents learn, and what children learn: digits turned by a quarter with other labels; or Fashion-MNIST after
MNIST, which need the data sets."""

SIBLING = (FinetuningRecipe("sibling", rate=3.0, steps=2),)


@dataclass(frozen=True, eq=False)
class Question:
    """Who of the candidates is the parent?

    Attributes:
        candidates: Possible parents.
        children: Networks in question.
        truth: Position of the right candidate of each child.
        family: What each child is resampled with.
        probes: Inputs of the children's training data.
    """

    candidates: list[Model]
    children: list[Model]
    truth: np.ndarray
    family: np.ndarray
    probes: Probes


def independent(
    kind: str, setting: str, seed: int, roots: int = 20, children: int = 10, source: str = "digits"
) -> Question:
    """Roots that were trained apart, and children of each, with heads of their own.

    Args:
        kind: `mlp`, `cnn` or `vit`.
        setting: One of `SETTINGS`.
        seed: Of the families.
        roots: How many candidates.
        children: Of each.
        source: One of `DATA`.

    Returns:
        The question.
    """
    learnt, taught = DATA[source]
    own, given = kind_of(kind).tuning, dict(SETTINGS[setting])
    operation = given.pop("operation", "replace-head")
    given = {**taught, **given, "steps": round(own.steps * given["steps"]), "rate": own.rate * given["rate"]}
    parents = [Recipe(kind, "train", parameters=learnt, seed=seed_for(seed, i)) for i in range(roots)]
    recipes = {f"root-{i}": p for i, p in enumerate(parents)}
    for i, parent in enumerate(parents):
        for j in range(children):
            relation = RelationKind.FINETUNED if operation == "finetune" else RelationKind.HEAD_REPLACED
            recipes[f"child-{i}-{j}"] = Recipe(
                kind, operation, relation, (parent,), given, seed_for(seed, i, j + 1), "b"
            )
    models = build_all(recipes)
    truth = np.repeat(np.arange(roots), children)
    return Question(models[:roots], models[roots:], truth, truth, _probes(kind, given))


def siblings(kind: str, seed: int, families: int = 5, candidates: int = 8, children: int = 5) -> Iterator[Question]:
    """Candidates that are fine-tunes of one root, each to labels of its own, family after family."""
    for f in range(families):
        recipes = sibling_candidates(
            kind, seed_for(seed, f) % 2**32, candidates, children, tunings=SIBLING, tasks=("rotated+shuffled",)
        )
        models = dict(zip(recipes, build_all(recipes), strict=True))
        names = [n for n in recipes if "/root" not in n]
        above = [n for n in names if "-" not in n.split("/")[1]]
        below = [n for n in names if n not in above]
        truth = np.array([above.index(n.rsplit("-", 1)[0]) for n in below])
        probes = _probes(kind, {"task": "rotated"})
        yield Question([models[n] for n in above], [models[n] for n in below], truth, truth + f * candidates, probes)


def close_siblings(
    kind: str, seed: int, families: int = 5, candidates: int = 8, children: int = 5
) -> Iterator[Question]:
    """Candidates that went on with their root's own task, each on another half of the data; children as `standard`."""
    own, tuned = kind_of(kind).tuning, SIBLING[0].parameters(kind) | {"task": "rotated+shuffled:1"}
    mild = {"steps": own.steps, "rate": own.rate, "subset": 0.5}
    for f in range(families):
        root = Recipe(kind, "train", seed=seed_for(seed, f, 0))
        above = [
            Recipe(kind, "finetune", RelationKind.FINETUNED, (root,), mild, seed_for(seed, f, i + 1))
            for i in range(candidates)
        ]
        below = [
            Recipe(
                kind, "replace-head", RelationKind.HEAD_REPLACED, (parent,), tuned, seed_for(seed, f, i + 1, j + 1), "b"
            )
            for i, parent in enumerate(above)
            for j in range(children)
        ]
        models = build_all({str(i): r for i, r in enumerate([*above, *below])})
        truth = np.repeat(np.arange(candidates), children)
        probes = _probes(kind, {"task": "rotated"})
        yield Question(models[:candidates], models[candidates:], truth, truth + f * candidates, probes)


def generations(
    kind: str, seed: int, forests: int = 4, roots: int = 5, branching: Sequence[int] = (4, 2, 2)
) -> Iterator[tuple[int, int, Question]]:
    """Four generations: every earlier one as candidates for every later one.

    Yields:
        Generation of the candidates and of the children, counted from 1, and a question; one for each forest and each
        kind of picture that children learn, with probes of that kind.
    """
    for f in range(forests):
        recipes = forest(kind, seed_for(seed, f) % 2**32, roots, branching, tunings=SIBLING)
        models = dict(zip(recipes, build_all(recipes), strict=True))
        names = {r.digest: n for n, r in recipes.items()}
        lines = {n: [n] for n in recipes}
        for n, r in recipes.items():
            lines[n] = [*(lines[names[r.parents[0].digest]] if r.parents else []), n]
        by_depth = [[n for n in recipes if len(lines[n]) == g] for g in range(1, len(branching) + 2)]
        for g, h in combinations(range(len(by_depth)), 2):
            for task in ("shuffled", "inverted", "rotated"):
                below = [n for n in by_depth[h] if recipes[n].parameters["task"].startswith(task)]
                if below:
                    truth = np.array([by_depth[g].index(lines[n][g]) for n in below])
                    family = np.array([f * roots + by_depth[0].index(lines[n][0]) for n in below])
                    plain = {} if task == "shuffled" else {"task": task}
                    above = [models[n] for n in by_depth[g]]
                    found = Question(above, [models[n] for n in below], truth, family, _probes(kind, plain))
                    yield g + 1, h + 1, found


def _probes(kind: str, taught: dict[str, Any]) -> Probes:
    """The first inputs of the children's data; of few-shot children too, who saw some of them."""
    found = data.examples(kind, "b", taught.get("task", "digit"), taught.get("data"))
    return Probes.of(found.inputs[:PROBES])
