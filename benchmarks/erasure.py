"""What does erasing a class cost and buy, at every strength, beside tuned ways of training a class away?

Each class of each network is erased at every strength of `Erasure`, by the published ModHiFi-U, by the refit, and by
baselines that train. Every method's setting is the best on a class of its own, which is not among those measured where
there are fewer than ten; with all ten, the setting is chosen on the class before. Figures are of test samples: what is
still answered, what the others lose, steps of fine-tuning until half of the class is back, and what the verifier says
with retrained networks at hand. Processor only.

    python benchmarks/erasure.py [--tier small|whole] [--data DIR] [--networks DIR] [--only cnn|vit|text] [--out FILE]
    python benchmarks/erasure.py --verify [--suspects N]

`small` takes about six minutes on two cores that others use too, `whole` some ten hours on one core; it goes on where
it was stopped. Writes benchmarks/results/erasure_TIER.json after every class.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from pruning import Result
from stemma.checkpoints.model import Model
from stemma.edits.unlearning.erasure import STRENGTHS, Erasure
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.errors import StemmaError
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.verification.few_retrained import SampleTests
from stemma.verification.sample_answers import judge_samples
from testbeds import edited_networks as bed
from testbeds import forgetting_baselines as other
from testbeds.erasure_baselines import GRIDS
from testbeds.text_networks import LENGTH, WORDS, passages, trained_text

SAMPLES, OTHERS, MOST = 256, 1024, 60

TIERS: dict[str, dict[str, Any]] = {
    "small": {"networks": {"cnn": 3}, "seeds": (0,), "classes": (0, 7), "train": 4000, "test": 1500, "retrained": 1,
              "settings": 2},
    "whole": {"networks": {"cnn": 6, "vit": 8, "text": 6}, "seeds": (0, 1, 2), "classes": tuple(range(10)),
              "train": 12_000, "test": 2500, "retrained": 2, "settings": 9},
}  # fmt: skip


def trained(kind: str, data: bed.Data, seed: int, epochs: float, kept: Path | None, tag: str = "") -> Any:
    if kind == "text":
        return trained_text(data, seed, epochs, kept, tag)
    return bed.trained(kind, data, seed, epochs, "cpu", kept, tag)


def as_model(kind: str, net: Any, name: str, data: bed.Data) -> Model:
    if kind == "text":
        return from_module(net, name, InputSpec("tokens", (LENGTH,), 0, WORDS - 1))
    return bed.as_model(net, name, data)


class Case:
    """One network and one class."""

    def __init__(self, kind: str, net: Any, label: int, seed: int, data: tuple[bed.Data, bed.Data], gold: list[Any]
                 ) -> None:  # fmt: skip
        train, test = data
        self.kind, self.net, self.label, self.seed, self.train, self.gold = kind, net, label, seed, train, gold
        self.model = as_model(kind, net, "original", train)
        self.forget, self.retain = train.of(label).some(SAMPLES, seed), train.of(label, other=True).some(OTHERS, seed)
        self.lost, self.kept = test.of(label), test.of(label, other=True)
        self.before = self._right(net)

    def _right(self, net: Any) -> np.ndarray:
        return bed.answers(net, self.kept, "cpu").argmax(1) == self.kept.labels

    def probes(self) -> tuple[Probes, Probes]:
        return Probes.of(self.forget.images), Probes.of(self.retain.images)

    def figures(self, net: Any) -> dict[str, Any]:
        net = net.eval()
        after = self._right(net)
        by_class = [float(self.before[self.kept.labels == c].mean() - after[self.kept.labels == c].mean())
                    for c in np.unique(self.kept.labels)]  # fmt: skip
        forget, retain = self.probes()
        models = [as_model(self.kind, n, f"gold-{i}", self.train) for i, n in enumerate(self.gold)]
        suspect = as_model(self.kind, net, "suspect", self.train)
        verdicts = {}
        for word, references in (("alone", []), ("with retrained", models)):
            found = judge_samples(SampleTests(describe=False), self.model, [suspect], references,
                                  {"forget": forget, "retained": retain})  # fmt: skip
            verdicts[f"refuted {word}"] = found.verdict.value == "refuted"
        return {
            "forget": float((bed.answers(net, self.lost, "cpu").argmax(1) == self.label).mean()),
            "drop": float(self.before.mean() - after.mean()), "worst": max(by_class),
            "relearning": other.relearning(net, self.forget, self.retain, self.lost, "cpu", MOST), **verdicts,
        }  # fmt: skip

    def erased(self, strengths: Any) -> dict[str, Any]:
        return {f"strength {e.plan.expected['strength']}": self.figures(e.editable.module)
                for e in Erasure().each(self.model, *self.probes(), strengths)}  # fmt: skip

    def edited(self) -> dict[str, Any]:
        out = {}
        for name, method, kept in (
            ("ModHiFi-U, published", Unlearning.official(), False),
            ("refit", Unlearning(), True),
        ):
            forget, retain = self.probes()
            try:
                edited = method(self.model, forget, retain if kept else None)
                out[name] = self.figures(edited.editable.module)
            except StemmaError as error:
                out[name] = {"failed": str(error)[:80]}
        return out


def score(figures: Mapping[str, float]) -> float:
    """What settings are chosen by: forgotten, others kept, not refuted, slow to learn again; less is better."""
    missed = 10 * max(0.0, figures["forget"] - 0.01) + 5 * max(0.0, figures["drop"] - 0.01)
    return (
        missed
        + 2 * max(0.0, figures["worst"] - 0.05)
        + figures["refuted with retrained"]
        - figures["relearning"] / MOST
    )


def chosen(case: Case, most: int) -> dict[str, str]:
    """The best setting of every method on one class."""
    found = {"erasure": case.erased(range(len(STRENGTHS)))}
    for name, grid in GRIDS.items():
        found[name] = {setting: case.figures(run(case.net, case.forget, case.retain, case.seed))
                       for setting, run in list(grid.items())[:most]}  # fmt: skip
    return {name: min(figures, key=lambda s, f=figures: score(f[s])) for name, figures in found.items()}


def measured(case: Case, settings: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = case.erased(range(len(STRENGTHS)))
    out["erasure, tuned"] = out[settings["erasure"]]
    out |= case.edited()
    for name, grid in GRIDS.items():
        out[name] = case.figures(grid[settings[name]](case.net, case.forget, case.retain, case.seed))
    out["retrained"] = case.figures(case.gold[0])
    return out


def reached(figures: Mapping[str, float], gold: Mapping[str, float]) -> bool:
    """The aim: forgotten, others kept, half of a retrained network's steps at least, and not refuted."""
    kept = figures["drop"] <= 0.01 and figures["worst"] <= 0.05
    erased = figures["forget"] <= 0.01 and figures["relearning"] >= gold["relearning"] / 2
    return kept and erased and not figures["refuted with retrained"]


