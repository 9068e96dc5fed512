"""Preconditions of operations: kinds, number of parents, and parameters of a recipe."""

from collections.abc import Mapping

from stemma.errors import MisuseError
from stemma.zoo.kinds import kind_of
from stemma.zoo.recipe import Recipe

_KINDS: Mapping[str, tuple[str, ...]] = {
    "fuse-projections": ("vit",),
    "rotate": ("lm",),
    "grow-vocabulary": ("lm",),
    "fold-norms": ("cnn", "vit", "lm"),
    "zero-layers": ("cnn", "vit", "lm"),
}
"""Kinds that an operation is limited to."""

_MIN_PARENTS: Mapping[str, int] = {
    "train": 0, "merge": 2, "task-arithmetic": 2, "ties": 2, "dare": 2, "slerp": 2, "layerwise": 2, "franken": 2,
}  # fmt: skip
"""Smallest number of parents, where not one."""

_REQUIRED: Mapping[str, str] = {
    "unlearn": "forget", "prune-weights": "ratio", "prune-units": "ratio", "int4": "block", "quantize": "bits",
    "grow-vocabulary": "added",
}  # fmt: skip
"""Required parameter of an operation."""

TRAINING_PARAMETERS = (
    "steps", "rate", "batch", "optimizer", "weight_decay", "decay", "init", "freeze", "keep_zeros", "rank", "modules",
    "data", "task", "shots", "imbalance", "subset", "forget", "start", "other", "untrained", "config", "quarter",
)  # fmt: skip
"""Parameters of operations that train."""

EDITING_PARAMETERS = (
    "added", "within_heads", "ratio", "by", "bits", "block", "symmetric", "weights", "scales", "density", "scale",
    "drop", "t", "layers",
)  # fmt: skip
"""Parameters of operations that compute."""

_LOWEST: Mapping[str, float] = {
    "steps": 0,
    "batch": 1,
    "rank": 1,
    "rate": 0,
    "weight_decay": 0,
    "quarter": 1,
    "shots": 0,
}
_HIGHEST: Mapping[str, float] = {"quarter": 4}


def check_preconditions(recipe: Recipe, trains: bool) -> None:
    """Check a recipe before anything is made; what depends on the parents' weights is checked later."""
    kind_of(recipe.kind)
    name, given = recipe.operation, recipe.parameters
    kinds, min_parents = _KINDS.get(name, (recipe.kind,)), _MIN_PARENTS.get(name, 1)
    if recipe.kind not in kinds:
        raise MisuseError(f"{name} works on {', '.join(kinds)}, but the recipe is for {recipe.kind}.")
    if len(recipe.parents) < min_parents or (not min_parents and recipe.parents):
        raise MisuseError(
            f"{name} takes {f'at least {min_parents}' if min_parents else 'no'} parents, and the recipe has "
            f"{len(recipe.parents)}."
        )
    known_parameters = TRAINING_PARAMETERS if trains else EDITING_PARAMETERS
    if unknown := sorted(set(given) - set(known_parameters)):
        raise MisuseError(f"{name} has no parameter {unknown[0]!r}. There are: {', '.join(known_parameters)}.")
    required = _REQUIRED.get(name)
    if required is not None and required not in given and (name, recipe.kind) != ("unlearn", "lm"):
        raise MisuseError(f"{name} needs the parameter {required!r}, but the recipe has {dict(given)}.")
    for parameter in set(given) & {*_LOWEST, *_HIGHEST}:
        low, high = _LOWEST.get(parameter, -float("inf")), _HIGHEST.get(parameter, float("inf"))
        if not low <= given[parameter] <= high:
            raise MisuseError(f"{parameter!r} is {given[parameter]}, and must be {low} or more{_at_most(high)}.")


def _at_most(high: float) -> str:
    return "" if high == float("inf") else f" and at most {high}"
