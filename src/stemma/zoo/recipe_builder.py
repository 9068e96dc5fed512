"""Builds models from recipes: what is not cached is trained, many at once, and cached."""

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
from stemma.zoo.preconditions import check_preconditions
from stemma.zoo.recipe import MODULES, OPERATIONS, TRAINING_OPERATIONS, Arrays, Made, Map, Progress, Recipe
from stemma.zoo.training_jobs import STACK, TrainingJob


def _operation(name: str) -> Callable[[Recipe, list[Made]], Any]:
    home = next((home for home, names in MODULES.items() if name in names), None)
    if home is None:
        raise UnknownNameError(f"no operation is called {name!r}. There are: {', '.join(OPERATIONS)}.")
    return getattr(
        import_module(f"stemma.zoo.{home}"), "train_from_scratch" if name == "train" else name.replace("-", "_")
    )


def build(recipe: Recipe, name: str = "", *, keep: bool = True, made: dict[str, Any] | None = None) -> Model:
    """Make a model, and first its ancestors.

    Cost: a second or two per training on one core; nothing for what is cached. Many at once: `build_all`.

    Args:
        recipe: The history.
        name: Of the model; the recipe's digest unless given.
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
    spread: Map | None = None,
    stack: int = STACK,
) -> list[Model]:
    """Make many models, training those together that can be, generation after generation.

    A model depends on its recipe alone, whatever shares its stack (to rounding: stacks of another size may sum in
    another order). Cost on one core: a tree of 21 perceptrons 2 s, 400 fine-tuned perceptrons 20 s, a tree of 21 CNNs 6
    s.

    Args:
        recipes: Histories, or histories by the names that the models get; their digests are their names otherwise.
        keep: Use the cache.
        progress: Called with how many of the models and ancestors that are not cached are made.
        made: Weights made before, by recipe digest; filled with those made now.
        spread: Trains stacks elsewhere; a stack after the other in this process unless given.
        stack: Most networks that train at once.

    Returns:
        One model per recipe, in their order.
    """
    given = recipes if isinstance(recipes, Mapping) else {str(i): r for i, r in enumerate(recipes)}
    made = {} if made is None else made
    pending = _not_cached(given.values(), keep, made)
    total = len(pending)
    while pending:
        buildable = [r for r in pending.values() if all(p.digest in made for p in r.parents)]
        batch = [r for r in buildable if r.operation not in TRAINING_OPERATIONS] or buildable
        for group in (
            _train_stacks(batch, keep, made, spread, stack)
            if batch[0].operation in TRAINING_OPERATIONS
            else _apply_operations(batch, made)
        ):
            for recipe in group:
                del pending[recipe.digest]
            if progress is not None:
                progress("making zoo networks", total - len(pending), total)
    return [
        model_of(name if isinstance(recipes, Mapping) else str(r.digest), made[r.digest][1], made[r.digest][0])
        for name, r in given.items()
    ]


def _not_cached(recipes: Iterable[Recipe], keep: bool, made: dict[str, Made]) -> dict[Digest, Recipe]:
    """Recipes by digest that are neither made nor cached, with their ancestors; what is cached is read."""
    pending: dict[Digest, Recipe] = {}
    unchecked = {r.digest: r for r in recipes}
    while unchecked:
        unchecked = {d: r for d, r in unchecked.items() if d not in made and d not in pending}
        for r in unchecked.values():
            _operation(r.operation)
            check_preconditions(r, r.operation in TRAINING_OPERATIONS)
        learnt = {
            d: _training_run(r).digest for d, r in unchecked.items() if r.operation in TRAINING_OPERATIONS and keep
        }
        found = cache.find(set(learnt.values()))
        for d in [d for d, run in learnt.items() if run in found]:
            made[d] = _checkpoint_of_run(unchecked.pop(d), *found[learnt[d]])
        pending |= unchecked
        unchecked = {p.digest: p for r in unchecked.values() for p in r.parents}
    return pending


def _training_run(recipe: Recipe) -> Recipe:
    """The training run that a recipe is a checkpoint of: the recipe without its `quarter`."""
    if "quarter" not in recipe.parameters:
        return recipe
    return replace(recipe, parameters={k: v for k, v in recipe.parameters.items() if k != "quarter"})


def _checkpoint_of_run(recipe: Recipe, config: dict[str, Any], arrays: Arrays) -> Made:
    """Configuration and weights of a recipe's checkpoint, sorted by name: later random draws depend on this order."""
    if recipe.operation != "train":
        return config, dict(sorted(arrays.items()))
    quarter = int(recipe.parameters.get("quarter", 4))
    return config, {n: a[quarter - 1] for n, a in sorted(arrays.items())}


