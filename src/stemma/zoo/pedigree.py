"""Whole families with a known history: the recipes of each, and the truth about every pair."""

from collections.abc import Callable, Sequence
from typing import Any

from stemma.errors import UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo.collection import Member, Zoo
from stemma.zoo.kinds import KINDS, kind_of
from stemma.zoo.recipe import Map, Recipe
from stemma.zoo.recipe_builder import build, build_all

Progress = Callable[[str, int, int | None], None]
"""Told what happens, how many steps are done, and of how many where that is known."""

Row = tuple[str, str, R | None, tuple[str, ...], dict[str, Any]]

_EVERY: tuple[Row, ...] = (
    ("root", "train", None, (), {}),
    ("copy", "copy", R.COPY, ("root",), {}),
    ("resaved", "copy", R.COPY, ("root",), {"form": "torch-nested"}),
    ("half", "half", R.REFORMATTED, ("root",), {}),
    ("renamed", "rename", R.REFORMATTED, ("root",), {}),
    ("permuted", "permute", R.PERMUTED, ("root",), {}),
    ("rescaled", "rescale", R.PERMUTED, ("root",), {}),
    ("finetuned", "finetune", R.FINETUNED, ("root",), {}),
    ("finetuned-twice", "finetune", R.FINETUNED, ("finetuned",), {}),
    ("finetuned-other-data", "finetune", R.FINETUNED, ("root",), {"part": "b"}),
    ("finetuned-other-data-twice", "finetune", R.FINETUNED, ("finetuned-other-data",), {"part": "b"}),
    ("head-replaced", "replace-head", R.HEAD_REPLACED, ("root",), {}),
    ("part-inherited", "inherit-part", R.PART_INHERITED, ("root",), {"part": "b"}),
    ("lora", "lora", R.LORA, ("root",), {"part": "b", "rank": 2}),
    ("unlearned", "unlearn", R.UNLEARNED, ("root",), {"forget": 3}),
    ("weights-pruned", "prune-weights", R.PRUNED, ("root",), {"ratio": 0.5}),
    ("weights-pruned-finetuned", "finetune", R.FINETUNED, ("weights-pruned",), {"keep_zeros": True}),
    ("units-pruned", "prune-units", R.PRUNED, ("root",), {"ratio": 0.25}),
    ("units-pruned-finetuned", "finetune", R.FINETUNED, ("units-pruned",), {}),
    ("layers-pruned", "prune-layers", R.PRUNED, ("root",), {}),
    ("layers-pruned-finetuned", "finetune", R.FINETUNED, ("layers-pruned",), {}),
    ("int8", "int8", R.QUANTIZED, ("root",), {}),
    ("int4", "int4", R.QUANTIZED, ("root",), {"block": 32}),
    ("finetuned-third", "finetune", R.FINETUNED, ("root",), {"part": "b"}),
    ("merged-two", "merge", R.MERGED, ("finetuned", "finetuned-other-data"), {}),
    ("merged-three", "merge", R.MERGED, ("finetuned", "finetuned-other-data", "finetuned-third"), {}),
    ("distilled", "distill", R.DISTILLED, ("root",), {"part": "b"}),
    ("distilled-other-architecture", "distill", R.DISTILLED, ("root",), {"part": "b", "other": True}),
    ("run-quarter", "train", None, (), {"quarter": 1, "run_of": "root"}),
    ("run-half", "train", None, (), {"quarter": 2, "run_of": "root"}),
    ("run-three-quarters", "train", None, (), {"quarter": 3, "run_of": "root"}),
    ("same-init", "train", None, (), {"part": "b", "start_of": "root"}),
    ("independent-1", "train", None, (), {}),
    ("independent-2", "train", None, (), {}),
    ("independent-3", "train", None, (), {}),
    ("independent-other-data", "train", None, (), {"part": "b"}),
    ("independent-other-architecture", "train", None, (), {"other": True}),
    ("untrained", "train", None, (), {"untrained": True}),
)
_TRANSPOSED: Row = ("transposed", "transpose", R.REFORMATTED, ("root",), {})
_ZEROED: Row = ("layers-zeroed", "zero-layers", R.PRUNED, ("root",), {})
_FOLDED: Row = ("norms-folded", "fold-norms", R.PERMUTED, ("root",), {})
_OWN: dict[str, tuple[Row, ...]] = {
    "mlp": (_TRANSPOSED,),
    "cnn": (("norms-folded", "fold-norms", R.REFORMATTED, ("root",), {}), _TRANSPOSED, _ZEROED),
    "vit": (_FOLDED, _TRANSPOSED, _ZEROED, ("fused", "fuse-projections", R.REFORMATTED, ("root",), {})),
    "lm": (
        _FOLDED,
        _TRANSPOSED,
        _ZEROED,
        ("rotated", "rotate", R.PERMUTED, ("root",), {}),
        ("vocabulary-grown", "grow-vocabulary", R.REFORMATTED, ("root",), {"added": 16}),
    ),
}

