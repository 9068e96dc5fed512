"""From recipes to models: what was not made before is trained, many at once, and kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, UnknownNameError
from stemma.types import Digest
from stemma.zoo import cache
from stemma.zoo.memory import model_of
from stemma.zoo.preconditions import refuse
from stemma.zoo.recipe import LEARNING, MODULES, OPERATIONS, Arrays, Made, Progress, Recipe
from stemma.zoo.training_jobs import Lesson


def _operation(name: str) -> Callable[[Recipe, list[Made]], Any]:
    home = next((home for home, names in MODULES.items() if name in names), None)
    if home is None:
        raise UnknownNameError(f"no operation is called {name!r}. There are: {', '.join(OPERATIONS)}.")
    return getattr(
        import_module(f"stemma.zoo.{home}"), "train_from_scratch" if name == "train" else name.replace("-", "_")
    )


def build(recipe: Recipe, name: str = "", *, keep: bool = True, made: dict[str, Any] | None = None) -> Model:
    """Make a model, and first whatever it comes from.

    Cost: a second or two per training on one core; nothing for what is in the cache. Many at once: `build_all`.

    Args:
        recipe: The history.
        name: What to call it; the recipe's digest unless given.
        keep: Use the cache.
        made: Weights made before, by recipe digest; filled with those made now, so that a family shares its root.

    Returns:
        The model, deterministic given the recipe (to rounding, across versions of torch).
    """
    return build_all({name or str(recipe.digest): recipe}, keep=keep, made=made)[0]


def build_all(
    recipes: Sequence[Recipe] | Mapping[str, Recipe],
    *,
    keep: bool = True,
    progress: Progress | None = None,
    made: dict[str, Any] | None = None,
) -> list[Model]:
    """Make many models, training those together that can be, generation after generation.

    A model is what its recipe says, whatever shares its stack (to rounding: stacks of another size may sum in another
    order). Cost on one core: a tree of 21 perceptrons 2 s, 400 fine-tuned perceptrons 20 s, a tree of 21 CNNs 6 s.

    Args:
        recipes: Histories, or histories by the names that the models get; their digests are their names otherwise.
        keep: Use the cache.
        progress: Told how many of the models and ancestors that are not cached are made.
        made: Weights made before, by recipe digest; filled with those made now.

    Returns:
        One model per recipe, in their order.
    """
    given = recipes if isinstance(recipes, Mapping) else {str(i): r for i, r in enumerate(recipes)}
    made = {} if made is None else made
    pending = _missing(given.values(), keep, made)
    total = len(pending)
    while pending:
        ready = [r for r in pending.values() if all(p.digest in made for p in r.parents)]
        now = [r for r in ready if r.operation not in LEARNING] or ready
        for group in _learn(now, keep, made) if now[0].operation in LEARNING else _change(now, made):
            for recipe in group:
                del pending[recipe.digest]
            if progress is not None:
                progress("making zoo networks", total - len(pending), total)
    return [
        model_of(name if isinstance(recipes, Mapping) else str(r.digest), made[r.digest][1], made[r.digest][0])
        for name, r in given.items()
    ]


def _missing(recipes: Iterable[Recipe], keep: bool, made: dict[str, Made]) -> dict[Digest, Recipe]:
    """What has to be made: neither at hand nor in the cache, with whatever that comes from; what is cached is read.

    Returns:
        Recipes by digest.
    """
    pending: dict[Digest, Recipe] = {}
    frontier = {r.digest: r for r in recipes}
    while frontier:
        frontier = {d: r for d, r in frontier.items() if d not in made and d not in pending}
        for r in frontier.values():
            _operation(r.operation)
            refuse(r, r.operation in LEARNING)
        learnt = {d: _run(r).digest for d, r in frontier.items() if r.operation in LEARNING and keep}
        found = cache.find(set(learnt.values()))
        for d in [d for d, run in learnt.items() if run in found]:
            made[d] = _moment(frontier.pop(d), *found[learnt[d]])
        pending |= frontier
        frontier = {p.digest: p for r in frontier.values() for p in r.parents}
    return pending


def _run(recipe: Recipe) -> Recipe:
    """The training run that a recipe is a moment of.

    Returns:
        The recipe without its `quarter`.
    """
    if "quarter" not in recipe.parameters:
        return recipe
    return replace(recipe, parameters={k: v for k, v in recipe.parameters.items() if k != "quarter"})


def _moment(recipe: Recipe, config: dict[str, Any], arrays: Arrays) -> Made:
    """What a recipe takes from its run, in the order of names: what is drawn for each tensor in turn depends on it.

    Returns:
        Configuration and weights.
    """
    if recipe.operation != "train":
        return config, dict(sorted(arrays.items()))
    quarter = int(recipe.parameters.get("quarter", 4))
    return config, {n: a[quarter - 1] for n, a in sorted(arrays.items())}


def _change(recipes: list[Recipe], made: dict[str, Made]) -> Iterable[list[Recipe]]:
    for recipe in recipes:
        config, arrays = _operation(recipe.operation)(recipe, [made[p.digest] for p in recipe.parents])
        made[recipe.digest] = config, dict(sorted(arrays.items()))
    yield recipes


def _learn(recipes: list[Recipe], keep: bool, made: dict[str, Made]) -> Iterable[list[Recipe]]:
    """Train, stack after stack.

    Yields:
        The recipes that each stack has made.
    """
    from stemma.zoo.training_jobs import stacks, teach

    runs = {_run(r).digest: _run(r) for r in recipes}
    lessons: list[Lesson] = [_operation(r.operation)(r, [made[p.digest] for p in r.parents]) for r in runs.values()]
    digests = list(runs)
    for rows in stacks(lessons):
        taught = teach([lessons[i] for i in rows])
        ends = [_ends(moments, runs[digests[i]]) for i, moments in zip(rows, taught, strict=True)]
        _refuse_divergence([runs[digests[i]] for i in rows], ends)
        config = dict(lessons[rows[0]].config)
        if keep:
            cache.put([digests[i] for i in rows], ends, config)
        here = {digests[i]: end for i, end in zip(rows, ends, strict=True)}
        group = [r for r in recipes if _run(r).digest in here]
        for recipe in group:
            made[recipe.digest] = _moment(recipe, config, here[_run(recipe).digest])
        yield group


def _ends(moments: list[Arrays], run: Recipe) -> Arrays:
    """What a training leaves: of one from scratch, the weights after each quarter, `[4, …]`.

    Returns:
        Arrays by name.
    """
    return {n: np.stack([m[n] for m in moments]) for n in moments[0]} if run.operation == "train" else moments[-1]


def _refuse_divergence(runs: list[Recipe], ends: list[Arrays]) -> None:
    for run, arrays in zip(runs, ends, strict=True):
        if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
            raise MisuseError(
                f"training a {run.kind} by {run.operation} with {dict(run.parameters)} ends in numbers that are not "
                "finite. Lower its rate."
            )
