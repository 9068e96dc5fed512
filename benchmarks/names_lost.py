"""Does Stemma say the same of a pair when the names of its tensors mean nothing? Twelve operations, six architectures.

Networks of numbers drawn at random, so that nothing but names is judged. Each pair is compared with its names, with the
child's replaced by numbers in another order, and with both models' replaced so (the same numbers, on other tensors).
Right is the relation that is said of the pair with its names, and for strangers that they are not called related (how
often they are called independent too is told apart). Beside it, what names would have done: the share of the child's
entries that a matrix of the same name and size stands for.

    python benchmarks/names_lost.py        writes benchmarks/results/names_lost.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import layouts
from plain_networks import Arrays, bert, cnn, llama, mlp, perturbed, renamed, vit
from testbeds import verdict_scores as scores

SEED, SEEDS = 20261601, 2
RESULT = "names_lost.json"
NOISE = 0.02

Operation = Callable[[Arrays, np.random.Generator], Arrays | None]


def _matrices(arrays: Arrays) -> list[str]:
    return [n for n, x in arrays.items() if sum(s > 1 for s in x.shape) >= 2]


def head_replaced(arrays: Arrays, rng: np.random.Generator) -> Arrays | None:
    last = [n for n in _matrices(arrays) if n.startswith(("classifier", "lm_head"))]
    new = {n: (rng.normal(size=arrays[n].shape) * arrays[n].std()).astype("f4") for n in last}
    return arrays | new if last else None


def eight_bits(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    def rounded(x: np.ndarray) -> np.ndarray:
        step = np.abs(x).max(axis=tuple(range(1, x.ndim)), keepdims=True) / 127
        return (np.round(x / step) * step).astype("f4")

    return {n: rounded(x) if n in _matrices(arrays) else x for n, x in arrays.items()}


def half_of_weights_zero(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    cut = {n: np.median(np.abs(arrays[n])) for n in _matrices(arrays)}
    return {n: np.where(np.abs(x) > cut[n], x, 0).astype("f4") if n in cut else x for n, x in arrays.items()}


def half_precision(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    return {n: x.astype("f2") for n, x in arrays.items()}


def low_rank(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    def added(x: np.ndarray) -> np.ndarray:
        u, v = rng.normal(size=(x.shape[0], 2)), rng.normal(size=(2, x[0].size))
        return (x + 0.3 * x.std() * (u @ v).reshape(x.shape)).astype("f4")

    return {n: added(x) if n in _matrices(arrays) and min(x.shape[0], x[0].size) > 16 else x for n, x in arrays.items()}


def half_frozen(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    kept = set(list(arrays)[: len(arrays) // 2])
    return {n: arrays[n] if n in kept else x for n, x in perturbed(arrays, NOISE, int(rng.integers(1000))).items()}


def _layer_mark(arrays: Arrays) -> str:
    return next((m for m in (".layers.", ".layer.") if any(m in n for n in arrays)), "")


def _with_layers(arrays: Arrays, order: Callable[[int], list[int]]) -> Arrays | None:
    if not (mark := _layer_mark(arrays)):
        return None
    count = 1 + max(int(n.split(mark)[1].split(".")[0]) for n in arrays if mark in n)
    out = {n: x for n, x in arrays.items() if mark not in n}
    for k, i in enumerate(order(count)):
        out |= {n.replace(f"{mark}{i}.", f"{mark}{k}."): x for n, x in arrays.items() if f"{mark}{i}." in n}
    return out


def layer_removed(arrays: Arrays, rng: np.random.Generator) -> Arrays | None:
    return _with_layers(arrays, lambda n: [i for i in range(n) if i != n // 2])


def layer_repeated(arrays: Arrays, rng: np.random.Generator) -> Arrays | None:
    return _with_layers(arrays, lambda n: [*range(n), *range(n // 2, n)])


def _with_tokens(arrays: Arrays, rows: Callable[[int], np.ndarray]) -> Arrays | None:
    tokens = [n for n in arrays if any(w in n for w in ("embed_tokens", "word_embeddings", "lm_head"))]
    return {n: x[rows(len(x))] if n in tokens else x for n, x in arrays.items()} if tokens else None


def tokens_removed(arrays: Arrays, rng: np.random.Generator) -> Arrays | None:
    return _with_tokens(arrays, lambda n: np.flatnonzero(np.arange(n) % 4))


def tokens_reordered(arrays: Arrays, rng: np.random.Generator) -> Arrays | None:
    order = rng.permutation(10_000)
    return _with_tokens(arrays, lambda n: np.argsort(order[:n]))


OPERATIONS: dict[str, Operation] = {
    "as it is": lambda arrays, rng: arrays,
    "trained on": lambda arrays, rng: perturbed(arrays, NOISE, int(rng.integers(1000))),
    "trained on, half of it frozen": half_frozen, "head replaced": head_replaced, "8 bits": eight_bits,
    "half of the weights zero": half_of_weights_zero, "float16": half_precision, "low rank": low_rank,
    "layer removed": layer_removed, "layers repeated": layer_repeated, "tokens removed": tokens_removed,
    "tokens reordered": tokens_reordered,
}  # fmt: skip
NETWORKS: dict[str, Callable[[int], tuple[Arrays, Any]]] = {
    "mlp": mlp, "cnn": cnn, "vit": vit, "bert": bert, "llama": llama,
    "experts": lambda seed: (layouts.experts(seed, depth=2), None),
}  # fmt: skip


def pair(kind: str, operation: str, seed: int) -> tuple[Arrays, Any, Arrays | None]:
    arrays, config = NETWORKS[kind](seed)
    if operation == "stranger":
        return arrays, config, NETWORKS[kind](seed + 500)[0]
    return arrays, config, OPERATIONS[operation](arrays, np.random.default_rng([SEED, seed]))


def tasks() -> list[tuple[str, str, int]]:
    every = [(k, o, s) for s in range(SEEDS) for k in NETWORKS for o in (*OPERATIONS, "stranger")]
    return [t for t in every if pair(*t)[2] is not None]


def examined(task: tuple[str, str, int]) -> list[dict[str, Any]]:
    kind, operation, seed = task
    arrays, config, child = pair(*task)
    assert child is not None
    named = [n for n in child if n in arrays and child[n].shape == arrays[n].shape]
    share = sum(child[n].size for n in named) / sum(x.size for x in child.values())
    again = renamed(child, seed)
    forms = {"named": (arrays, child), "child": (arrays, again), "both": (renamed(arrays, seed + 1), again)}
    rows = {}
    for form, (a, b) in forms.items():
        configs = config if form != "both" else None, config if form == "named" else None
        rows[form] = scores.judged(scores.model("a", a, configs[0]), scores.model("b", b, configs[1]))
    stranger = operation == "stranger"
    said = {f: r["verdict"] if stranger else r["relation"] for f, r in rows.items()}
    # A copy and one that is only written otherwise differ by the names themselves.
    said = {f: "reformatted" if s == "copy" else s for f, s in said.items()}
    out = []
    for form in ("child", "both"):
        right = said[form] != "related" if stranger else said[form] == said["named"]
        out.append({
            "kind": kind, "operation": operation, "seed": seed, "form": form, "said": said[form],
            "wanted": said["named"], "right": right, "steps": rows[form]["relation_steps"], "named": round(share, 3),
        })  # fmt: skip
    return out


def share_of_strangers(rows: list[dict[str, Any]], form: str) -> dict[str, Any]:
    strangers = [r for r in rows if r["operation"] == "stranger" and r["form"] == form]
    return scores.share(sum(r["said"] == "independent" for r in strangers), len(strangers))


def main() -> None:
    args = scores.arguments(__doc__, RESULT).parse_args()
    todo = tasks()[:6] if args.quick else tasks()
    rows = [r for found in scores.mapped(examined, todo, args.jobs, "names lost") for r in found]
    share = lambda some: scores.share(sum(r["right"] for r in some), len(some))  # noqa: E731
    result = {
        **scores.about(args, {"networks": SEED}), "all": share(rows),
        "forms": {f: share([r for r in rows if r["form"] == f]) for f in ("child", "both")},
        "operations": {o: {f: share([r for r in rows if r["operation"] == o and r["form"] == f])
                           for f in ("child", "both")} for o in dict.fromkeys(r["operation"] for r in rows)},
        "independent": {f: share_of_strangers(rows, f) for f in ("child", "both")},
        "baselines": {"paired by name and size": round(float(np.mean([r["named"] for r in rows])), 3)},
        "wrong": [r for r in rows if not r["right"]],
    }  # fmt: skip
    print("all", result["all"], "forms", result["forms"])
    for r in result["wrong"]:
        print("wrong:", r["kind"], r["operation"], r["seed"], r["form"], r["said"], "not", r["wanted"], r["steps"])
    scores.written(args, RESULT, result)


if __name__ == "__main__":
    main()
