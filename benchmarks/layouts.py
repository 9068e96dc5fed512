"""Is one network recognised in the layouts of the field's tools? Thirty-nine writers, other sizes and seeds than tests.

Networks of numbers drawn at random, so that nothing but the layout is judged: a Llama-like, a BERT-like, recurrent and
convolutional ones and a mixture of experts, each in every layout that its tools write, with the tool's names and with
names that mean nothing, and after small changes of every number. Right is `copy`, `reformatted` or `quantized` of what
was only written otherwise, `related` without "new" or "inherited" parts of what changed too; of strangers, not
`related`. Beside it the share of tensors that names and sizes alone pair, and the cosine of these.

    python benchmarks/layouts.py        writes benchmarks/results/layouts.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import layouts
from plain_networks import Arrays, bert, cnn, llama, perturbed, renamed
from testbeds import verdict_scores as scores
from testbeds.disguises.alignment import whole_cosine

SEED, SEEDS = 20261501, 3
RESULT = "layouts.json"
SAME = ("copy", "reformatted", "quantized")
NEW = ("part inherited", "units permuted", "replaced")
NOISE = 0.02
"""Noise of every number, in shares of its tensor's standard deviation, where a network was trained on."""


def networks(seed: int) -> Iterator[tuple[str, Arrays, Any, dict[str, layouts.Writer]]]:
    rng = np.random.default_rng([SEED, seed])
    draw = lambda low, high, step=8: int(rng.integers(low, high)) * step  # noqa: E731
    yield "llama", *llama(seed, inner=draw(10, 24), layers=int(rng.integers(2, 6))), layouts.LLAMA
    yield "bert", *bert(seed, d=48, inner=draw(8, 24), layers=int(rng.integers(2, 5))), layouts.BERT
    yield "cnn", *cnn(seed, widths=tuple(draw(2, 8) for _ in range(3))), layouts.CNN
    yield "experts", layouts.experts(seed, depth=int(rng.integers(1, 4))), None, layouts.EXPERTS
    for tool, (count, write) in layouts.RNN.items():
        arrays = layouts.recurrent(seed, count, hidden=draw(4, 10), inputs=draw(3, 9))
        yield "recurrent", arrays, None, {tool: write}


def pairs() -> list[tuple[str, str, int]]:
    return [(kind, tool, seed) for seed in range(SEEDS) for kind, _, _, tools in networks(seed) for tool in tools]


def examined(task: tuple[str, str, int]) -> list[dict[str, Any]]:
    kind, tool, seed = task
    arrays, config, write = next((a, c, t[tool]) for k, a, c, t in networks(seed) if k == kind and tool in t)
    other = next(a for k, a, _, t in networks(seed + 1000) if k == kind and tool in t)
    written = write(arrays)
    forms = {
        "as written": written, "names lost": renamed(written, seed),
        "trained on": write(perturbed(arrays, NOISE, seed)), "stranger": write(other),
    }  # fmt: skip
    out = []
    for form, x in forms.items():
        row = scores.judged(scores.model("a", arrays, config), scores.model("b", x, None))
        if form == "stranger":
            right = row["verdict"] != "related"
        elif form == "trained on":
            right = row["verdict"] == "related" and not any(s in NEW for s in row["relation_steps"])
        else:
            right = row["relation"] in SAME
        named = [n for n in arrays if n in x and x[n].shape == arrays[n].shape]
        out.append({
            "kind": kind, "tool": tool, "seed": seed, "form": form, "right": bool(right), **row,
            "named": round(sum(arrays[n].size for n in named) / sum(a.size for a in arrays.values()), 3),
            "cosine": round(whole_cosine(arrays, x), 3),
        })  # fmt: skip
    return out


def summary(rows: list[dict[str, Any]], forms: list[str]) -> dict[str, Any]:
    steps = {s for r in rows if r["form"] == "as written" for s in r["relation_steps"]}
    said = {f: sorted({r["relation"] for r in rows if r["form"] == f}) for f in forms}
    right = sum(r["right"] for r in rows)
    return {"kind": rows[0]["kind"], **said, "steps": sorted(steps), "right": right, "of": len(rows)}


def main() -> None:
    args = scores.arguments(__doc__, RESULT).parse_args()
    tasks = pairs()[:4] if args.quick else pairs()
    rows = [r for found in scores.mapped(examined, tasks, args.jobs, "layouts") for r in found]
    forms = list(dict.fromkeys(r["form"] for r in rows))
    by_form = {f: scores.share(sum(r["right"] for r in rows if r["form"] == f), sum(r["form"] == f for r in rows))
               for f in forms}  # fmt: skip
    names = dict.fromkeys(r["tool"] for r in rows)
    tools = {tool: summary([r for r in rows if r["tool"] == tool], forms) for tool in names}
    plain = [r for r in rows if r["form"] == "as written"]
    result = {
        **scores.about(args, {"networks": SEED}), "layouts": len(tools), "forms": by_form, "tools": tools,
        "baselines": {"paired by name and size": round(float(np.mean([r["named"] for r in plain])), 3),
                      "cosine above .9": scores.share(sum(r["cosine"] > 0.9 for r in plain), len(plain))},
        "wrong": [r for r in rows if not r["right"]],
    }  # fmt: skip
    for form, found in by_form.items():
        print(form, found)
    print("baselines", result["baselines"])
    for r in result["wrong"]:
        print("wrong:", r["kind"], r["tool"], r["seed"], r["form"], r["verdict"], r["relation"], r["relation_steps"])
    scores.written(args, RESULT, result)


if __name__ == "__main__":
    main()