def summary(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By method: means over cases, the worst, and how often each part of the aim was reached."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(n for c in cases.values() for n in c):
        rows = [(c[name], c["retrained"]) for c in cases.values() if "forget" in c.get(name, {})]
        if not rows:
            continue
        part: dict[str, Any] = {"cases": len(rows)}
        for key in rows[0][0]:
            values = np.array([r[key] for r, _ in rows], float)
            part[key] = {"mean": float(values.mean()), "most": float(values.max())}
        part["aim"] = float(np.mean([reached(figures, gold) for figures, gold in rows]))
        out[name] = part
    return out


def verified(folder: Path, suspects: int, gold: int) -> dict[str, Any]:
    """Power of the exact test, over as many networks as it needs: small networks without the last class."""
    from stemma.zoo.memory import model_of
    from testbeds import unlearning_models as zoo
    from testbeds.unlearning_views import exact_verdicts, seen

    data = zoo.Data.read(folder, 9)
    first = zoo.trained(data, range(suspects), retained_only=False)
    retrained = zoo.trained(data, range(10_000, 10_000 + gold), retained_only=True)
    lost, kept = Probes.of(data.forget.inputs[:SAMPLES]), Probes.of(data.retained.inputs[:OTHERS])
    unseen = zoo.rows(data.unseen, data.unseen.targets != 9)

    def right(nets: Any) -> float:
        return float(zoo.accuracy(zoo.CONFIG, nets, unseen).mean())

    groups = {"retrained": seen(data, retrained, 128), "nothing done": seen(data, first, 128)}
    out: dict[str, Any] = {"retrained": gold, "suspects": suspects, "class": 9, "accuracy": right(first)}
    accuracy = {"nothing done": out["accuracy"]}
    for strength in range(len(STRENGTHS)):
        edited = [Erasure(strength=strength)(model_of(f"n{i}", n, zoo.CONFIG), lost, kept) for i, n in enumerate(first)]
        arrays = [{n: np.array(t.array()) for n, t in e.model.tensors.items()} for e in edited]
        name = f"strength {strength}"
        groups[name], accuracy[name] = seen(data, arrays, 128), right(arrays)
    for name, verdicts in exact_verdicts(groups).items():
        refuted = verdicts.count("refuted")
        out[name] = {"refuted": refuted, "power": refuted / suspects, "drop": out["accuracy"] - accuracy[name]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--networks", type=Path, help="folder in which trained networks are kept")
    parser.add_argument("--only", choices=("cnn", "vit", "text"))
    parser.add_argument("--verify", action="store_true", help="only the power of the exact test, into erasure_verified")
    parser.add_argument("--suspects", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA")
    torch.set_num_threads(1)
    tier, clock = TIERS[args.tier], bed.Clock(float("inf"))
    if args.verify:
        results = Path(__file__).parent / "results"
        Result(args.out or results / "erasure_verified.json", {"version": Erasure.version, "samples": SAMPLES}).put(
            ["verdicts"], verified(args.data, args.suspects, 39)
        )
        return
    only = f"_{args.only}" if args.only else ""
    out = args.out or Path(__file__).parent / "results" / f"erasure_{args.tier}{only}.json"
    result = Result(out, {"tier": args.tier, "settings": dict(tier), "version": Erasure.version, "samples": SAMPLES,
                          "others": OTHERS, "strengths": [list(s) for s in STRENGTHS]})  # fmt: skip
    result.resume("settings", "version", "samples", "others", "strengths")
    for kind, epochs in tier["networks"].items():
        if args.only in (None, kind):
            study(result, kind, epochs, tier, args, clock)
    result.put(["seconds"], round(clock.gone))


def study(result: Result, kind: str, epochs: float, tier: Mapping[str, Any], args: Any, clock: bed.Clock) -> None:
    reader = passages if kind == "text" else lambda folder, part, count: bed.fashion(folder, part, count=count)
    data = tuple(reader(args.data, part, tier[part]) for part in ("train", "test"))

    def case(net: Any, label: int, seed: int) -> Case:
        rest = data[0].of(label, other=True)
        gold = [
            trained(kind, rest, 100 + i, epochs, args.networks, f"-without{label}") for i in range(tier["retrained"])
        ]
        return Case(kind, net, label, seed, data, gold)

    for seed in tier["seeds"]:
        net = trained(kind, data[0], seed, epochs, args.networks)
        result.put(["networks", kind, "original", f"seed {seed}"], bed.right(net, data[1], "cpu"))
        clock.say(f"{kind}-{seed} is trained")
        for label in tier["classes"]:
            key = ["networks", kind, "cases", f"seed {seed} class {label}"]
            if result.has(key):
                continue
            tuned_on = (label - 1) % 10 if len(tier["classes"]) == 10 else 5
            tuned = ["networks", kind, "chosen", f"class {tuned_on}"]
            try:
                if not result.has(tuned):
                    result.put(tuned, chosen(case(net, tuned_on, seed), tier["settings"]))
                    clock.say(f"settings are chosen on class {tuned_on}")
                settings = result.content["networks"][kind]["chosen"][tuned[-1]]
                result.put(key, measured(case(net, label, seed), settings))
            except StemmaError as error:
                result.put(key, {"not possible": {"why": str(error)[:120]}})
            cases = result.content["networks"][kind]["cases"]
            result.put(["networks", kind, "summary"], summary(cases))
            clock.say(f"{kind}-{seed} class {label}")


if __name__ == "__main__":
    main()
