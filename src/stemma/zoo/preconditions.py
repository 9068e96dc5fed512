"""What operations demand of a recipe: which kinds they exist for, how many parents, which parameters."""

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
"""Kinds that an operation exists for, where not all."""

_FEWEST: Mapping[str, int] = {
    "train": 0, "merge": 2, "task-arithmetic": 2, "ties": 2, "dare": 2, "slerp": 2, "layerwise": 2, "franken": 2,
}  # fmt: skip
"""Fewest parents, where not one."""

_NEEDED: Mapping[str, str] = {
    "unlearn": "forget", "prune-weights": "ratio", "prune-units": "ratio", "int4": "block", "quantize": "bits",
    "grow-vocabulary": "added",
}  # fmt: skip
"""The parameter without which an operation says nothing."""

LEARNS = (
    "steps", "rate", "batch", "optimizer", "weight_decay", "decay", "init", "freeze", "keep_zeros", "rank", "modules",
    "data", "task", "shots", "imbalance", "subset", "forget", "start", "other", "untrained", "config", "quarter",
)  # fmt: skip
"""Parameters that operations which train understand."""

CHANGES = (
    "added", "within_heads", "ratio", "by", "bits", "block", "symmetric", "weights", "scales", "density", "scale",
    "drop", "t", "layers",
)  # fmt: skip
"""Parameters that operations which compute understand."""

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


def refuse(recipe: Recipe, learns: bool) -> None:
    """Raise if a recipe says nothing that could be done; what depends on the parents' weights is found later.

    Args:
        recipe: Any recipe of a known operation.
        learns: Whether the operation trains.

    Raises:
        MisuseError: What is wrong, and what the operation takes.
    """
    kind_of(recipe.kind)
    name, given = recipe.operation, recipe.parameters
    kinds, fewest = _KINDS.get(name, (recipe.kind,)), _FEWEST.get(name, 1)
    if recipe.kind not in kinds:
        raise MisuseError(f"{name} is for {', '.join(kinds)}, and this is a recipe for {recipe.kind}.")
    if len(recipe.parents) < fewest or (not fewest and recipe.parents):
        raise MisuseError(
            f"{name} takes {'no parents' if not fewest else f'at least {fewest} of them'}, and the recipe has "
            f"{len(recipe.parents)} parents."
        )
    understood = LEARNS if learns else CHANGES
    if unknown := sorted(set(given) - set(understood)):
        raise MisuseError(f"{name} has no parameter {unknown[0]!r}. There are: {', '.join(understood)}.")
    needed = _NEEDED.get(name)
    if needed is not None and needed not in given and (name, recipe.kind) != ("unlearn", "lm"):
        raise MisuseError(f"{name} needs the parameter {needed!r}, and the recipe has {dict(given)}.")
    for parameter in set(given) & {*_LOWEST, *_HIGHEST}:
        low, high = _LOWEST.get(parameter, -float("inf")), _HIGHEST.get(parameter, float("inf"))
        if not low <= given[parameter] <= high:
            raise MisuseError(f"{parameter!r} is {given[parameter]}, and should be {low} or more{_most(high)}.")


def _most(high: float) -> str:
    return "" if high == float("inf") else f" and at most {high}"
