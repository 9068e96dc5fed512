"""Are strangers that were made to look related taken for kin? 200 pairs of networks trained apart.

Units matched to the victim's by weight matching (all layers, all views, streams, heads, several starts), sorted alike,
scaled alike; norms, statistics, spectra and values copied; masks, first layers, tables and starts that anybody can
have. None of it copies what a unit of the victim has learnt, so no relation of descent is true; `same-init` is allowed,
and `part-inherited` where a public table is in both.

Measured: how many of the pairs are called related by descent, against the level (exact binomial, rejected at .001),
and each verdict. Controls that do inherit a part, or answers, are listed apart. Beside them the cosine of the weights,
with the threshold that parts the pairs from noisy copies best in one half, on the other half.

    python benchmarks/verdicts_framing.py --data DIR      writes benchmarks/results/verdicts_framing.json
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbeds import verdict_scores as scores
from testbeds.disguises import baselines
from testbeds.framings.catalogue import CONTROLS, FRAMINGS, Framing, Scene
from testbeds.varied import training
from testbeds.varied.training import Bed, Network
from testbeds.varied_networks import FORMS, group

SEED, ARCHITECTURES = 20261205, 2
RESULT = "verdicts_framing.json"
ALL = (*FRAMINGS, *CONTROLS)


@lru_cache(maxsize=128)
def strangers(form: str, architecture: int, data: Path, cache: Path) -> tuple[Network, ...]:
    """Three networks of one architecture, trained apart."""
    kind = next(k for k, forms in FORMS.items() if form in forms)
    drawn = group(kind, FORMS[kind].index(form) + 100 * architecture, SEED, 3, form)
    return tuple(Bed(data, cache).network(r) for r in drawn.recipes)


def examined(task: tuple[int, int, Path, Path]) -> dict[str, Any]:
    which, number, data, cache = task
    torch.set_num_threads(1)
    framing, bed = ALL[which], Bed(data, cache)
    form = framing.forms[number % len(framing.forms)]
    three = strangers(form, number // len(framing.forms) % ARCHITECTURES, data, cache)
    turn = number // (len(framing.forms) * ARCHITECTURES) % 3
    scene = Scene((*three[turn:], *three[:turn]), bed, np.random.default_rng([SEED, which, number]))
    pair = framing.make(scene)
    configs = [
        training.configuration(pair.first_design, pair.first), training.configuration(pair.second_design, pair.second)
    ]  # fmt: skip
    row = scores.judged(
        scores.model("victim", pair.first, configs[0]), scores.model("stranger", pair.second, configs[1])
    )
    return {
        "framing": framing.name, "group": framing.group, "form": form, **row,
        "descent": row["verdict"] == "related" and row["relation"] not in framing.allowed,
        **baselines.beside(pair.first, pair.second, pair.first_design, scene.rng),
        "stranger_right": round(training.right(pair.second_design, pair.second, pair.source, data), 3),
        "stranger_right_before": round(scene.networks[1].quality, 3),
    }  # fmt: skip


def planned(framings: tuple[Framing, ...], quick: bool) -> list[tuple[int, int]]:
    """Which pairs of which framing; in a quick run one of each, on perceptrons where they will do."""
    if not quick:
        return [(ALL.index(f), i) for f in framings for i in range(f.count)]
    easy = ("mlp-relu", "mlp-gelu", "mlp-tanh", "llama-tied", "timm", "resnet")
    return [(ALL.index(f), min((f.forms.index(e) for e in easy if e in f.forms), default=0)) for f in framings]


def main() -> None:
    args = scores.arguments(__doc__, RESULT).parse_args()
    if not scores.ready(args):
        return
    torch.set_num_threads(1)
    tasks = [(*one, args.data, args.cache) for one in planned(ALL, args.quick)]
    every = list(scores.mapped(examined, tasks, args.jobs, "pairs"))
    rows, controls = ([r for r in every if (r["group"] == "control") == c] for c in (False, True))
    descent = [r for r in rows if r["descent"]]
    result = {
        **scores.about(args, {"networks and framings": SEED}),
        "summary": {
            "pairs": len(rows),
            "called_related_by_descent": scores.at_most(len(descent), len(rows), scores.ALPHA),
            "called_related": scores.share(sum(r["verdict"] == "related" for r in rows), len(rows)),
            "largest_cosine": max(r["cosine"] for r in rows),
            "by_group": scores.counted_by(rows, "group"),
            "descent_by_group": {
                g: sum(r["descent"] for r in rows if r["group"] == g) for g in dict.fromkeys(r["group"] for r in rows)
            },
            "by_framing": scores.counted_by(rows, "framing"),
            "by_architecture": scores.counted_by(rows, "form"),
            "controls": scores.counted_by(controls, "framing"),
        },
        "baselines": {
            word: baselines.in_halves([r[f"{name}_of_a_copy"] for r in rows], [r[name] for r in rows], SEED)
            for name, word in (("cosine", "cosine"), ("matched", "after weight matching"))
        },
        "wrong": descent,
        "pairs": rows,
        "controls": controls,
    }
    s = result["summary"]
    for word in ("by_framing", "by_architecture", "controls"):
        scores.print_table(word.replace("by_", ""), s[word])
    for r in descent:
        print("WRONG", {k: r[k] for k in ("framing", "form", "relation", "statistic", "effect", "log10_p", "cosine")})
    print("\ncalled related by descent", s["called_related_by_descent"], "called related", s["called_related"])
    print("baselines", result["baselines"])
    scores.written(args, RESULT, result)


if __name__ == "__main__":
    main()
