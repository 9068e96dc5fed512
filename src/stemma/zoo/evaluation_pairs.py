"""Pairs of models for every relation, at fixed strengths, to evaluate the naming of relations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from stemma.types import RelationKind as R
from stemma.zoo.finetuning_recipes import FINETUNING_RECIPES, with_label_seed
from stemma.zoo.kinds import kind_of, seed_for
from stemma.zoo.merged_operations import experts
from stemma.zoo.recipe import Recipe

_STREAM = 26


@dataclass(frozen=True)
class EvaluationPair:
    """Two models and the relation of the second to the first.

    Attributes:
        name: `KIND-relations-SEED/NAME`.
        a: The earlier model, or either of two where neither is.
        b: The later one.
        relation: The truth.
        steps: Operations from a to b, in order; empty where b was not made from a.
    """

    name: str
    a: Recipe
    b: Recipe
    relation: R
    steps: tuple[R, ...] = ()


Row = tuple[str, str, R | None, tuple[str, ...], dict[str, Any]]

_ROOTS: tuple[Row, ...] = (
    ("root", "train", None, (), {}),
    ("quarter", "train", None, (), {"quarter": 1, "run_of": "root"}),
    ("half-way", "train", None, (), {"quarter": 2, "run_of": "root"}),
    ("three-quarters", "train", None, (), {"quarter": 3, "run_of": "root"}),
    ("same-init-other-data", "train", None, (), {"part": "b", "start_of": "root"}),
    ("same-init-other-order", "train", None, (), {"start_of": "root"}),
    ("same-init-other-task", "train", None, (), {"start_of": "root", "task": "shuffled"}),
    ("stranger", "train", None, (), {}),
    ("stranger-other-data", "train", None, (), {"part": "b"}),
    ("stranger-other-architecture", "train", None, (), {"other": True}),
    ("stranger-orthogonal", "train", None, (), {"init": "orthogonal"}),
    ("untrained", "train", None, (), {"untrained": True}),
)

_MADE: tuple[Row, ...] = (
    ("copy", "copy", R.COPY, ("root",), {}),
    ("half", "half", R.REFORMATTED, ("root",), {}),
    ("renamed", "rename", R.REFORMATTED, ("root",), {}),
    ("transposed", "transpose", R.REFORMATTED, ("root",), {}),
    ("permuted", "permute", R.PERMUTED, ("root",), {}),
    ("rescaled", "rescale", R.PERMUTED, ("root",), {}),
    ("permuted-rescaled", "rescale", R.PERMUTED, ("permuted",), {}),
    ("int8", "int8", R.QUANTIZED, ("root",), {}),
    ("8-bits-rows", "quantize", R.QUANTIZED, ("root",), {"bits": 8}),
    ("6-bits-matrix", "quantize", R.QUANTIZED, ("root",), {"bits": 6, "block": -1}),
    ("4-bits-blocks", "int4", R.QUANTIZED, ("root",), {"block": 32}),
    ("4-bits-zero-point", "quantize", R.QUANTIZED, ("root",), {"bits": 4, "block": 16, "symmetric": False}),
    ("3-bits-blocks", "quantize", R.QUANTIZED, ("root",), {"bits": 3, "block": 16}),
    ("pruned-30", "prune-weights", R.PRUNED, ("root",), {"ratio": 0.3}),
    ("pruned-50", "prune-weights", R.PRUNED, ("root",), {"ratio": 0.5}),
    ("pruned-80", "prune-weights", R.PRUNED, ("root",), {"ratio": 0.8}),
    ("pruned-random-40", "prune-weights", R.PRUNED, ("root",), {"ratio": 0.4, "by": "random"}),
    ("units-pruned", "prune-units", R.PRUNED, ("root",), {"ratio": 0.25}),
    ("layers-pruned", "prune-layers", R.PRUNED, ("root",), {}),
    ("unlearned-3", "unlearn", R.UNLEARNED, ("root",), {"forget": 3}),
    ("unlearned-5", "unlearn", R.UNLEARNED, ("root",), {"forget": 5}),
    ("unlearned-8", "unlearn", R.UNLEARNED, ("root",), {"forget": 8}),
    ("unlearned-1-part-b", "unlearn", R.UNLEARNED, ("root",), {"forget": 1, "part": "b"}),
    ("finetuned-same-data", "finetune", R.FINETUNED, ("root",), {}),
    ("finetuned-other-data", "finetune", R.FINETUNED, ("root",), {"part": "b"}),
    ("finetuned-task", "finetune", R.FINETUNED, ("root",), {"tuning": "adam", "task": "shuffled"}),
    ("finetuned-sgd", "finetune", R.FINETUNED, ("root",), {"tuning": "sgd", "task": "shuffled"}),
    ("finetuned-decayed", "finetune", R.FINETUNED, ("root",), {"tuning": "adamw", "task": "shuffled", "part": "b"}),
    ("finetuned-long", "finetune", R.FINETUNED, ("root",), {"tuning": "adam-long", "task": "shuffled"}),
    ("lora-1", "lora", R.LORA, ("root",), {"rank": 1, "part": "b"}),
    ("lora-2", "lora", R.LORA, ("root",), {"rank": 2, "part": "b"}),
    ("lora-4", "lora", R.LORA, ("root",), {"rank": 4, "tuning": "adam", "task": "shuffled"}),
    ("lora-8", "lora", R.LORA, ("root",), {"rank": 8, "tuning": "adam", "task": "shuffled"}),
    ("head-parity", "replace-head", R.HEAD_REPLACED, ("root",), {}),
    ("head-parity-part-b", "replace-head", R.HEAD_REPLACED, ("root",), {"part": "b"}),
    ("head-task", "replace-head", R.HEAD_REPLACED, ("root",), {"tuning": "adam", "task": "shuffled"}),
    ("head-task-long", "replace-head", R.HEAD_REPLACED, ("root",), {"tuning": "adam-long", "task": "shuffled"}),
    ("part-same-data", "inherit-part", R.PART_INHERITED, ("root",), {}),
    ("part-other-data", "inherit-part", R.PART_INHERITED, ("root",), {"part": "b"}),
    ("part-task", "inherit-part", R.PART_INHERITED, ("root",), {"task": "shuffled"}),
    ("part-task-part-b", "inherit-part", R.PART_INHERITED, ("root",), {"task": "shuffled", "part": "b"}),
    ("distilled", "distill", R.DISTILLED, ("root",), {"part": "b"}),
    ("distilled-same-data", "distill", R.DISTILLED, ("root",), {}),
    ("distilled-other-architecture", "distill", R.DISTILLED, ("root",), {"part": "b", "other": True}),
    ("distilled-twice-as-long", "distill", R.DISTILLED, ("root",), {"part": "b", "longer": 2}),
    ("merged", "merge", R.MERGED, ("finetuned-same-data", "finetuned-other-data"), {}),
    ("merged-uneven", "merge", R.MERGED, ("finetuned-task", "finetuned-other-data"), {"weights": [0.7, 0.3]}),
    ("task-arithmetic", "task-arithmetic", R.MERGED, ("root", "finetuned-task", "finetuned-other-data"),
     {"scales": [0.6, 0.8]}),
    ("ties", "ties", R.MERGED, ("root", "finetuned-task", "finetuned-decayed"), {"density": 0.5}),
    ("slerp", "slerp", R.MERGED, ("finetuned-task", "finetuned-long"), {"t": 0.4}),
    ("copy-finetuned", "copy", R.COPY, ("finetuned-task",), {}),
    ("copy-int8", "copy", R.COPY, ("int8",), {}),
    ("copy-pruned", "copy", R.COPY, ("pruned-50",), {}),
    ("half-finetuned", "half", R.REFORMATTED, ("finetuned-other-data",), {}),
    ("permuted-lora", "permute", R.PERMUTED, ("lora-4",), {}),
)  # fmt: skip

_OWN: Mapping[str, tuple[Row, ...]] = {
    "mlp": (),
    "cnn": (("norms-folded", "fold-norms", R.REFORMATTED, ("root",), {}),),
    "vit": (
        ("norms-folded", "fold-norms", R.PERMUTED, ("root",), {}),
        ("fused", "fuse-projections", R.REFORMATTED, ("root",), {}),
    ),
    "lm": (
        ("rotated", "rotate", R.PERMUTED, ("root",), {}),
        ("vocabulary-grown", "grow-vocabulary", R.REFORMATTED, ("root",), {"added": 16}),
    ),
}

_MIXED: tuple[Row, ...] = (
    ("lora-int8", "int8", R.QUANTIZED, ("lora-4",), {}),
    ("lora-4-bits", "int4", R.QUANTIZED, ("lora-2",), {"block": 32}),
    ("finetuned-int8", "int8", R.QUANTIZED, ("finetuned-task",), {}),
    ("finetuned-4-bits", "int4", R.QUANTIZED, ("finetuned-other-data",), {"block": 32}),
    ("finetuned-pruned", "prune-weights", R.PRUNED, ("finetuned-other-data",), {"ratio": 0.5}),
    ("pruned-finetuned", "finetune", R.FINETUNED, ("pruned-50",), {"keep_zeros": True}),
    ("pruned-80-finetuned", "finetune", R.FINETUNED, ("pruned-80",), {"keep_zeros": True, "part": "b"}),
    ("pruned-int8", "int8", R.QUANTIZED, ("pruned-50",), {}),
    ("units-pruned-finetuned", "finetune", R.FINETUNED, ("units-pruned",), {}),
    ("permuted-finetuned", "finetune", R.FINETUNED, ("permuted",), {"part": "b"}),
    ("quantized-finetuned", "finetune", R.FINETUNED, ("4-bits-blocks",), {"part": "b"}),
    ("merged-finetuned", "finetune", R.FINETUNED, ("merged-uneven",), {}),
    ("finetuned-lora", "lora", R.LORA, ("finetuned-other-data",), {"rank": 2}),
)

_PAIRS: tuple[tuple[R, str, str], ...] = (
    (R.SAME_RUN, "quarter", "root"),
    (R.SAME_RUN, "half-way", "root"),
    (R.SAME_RUN, "three-quarters", "root"),
    (R.SAME_RUN, "half-way", "three-quarters"),
    (R.SAME_INIT, "root", "same-init-other-data"),
    (R.SAME_INIT, "root", "same-init-other-order"),
    (R.SAME_INIT, "root", "same-init-other-task"),
    (R.SAME_INIT, "same-init-other-data", "same-init-other-task"),
    (R.SIBLINGS, "finetuned-same-data", "finetuned-other-data"),
    (R.SIBLINGS, "finetuned-task", "finetuned-decayed"),
    (R.SIBLINGS, "finetuned-sgd", "finetuned-long"),
    (R.SIBLINGS, "finetuned-task", "lora-4"),
    (R.SIBLINGS, "finetuned-task", "cousin"),
    (R.RELATED, "root", "finetuned-twice"),
    (R.RELATED, "root", "finetuned-twice-other-task"),
    (R.RELATED, "root", "cousin"),
    (R.RELATED, "three-quarters", "finetuned-task"),
    (R.UNRELATED, "root", "stranger"),
    (R.UNRELATED, "root", "stranger-other-data"),
    (R.UNRELATED, "root", "stranger-other-architecture"),
    (R.UNRELATED, "finetuned-task", "stranger-orthogonal"),
    (R.UNRELATED, "root", "untrained"),
)

_FURTHER: tuple[Row, ...] = (
    ("finetuned-twice", "finetune", None, ("finetuned-other-data",), {}),
    ("finetuned-twice-other-task", "finetune", None, ("finetuned-task",), {"tuning": "adam", "task": "shuffled"}),
    ("cousin", "finetune", None, ("finetuned-other-data",), {"tuning": "adam", "task": "shuffled"}),
)


def relations(kind: str, seed: int = 0) -> list[EvaluationPair]:
    """Three to six pairs for every relation around one root: about seventy-five.

    Cost on one core: perceptron 5 s, CNN 15 s, vision transformer and language model about a minute and a half.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other roots, and everything from them.

    Returns:
        Pairs; `siblings` have any common ancestor, `related` is an ancestor further away. `build_all` makes their
        models.
    """
    recipes = _recipes(kind, seed)
    rows = _MADE + _OWN[kind]
    found = [_pair(kind, seed, name, recipes, relation, (relation,)) for name, _, relation, _, _ in rows if relation]
    pairs = (
        EvaluationPair(f"{kind}-relations-{seed}/{a}+{b}", recipes[a], recipes[b], relation)
        for relation, a, b in _PAIRS
    )
    return found + list(pairs)


def models(kind: str, seed: int = 0) -> dict[str, Recipe]:
    """Recipes of all models in the pairs of one root, named `KIND-relations-SEED/NAME`."""
    return {f"{kind}-relations-{seed}/{name}": recipe for name, recipe in _recipes(kind, seed).items()}


def histories(kind: str, seed: int = 0) -> list[EvaluationPair]:
    """Pairs with two operations between them, one after the other.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: As for `relations`, whose models these are made of.

    Returns:
        Pairs whose `steps` are the sequence and whose relation is that of the last step; a is the root, or the first
        expert where the first step is a merge.
    """
    recipes = _recipes(kind, seed)
    names = {r.digest: n for n, r in recipes.items()}
    relation_of = {name: relation for name, _, relation, _, _ in _MADE}
    out = []
    for name, _, relation, parents, _ in _MIXED:
        first_relation = relation_of[parents[0]]
        if relation is not None and first_relation is not None:
            pair = _pair(kind, seed, name, recipes, relation, (first_relation, relation))
            intermediate = names[pair.a.digest]
            out.append(replace(pair, a=experts(recipes[intermediate])[0]))
    return out


def _pair(
    kind: str, seed: int, name: str, recipes: Mapping[str, Recipe], relation: R, steps: tuple[R, ...]
) -> EvaluationPair:
    b = recipes[name]
    return EvaluationPair(f"{kind}-relations-{seed}/{name}", experts(b)[0], b, relation, steps)


_NOT_OPERATION = frozenset({"part", "run_of", "start_of", "tuning", "longer"})


def _recipes(kind: str, seed: int) -> Mapping[str, Recipe]:
    """Recipes of all models in the pairs of one root, by name."""
    recipes: dict[str, Recipe] = {}
    for i, (name, operation, relation, parents, options) in enumerate(_ROOTS + _MADE + _OWN[kind] + _MIXED + _FURTHER):
        own = seed_for(seed, _STREAM, i)
        given = {k: v for k, v in options.items() if k not in _NOT_OPERATION}
        if "tuning" in options:
            given |= FINETUNING_RECIPES[options["tuning"]].parameters(kind)
        if "task" in given:
            given["task"] = with_label_seed(given["task"], own)
        if "longer" in options:
            given["steps"] = options["longer"] * kind_of(kind).schedule.steps
        if "run_of" in options:
            own = recipes[options["run_of"]].seed
        if "start_of" in options:
            given["start"] = recipes[options["start_of"]].seed
        origin = tuple(recipes[p] for p in parents)
        relation = R.FINETUNED if operation == "finetune" else relation
        recipes[name] = Recipe(kind, operation, relation, origin, given, own, options.get("part", "a"))
    return MappingProxyType(recipes)