def _apply_operations(recipes: list[Recipe], made: dict[str, Made]) -> Iterable[list[Recipe]]:
    for recipe in recipes:
        config, arrays = _operation(recipe.operation)(recipe, [made[p.digest] for p in recipe.parents])
        made[recipe.digest] = config, dict(sorted(arrays.items()))
    yield recipes


def _train_stacks(
    recipes: list[Recipe], keep: bool, made: dict[str, Made], spread: Map | None, size: int
) -> Iterable[list[Recipe]]:
    """Train, stack after stack, and give the recipes that each stack has made."""
    from stemma.zoo.training_jobs import group_into_stacks

    runs = {_training_run(r).digest: _training_run(r) for r in recipes}
    jobs: list[TrainingJob] = [_operation(r.operation)(r, [made[p.digest] for p in r.parents]) for r in runs.values()]
    digests = list(runs)
    stacks = group_into_stacks(jobs, size)
    if spread is None:
        trained_stacks: Iterable[list[Arrays]] = (
            _trained([jobs[i] for i in stack], [runs[digests[i]] for i in stack]) for stack in stacks
        )
    else:
        given = ([(runs[digests[i]], [made[p.digest] for p in runs[digests[i]].parents]) for i in s] for s in stacks)
        trained_stacks = spread(train_stack, given)
    for indices, results in zip(stacks, trained_stacks, strict=True):
        _check_finite([runs[digests[i]] for i in indices], results)
        config = dict(jobs[indices[0]].config)
        if keep:
            cache.put([digests[i] for i in indices], results, config)
        trained = {digests[i]: result for i, result in zip(indices, results, strict=True)}
        group = [r for r in recipes if _training_run(r).digest in trained]
        for recipe in group:
            made[recipe.digest] = _checkpoint_of_run(recipe, config, trained[_training_run(recipe).digest])
        yield group


def train_stack(stack: Sequence[tuple[Recipe, list[Made]]]) -> list[Arrays]:
    """Train one stack from recipes and the weights of their parents, in whatever process.

    Args:
        stack: Training runs that can be trained together, each with its parents.

    Returns:
        Their weights.
    """
    return _trained([_operation(r.operation)(r, parents) for r, parents in stack], [r for r, _ in stack])


def _trained(jobs: Sequence[TrainingJob], runs: Sequence[Recipe]) -> list[Arrays]:
    from stemma.zoo.training_jobs import run_jobs

    return [_final_weights(snapshots, run) for snapshots, run in zip(run_jobs(jobs), runs, strict=True)]


def _final_weights(snapshots: list[Arrays], run: Recipe) -> Arrays:
    """Final weights by name; of a training from scratch those after each quarter, `[4, …]`."""
    return {n: np.stack([m[n] for m in snapshots]) for n in snapshots[0]} if run.operation == "train" else snapshots[-1]


def _check_finite(runs: list[Recipe], results: list[Arrays]) -> None:
    for run, arrays in zip(runs, results, strict=True):
        if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
            raise MisuseError(
                f"training a {run.kind} by {run.operation} with {dict(run.parameters)} diverged: weights are not "
                "finite. Lower its learning rate."
            )
