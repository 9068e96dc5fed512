"""Recipes of whole lineages: trees over generations, flat and mixed families, sibling candidates, orphans, decoys.

Each function returns recipes by name, parents before children, and the recipes are the truth: which model was made from
which, and how. `as_zoo` makes the models; `stemma.zoo.recipe_builder.build_all` makes any of them at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stemma.errors import MisuseError, UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo import evaluation_pairs
from stemma.zoo.collection import Member, Zoo
from stemma.zoo.finetuning_recipes import (
    CHILD_OPERATIONS,
    FINETUNING_RECIPES,
    TASKS,
    FinetuningRecipe,
    finetuning_recipe,
    with_dataset,
    with_label_seed,
)
from stemma.zoo.kinds import kind_of, seed_for
from stemma.zoo.merged_operations import experts
from stemma.zoo.recipe import Map, Progress, Recipe
from stemma.zoo.recipe_builder import build_all

Recipes = dict[str, Recipe]

_TREE, _FLAT, _SIBLINGS, _DECOYS, _MIXED = 21, 22, 23, 24, 26


def tree(
    kind: str,
    seed: int = 0,
    branching: Sequence[int] = (4, 4),
    *,
    tunings: Sequence[str | FinetuningRecipe] = tuple(FINETUNING_RECIPES),
    tasks: Sequence[str] | None = None,
    data: Sequence[str | None] = (None,),
    init: str = "torch",
    name: str | None = None,
) -> Recipes:
    """A root, its children, their children, each fine-tuned on a task of its own by a recipe drawn for it.

    The default has 21 models in three generations, as the trees of VTHR (Horwitz et al. 2025, arXiv:2405.18432).

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other trees, which share nothing.
        branching: Children of each model, generation by generation.
        tunings: Names in `FINETUNING_RECIPES`, or fine-tuning recipes; a single one is used for all.
        tasks: As in `stemma.zoo.data.TASKS`; `shuffled` gets a seed of its own for each child. `TASKS` unless given.
        data: Data sets that are drawn from for each model; None is the kind's own. `inverted` is `rotated` on others.
        init: How the root's start is drawn, one of `stemma.zoo.training.INITIALISERS`.
        name: Beginning of the names, `KIND-tree-SEED` unless given.

    Returns:
        Recipes named `NAME/root`, `NAME/2`, `NAME/2-1`, …
    """
    name, rng = name or f"{kind}-tree-{seed}", np.random.default_rng([seed, _TREE])
    recipes_to_draw = [finetuning_recipe(t) for t in tunings]
    tasks = tuple(tasks or TASKS["text" if kind == "lm" else "image"])
    counter = iter(range(10**9))
    root = _root_recipe(kind, seed_for(seed, _TREE, next(counter)), init, _draw(rng, data))
    made = {f"{name}/root": root}
    level = {"": root}
    for width in branching:
        children = {}
        for path, parent in level.items():
            for i in range(width):
                own_seed = seed_for(seed, _TREE, next(counter))
                given = _draw(rng, recipes_to_draw).parameters(kind) | {
                    "task": with_label_seed(_draw(rng, tasks), own_seed)
                }
                given = with_dataset(given, _draw(rng, data))
                child = Recipe(kind, "finetune", R.FINETUNED, (parent,), given, own_seed, _draw(rng, "ab"))
                children[f"{path}-{i + 1}".lstrip("-")] = child
        made |= {f"{name}/{path}": recipe for path, recipe in children.items()}
        level = children
    return made


def forest(kind: str, seed: int = 0, roots: int = 5, branching: Sequence[int] = (2, 2, 3), **options: Any) -> Recipes:
    """Several trees that have nothing in common: 95 models in four generations by default.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other forests.
        roots: How many trees.
        branching: Children of each model, generation by generation.
        options: As for `tree`.

    Returns:
        Recipes named `KIND-forest-SEED/tree-1/root`, …
    """
    name = options.pop("name", f"{kind}-forest-{seed}")
    trees = [
        tree(kind, seed_for(seed, i) % 2**32, branching, name=f"{name}/tree-{i + 1}", **options) for i in range(roots)
    ]
    return {n: r for one in trees for n, r in one.items()}


def flat(
    kind: str,
    seed: int = 0,
    roots: int = 10,
    children: int = 5,
    operation: str = "finetune",
    *,
    init: str = "torch",
    data: str | None = None,
    **parameters: Any,
) -> Recipes:
    """Many roots, trained independently, and the children of each by one operation.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other roots.
        roots: How many.
        children: Of each root.
        operation: One of `CHILD_OPERATIONS`.
        init: How the roots' starts are drawn.
        data: A data set instead of the kind's own.
        parameters: Of the operation, instead of those that `CHILD_OPERATIONS` gives: `shots=20`, `rank=1`, `ratio=0.9`.

    Returns:
        Recipes named `KIND-flat-SEED/root-1`, `KIND-flat-SEED/root-1-finetune-1`, … The roots do not depend on the
        operation.

    Raises:
        UnknownNameError: If there is no such operation.
    """
    if operation not in CHILD_OPERATIONS:
        raise UnknownNameError(f"no flat family is made by {operation!r}. There are: {', '.join(CHILD_OPERATIONS)}.")
    made: Recipes = {}
    for i in range(roots):
        root = _root_recipe(kind, seed_for(seed, _FLAT, i), init, data)
        name = f"{kind}-flat-{seed}/root-{i + 1}"
        made[name] = root
        for j in range(children):
            own_seed = seed_for(seed, _FLAT, i, j + 1, list(CHILD_OPERATIONS).index(operation))
            what, relation, given = CHILD_OPERATIONS[operation](kind, own_seed, j)
            parents, part = (root,), "ab"[j % 2]
            given = {**(with_dataset(given, data) if what in ("finetune", "lora") else given), **parameters}
            made[f"{name}-{operation}-{j + 1}"] = Recipe(kind, what, relation, parents, given, own_seed, part)
    return made


def mixed(
    kind: str,
    seed: int = 0,
    children: int = 12,
    *,
    deeper: float = 0.3,
    init: str = "torch",
    data: Sequence[str | None] = (None,),
    name: str | None = None,
) -> Recipes:
    """A root and models made from it by all operations of `CHILD_OPERATIONS`, some of them from one another.

    Half of the operations are fine-tunings of one kind or another, a sixth each adapters, cuts and quantised copies;
    from the last nothing else is made. Language models get no few-shot and no imbalanced children.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other families, which share nothing.
        children: Models beside the root.
        deeper: Share of them that is made from another of them.
        init: How the root's start is drawn, one of `stemma.zoo.training.INITIALISERS`.
        data: Data sets that are drawn from for each model that learns; None is the kind's own.
        name: Beginning of the names, `KIND-mixed-SEED` unless given.

    Returns:
        Recipes named `NAME/root`, `NAME/1-lora`, `NAME/2-finetune`, …
    """
    name, rng = name or f"{kind}-mixed-{seed}", np.random.default_rng([seed, _MIXED])
    root = _root_recipe(kind, seed_for(seed, _MIXED), init, _draw(rng, data))
    made, sources = {f"{name}/root": root}, [root]
    operations = [o for o in _MIXED_OPERATIONS if kind != "lm" or o not in _CLASS_COUNTING]
    for j in range(children):
        own_seed, operation = seed_for(seed, _MIXED, j + 1), _draw(rng, operations)
        what, relation, given = CHILD_OPERATIONS[operation](kind, own_seed, int(rng.integers(60)))
        if what in ("finetune", "lora"):
            given = with_dataset(given, _draw(rng, data))
        deep = len(sources) > 1 and rng.random() < deeper
        parent = sources[int(rng.integers(1, len(sources)))] if deep else root
        made[f"{name}/{j + 1}-{operation}"] = recipe = Recipe(
            kind, what, relation, (parent,), given, own_seed, _draw(rng, "ab")
        )
        if relation is not R.QUANTIZED:
            sources.append(recipe)
    return made


_MIXED_OPERATIONS = (
    "finetune", "finetune", "finetune", "longer", "few-shot", "imbalanced", "lora", "lora", "prune", "prune", "int8",
    "int4",
)  # fmt: skip
"""Operations that `mixed` draws from."""

_CLASS_COUNTING = ("few-shot", "imbalanced")
"""Operations that count examples of a class: text has none."""


def sibling_candidates(kind: str, seed: int = 0, candidates: int = 8, children: int = 4, **options: Any) -> Recipes:
    """Candidates that are fine-tunes of one root, and children of each of them: the hard case of parenthood.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other families.
        candidates: Fine-tunes of the root on different data and tasks.
        children: Of each candidate.
        options: As for `tree`.

    Returns:
        Recipes named `KIND-siblings-SEED/root`, `…/3` for a candidate, `…/3-2` for its child.
    """
    name = options.pop("name", f"{kind}-siblings-{seed}")
    return tree(kind, seed_for(seed, _SIBLINGS) % 2**32, (candidates, children), name=name, **options)


def decoys(kind: str, seed: int = 0, count: int = 50, *, init: str = "torch", data: str | None = None) -> Recipes:
    """Independent models of one architecture on the same data, for registries in which nothing is the parent.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other models.
        count: How many.
        init: How their starts are drawn.
        data: A data set instead of the kind's own.

    Returns:
        Recipes named `KIND-decoys-SEED/1`, …
    """
    made = (_root_recipe(kind, seed_for(seed, _DECOYS, i), init, data, "ab"[i % 2]) for i in range(count))
    return {f"{kind}-decoys-{seed}/{i + 1}": r for i, r in enumerate(made)}


LINEAGES: Mapping[str, Callable[..., Recipes]] = {
    "tree": tree,
    "forest": forest,
    "flat": flat,
    "mixed": mixed,
    "siblings": sibling_candidates,
    "decoys": decoys,
    "relations": evaluation_pairs.models,
}
"""Lineages by the name that `recipes_by_name` takes."""

_LINEAGE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "tree": ("branching", "tunings", "data", "init"),
    "forest": ("roots", "branching", "tunings", "data", "init"),
    "flat": ("roots", "children", "operation", "data", "init", "shots", "imbalance", "rank", "ratio"),
    "mixed": ("children", "deeper", "data", "init"),
    "siblings": ("candidates", "children", "tunings", "data", "init"),
    "decoys": ("count", "data", "init"),
    "relations": (),
}

_OPTION_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "branching": lambda text: tuple(int(n) for n in text.split("x")),
    "tunings": lambda text: tuple(text.split("+")),
    "roots": int, "children": int, "candidates": int, "count": int, "operation": str, "init": str, "data": str,
    "deeper": float, "shots": int, "imbalance": float, "rank": int, "ratio": float,
}  # fmt: skip


def recipes_by_name(text: str, seed: int = 0) -> Recipes:
    """The recipes of a lineage as a command line names it.

    Args:
        text: `LINEAGE:KIND`, and what differs from its defaults: `tree:mlp`, `tree:cnn:branching=3x3,tunings=sgd`,
            `flat:mlp:roots=20,children=4,operation=lora,data=mnist8`.
        seed: Of the lineage.

    Returns:
        Recipes by name.

    Raises:
        MisuseError: If an option is unknown or cannot be read.
        UnknownNameError: If there is no such lineage or kind.
    """
    lineage, _, rest = text.partition(":")
    kind, _, options = rest.partition(":")
    if lineage not in LINEAGES:
        raise UnknownNameError(f"no lineage is called {lineage!r}. There are: {', '.join(LINEAGES)}.")
    kind_of(kind)
    given: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        try:
            given[name] = _OPTION_PARSERS[name](value)
        except (KeyError, ValueError) as error:
            raise MisuseError(
                f"{option!r} cannot be read. Options: {', '.join(f'{n}=…' for n in _OPTION_PARSERS)}."
            ) from error
    if "data" in given and lineage in ("tree", "forest", "mixed", "siblings"):
        given["data"] = tuple(given["data"].split("+"))
    if refused := [name for name in given if name not in _LINEAGE_OPTIONS[lineage]]:
        takes = ", ".join(_LINEAGE_OPTIONS[lineage]) or "no options"
        raise MisuseError(f"{lineage!r} does not take {refused[0]!r}. It takes: {takes}.")
    return LINEAGES[lineage](kind, seed, **given)


def as_zoo(
    recipes: Mapping[str, Recipe],
    *,
    among: Mapping[str, Recipe] | None = None,
    keep: bool = True,
    progress: Progress | None = None,
    made: dict[str, Any] | None = None,
    spread: Map | None = None,
) -> Zoo:
    """Make the models of some lineages, with their truth.

    Cost on one core, first time: a tree of 21 models takes 2 s for perceptrons, 6 s for CNNs, 20 s for vision
    transformers, 35 s for language models.

    Args:
        recipes: By name; ancestors may be left out, and the zoo's truth then names them as hidden.
        among: All of a lineage, for the names of ancestors that are left out.
        keep: Use the cache.
        progress: Called with how many models are made.
        made: Weights made before, by recipe digest; filled with those made now.
        spread: Trains stacks elsewhere; in this process unless given.

    Returns:
        The zoo, in the order given.
    """
    models = build_all(recipes, keep=keep, progress=progress, made=made, spread=spread)
    names = {r.digest: n for n, r in reversed([*recipes.items(), *(among or {}).items()])}
    history: dict[str, tuple[str, ...]] = {}

    def name_of(recipe: Recipe) -> str:
        name = names.setdefault(recipe.digest, f"{recipe.kind}-{recipe.operation}-{recipe.digest[7:15]}")
        if name not in history:
            history[name] = tuple(name_of(p) for p in recipe.parents)
        return name

    members = []
    for (name, recipe), model in zip(recipes.items(), models, strict=True):
        history[name] = tuple(name_of(p) for p in recipe.parents)
        parents = tuple(names[p.digest] for p in experts(recipe))
        members.append(Member(name, model, recipe, parents, recipe.relation))
    return Zoo(tuple(members), history)


def _root_recipe(kind: str, own_seed: int, init: str, data: str | None, part: str = "a") -> Recipe:
    given = {k: v for k, v in (("init", init), ("data", data)) if v not in (None, "torch")}
    return Recipe(kind, "train", None, (), given, own_seed, part)


def _draw(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]
