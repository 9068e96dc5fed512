"""What the zoo's lineages cost, whether their children have learnt, and how far a model depends on its stack.

Children: every child of trees with the default tunings and tasks, examined on the test part of its own task, beside its
parent's answers to the same questions. Costs: processor seconds of one thread, nothing cached. Stack: the same recipes
made alone and among thirty others, the distance of the two relative to what was learnt.

    python benchmarks/zoo.py     writes benchmarks/results/zoo.json
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import stemma
from stemma.checkpoints.model import Model
from stemma.types import RelationKind
from stemma.zoo import data
from stemma.zoo.collection import Member, Zoo
from stemma.zoo.lineages import FINETUNING_RECIPES, as_zoo, flat, forest, tree
from stemma.zoo.memory import arrays_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build, build_all
from stemma.zoo.training import accuracy, bits_per_byte
from testbeds.measured import write_result

SEED = 7100
TREES = {"mlp": 8, "cnn": 4, "vit": 1, "lm": 1}
CLEARLY = {"mlp": 0.3, "cnn": 0.3, "vit": 0.3, "lm": 1.0}
TEXT = 150


def vector(model: Model) -> np.ndarray:
    return np.concatenate([a.ravel() for _, a in sorted(arrays_of(model).items()) if a.ndim > 1]).astype(float)


def score(model: Model, recipe: Recipe) -> float:
    """Accuracy on the test part of a recipe's task; of text, minus the bits per byte."""
    examples = data.examples_for(recipe, "test")
    if recipe.kind == "lm":
        few = data.Examples(examples.inputs[:TEXT], examples.targets[:TEXT])
        return -float(bits_per_byte(model.config or {}, [arrays_of(model)], few)[0])
    return float(accuracy(model.config or {}, [arrays_of(model)], examples)[0])


def interval(per_tree: Sequence[Sequence[float]]) -> list[float]:
    """95 % interval of a mean, trees drawn with replacement."""
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(per_tree), size=(2000, len(per_tree)))
    means = [np.mean(np.concatenate([per_tree[i] for i in row])) for row in drawn]
    return [round(float(q), 4) for q in np.quantile(means, [0.025, 0.975])]


def child(zoo: Zoo, member: Member) -> dict[str, Any]:
    parent = zoo[member.parents[0]].model
    a, b = vector(parent), vector(member.model)
    return {
        "after": score(member.model, member.recipe),
        "before": score(parent, member.recipe),
        "moved": float(np.linalg.norm(b - a) / np.linalg.norm(a)),
        "optimizer": member.recipe.parameters["optimizer"],
    }


def learning(kind: str) -> dict[str, Any]:
    trees, seconds = [], []
    for i in range(TREES[kind]):
        start = time.process_time()
        zoo = as_zoo(tree(kind, SEED + i), keep=False)
        seconds.append(time.process_time() - start)
        trees.append([child(zoo, m) for m in zoo.members if m.parents])
    children = [c for one in trees for c in one]
    gain = [[c["after"] - c["before"] for c in one] for one in trees]
    every = np.concatenate(gain)
    return {
        "trees": len(trees),
        "children": len(children),
        "seconds_a_tree": round(float(np.median(seconds)), 2),
        "score": "minus bits per byte" if kind == "lm" else "accuracy",
        "after": round(float(np.mean([c["after"] for c in children])), 4),
        "before": round(float(np.mean([c["before"] for c in children])), 4),
        "gain": round(float(every.mean()), 4),
        "gain_interval_over_trees": interval(gain) if len(trees) > 1 else None,
        "smallest_gain": round(float(every.min()), 4),
        "clearly": CLEARLY[kind],
        "learnt": int((every >= CLEARLY[kind]).sum()),
        "moved": {q: round(float(np.quantile([c["moved"] for c in children], q)), 3) for q in (0.05, 0.5, 0.95)},
        "after_by_optimizer": {
            name: round(float(np.mean([c["after"] for c in children if c["optimizer"] == name])), 4)
            for name in sorted({c["optimizer"] for c in children})
        },
    }


def cost(recipes: dict[str, Recipe]) -> dict[str, Any]:
    start = time.process_time()
    build_all(recipes, keep=False)
    return {"models": len(recipes), "seconds": round(time.process_time() - start, 2)}


def stack(kind: str) -> dict[str, Any]:
    """The same recipe alone and in company."""
    apart = []
    root = Recipe(kind, "train", seed=SEED)
    start = vector(build(root, keep=False))
    children = [
        Recipe(kind, "finetune", RelationKind.FINETUNED, (root,), {"task": f"shuffled:{i}"}, SEED + i)
        for i in range(31)
    ]
    together = build_all(children, keep=False)
    for i in (0, 10, 20, 30):
        alone = vector(build(children[i], keep=False))
        apart.append(np.linalg.norm(alone - vector(together[i])) / np.linalg.norm(alone - start))
    return {"networks": len(apart), "largest_relative_to_what_was_learnt": float(f"{max(apart):.2g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    parser.add_argument("--parts", nargs="*", default=[*TREES, "stack", "cost"], help="others are kept as they are")
    args = parser.parse_args()
    result: dict[str, Any] = {"learning": {}, "cost": {}, "stack": {}}
    result |= json.loads(args.out.read_text()) if args.out.exists() else {}
    result |= {
        "version": stemma.__version__,
        "seed": SEED,
        "tunings": len(FINETUNING_RECIPES),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for part in args.parts:
        if part == "stack":
            result["stack"] = {kind: stack(kind) for kind in ("mlp", "cnn")}
        elif part == "cost":
            result["cost"]["forest:mlp"] = cost(forest("mlp", SEED + 101))
            result["cost"]["flat:mlp"] = cost(flat("mlp", SEED + 102, 40, 10))
        else:
            result["learning"][part] = learning(part)
        print(part, json.dumps(result["learning"].get(part, result.get(part))), flush=True)
        write_result(args.out, result)


if __name__ == "__main__":
    main()