NAMES: dict[str, tuple[str, ...]] = {kind: tuple(row[0] for row in _EVERY + own) for kind, own in _OWN.items()}
"""The members of a family of each kind, parents before children."""

_NOT_OPERATION = ("part", "form", "run_of", "start_of")


def recipes(kind: str, seed: int = 0) -> dict[str, Recipe]:
    """The recipes of one family by member name, parents before children; each member has a seed of its own."""
    kind_of(kind)
    made: dict[str, Recipe] = {}
    for i, (name, operation, relation, parents, parameters) in enumerate(_EVERY + _OWN[kind]):
        given = {k: v for k, v in parameters.items() if k not in _NOT_OPERATION}
        own_seed = 1000 * seed + i
        if "run_of" in parameters:
            own_seed = made[parameters["run_of"]].seed
        if "start_of" in parameters:
            given["start"] = made[parameters["start_of"]].seed
        origin = tuple(made[p] for p in parents)
        made[name] = Recipe(kind, operation, relation, origin, given, own_seed, parameters.get("part", "a"))
    return made


def family(
    kind: str,
    seed: int = 0,
    *,
    only: Sequence[str] | None = None,
    keep: bool = True,
    progress: Progress | None = None,
    spread: Map | None = None,
) -> Zoo:
    """A root and everything made from it, beside models that were not.

    Cost on one core, first time: perceptron 5 s, CNN 8 s, vision transformer 35 s, language model 60 s.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other families.
        only: Names of members, see `NAMES`; all unless given.
        keep: Use the cache for what is trained.
        progress: Called with the member that is made next, how many are done, and of how many.
        spread: Trains networks elsewhere; in this process unless given.

    Returns:
        Members named `KIND/NAME`; parents that were not asked for are absent, and its `truth` says so.

    Raises:
        UnknownNameError: If the family has no member of this name.
    """
    all_recipes = recipes(kind, seed)
    rows = {row[0]: row for row in _EVERY + _OWN[kind]}
    if unknown := sorted(set(only or ()) - set(all_recipes)):
        raise UnknownNameError(f"the {kind} family has no member {unknown[0]!r}. There are: {', '.join(all_recipes)}.")
    members, weights = [], {}
    selected = [name for name in all_recipes if only is None or name in only]
    if spread is not None:  # each by itself, as below, so that rounding is the same
        build_all(
            [all_recipes[n] for n in selected], keep=keep, progress=progress, made=weights, spread=spread, stack=1
        )
    for i, name in enumerate(selected):
        recipe, full = all_recipes[name], f"{kind}/{name}"
        if progress is not None:
            progress(f"making {full}", i, len(selected))
        _, _, relation, parents, parameters = rows[name]
        members.append(
            Member(
                full,
                build(recipe, full, keep=keep, made=weights),
                recipe,
                tuple(f"{kind}/{p}" for p in parents),
                relation,
                parameters.get("form", "folder"),
            )
        )
    return Zoo(tuple(members), _history(kind, all_recipes))


def _history(kind: str, recipes: dict[str, Recipe]) -> dict[str, tuple[str, ...]]:
    """Parents of every member of the family by full name, whether it is in the zoo or not."""
    names = {recipe.digest: name for name, recipe in reversed(recipes.items())}
    return {f"{kind}/{n}": tuple(f"{kind}/{names[p.digest]}" for p in r.parents) for n, r in recipes.items()}


def families(
    kinds: Sequence[str] = tuple(KINDS), seed: int = 0, *, keep: bool = True, progress: Progress | None = None
) -> Zoo:
    """One family of each kind, together; the truth also covers pairs across kinds."""
    zoos = [family(kind, seed, keep=keep, progress=progress) for kind in kinds]
    return Zoo(
        tuple(m for z in zoos for m in z.members), {name: parents for z in zoos for name, parents in z.history.items()}
    )
