"""Does a class go, and what goes with it, when a network is edited on samples of the class instead of trained?

Every class of every network is forgotten by each method; figures are means over classes and seeds, with the worst
class. Samples are training images; all accuracies are on test images. Methods that need labels, gradients or training
stand beside those that do not, and so does a masked logit, which hides the class for nothing.

    python benchmarks/forgetting.py [--tier small|full] [--device D] [--data DIR] [--seconds N] [--out FILE]

Writes benchmarks/results/forgetting_TIER.json after every class; with --verify, forgetting_verified.json.
"""

import argparse
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from pruning import Result, elsewhere, read
from stemma.checkpoints.model import Model
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.errors import StemmaError
from stemma.probes import Probes
from testbeds import edited_networks as bed
from testbeds import forgetting_baselines as other

SAMPLES, OTHERS, CLASSES = 256, 1024, 10
METHODS: Mapping[str, tuple[Unlearning, str]] = {
    "published": (Unlearning.official("zero"), ""),
    "alone": (Unlearning(), ""),
    "refit": (Unlearning(), "retain"),
    "generic": (Unlearning(), "generic"),
    "published, negated": (Unlearning.official("negate"), ""),
    "contrast, made": (Unlearning(action="zero", made=True), ""),
    "contrast": (Unlearning(action="zero"), "retain"),
    "contrast, negated": (Unlearning(action="negate"), "retain"),
}
"""The method, and the other inputs that it is given: none, retained classes, or images of another data set."""

BRIEF = ("published", "alone", "refit", "generic")
"""Methods that are put to every class; the others, and those that train, to the classes with retrained references."""

REFERRED = (0, 3)
"""Classes of the first seed without which networks are trained anew; they are learnt again with every seed."""

TIERS: dict[str, dict[str, Any]] = {
    "small": {"networks": {"cnn": 6, "vit": 8}, "seeds": (0, 1, 2), "train": 12_000, "test": 2500, "retrained": 2},
    "full": {"networks": {"resnet18": 24}, "seeds": (0,), "train": None, "test": None, "retrained": 1},
    "tiny": {"networks": {"cnn": 3}, "seeds": (0,), "train": 3000, "test": 500, "retrained": 1},
}


class EvaluationPair:
    """One network and one class."""

    def __init__(
        self, net: Any, model: Model, train: bed.Data, test: bed.Data, label: int, seed: int, device: str
    ) -> None:
        self.net, self.model, self.label, self.seed, self.device = net, model, label, seed, device
        self.forget = train.of(label).some(SAMPLES, seed)
        self.retain = train.of(label, other=True).some(OTHERS, seed)
        self.lost, self.kept, self.train = test.of(label), test.of(label, other=True), train
        self.before = bed.answers(net, self.kept, device).argmax(1)

    def figures(self, net: Any, gold: list[np.ndarray]) -> dict[str, Any]:
        lost, kept = bed.answers(net, self.lost, self.device), bed.answers(net, self.kept, self.device).argmax(1)
        truth = self.kept.labels
        by_class = [float((kept[truth == c] == c).mean()) for c in range(CLASSES) if c != self.label]
        before = [float((self.before[truth == c] == c).mean()) for c in range(CLASSES) if c != self.label]
        out: dict[str, Any] = {
            "forget": float((lost.argmax(1) == self.label).mean()),
            "retain": float((kept == truth).mean()),
            "drop": float((self.before == truth).mean() - (kept == truth).mean()),
            "worst class drop": max(b - a for a, b in zip(by_class, before, strict=True)),
            "membership": other.membership(net, self.forget, self.lost, self.device),
        }  # fmt: skip
        if gold:
            out["to retrained"] = float(np.mean([other.apart(lost, g) for g in gold]))
        return out

    def edited(self, method: Unlearning, given: str, generic: bed.Data) -> Any:
        rest = {"retain": self.retain, "generic": generic}.get(given)
        rest = None if rest is None else Probes.of(rest.images)
        return method(self.model, Probes.of(self.forget.images), rest).editable.module.eval()


def measured(
    case: EvaluationPair, generic: bed.Data, gold: list[np.ndarray], *, relearn: bool, brief: bool
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, (method, given) in METHODS.items():
        if brief and name not in BRIEF:
            continue
        try:
            net = case.edited(method, given, generic)
        except StemmaError as error:
            out[name] = {"failed": str(error)[:60]}
            continue
        out[name] = case.figures(net, gold)
        if relearn:
            out[name]["relearning"] = other.relearning(net, case.forget, case.retain, case.lost, case.device)
    for name, treat in {"masked logit": other.masked}.items() if brief else other.BASELINES.items():
        net = treat(case.net, case.forget, case.retain, case.seed, case.device)
        out[name] = case.figures(net, gold)
        if relearn:
            out[name]["relearning"] = other.relearning(net, case.forget, case.retain, case.lost, case.device)
    return out


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over classes and seeds, with the worst, and how often the target was not met."""
    out = {}
    for name in dict.fromkeys(n for c in cases for n in c):
        found = [c[name] for c in cases if name in c and "failed" not in c[name]]
        tried = sum(name in c for c in cases)
        part: dict[str, Any] = {"cases": tried, "failed": tried - len(found)}
        for key in dict.fromkeys(k for f in found for k in f):
            values = np.array([f[key] for f in found if key in f], float)
            half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            part[key] = {"mean": float(values.mean()), "half": float(half), "worst": float(values.max()),
                         "least": float(values.min())}  # fmt: skip
        out[name] = part
    return out


def retrained(
    name: str, train: bed.Data, label: int, count: int, epochs: float, device: str, kept: Path | None
) -> list[Any]:
    rest = train.of(label, other=True)
    return [bed.trained(name, rest, 100 + i, epochs, device, kept, f"-without{label}") for i in range(count)]


def verified(folder: Path, suspects: int = 20, gold: int = 39) -> dict[str, Any]:
    """What the test of unlearning says: edited networks among some that were retrained without the class."""
    from stemma.zoo.memory import model_of
    from testbeds import unlearning_models as zoo
    from testbeds.unlearning_views import exact_verdicts, seen

    data = zoo.Data.read(folder, 9)
    first = zoo.trained(data, range(suspects), retained_only=False)
    retrained = zoo.trained(data, range(10_000, 10_000 + gold), retained_only=True)
    lost, kept = Probes.of(data.forget.inputs[:SAMPLES]), Probes.of(data.retained.inputs[:OTHERS])
    groups = {"retrained": seen(data, retrained, 128), "nothing done": seen(data, first, 128)}
    for name in ("published", "alone", "refit", "contrast"):
        method, given = METHODS[name]
        edited = [method(model_of(f"n{i}", n, zoo.CONFIG), lost, kept if given else None) for i, n in enumerate(first)]
        arrays = [{n: np.array(t.array()) for n, t in e.model.tensors.items()} for e in edited]
        groups[name] = seen(data, arrays, 128)
    groups["masked logit"] = seen(data, [zoo.masked(n, 9) for n in first], 128)
    out: dict[str, Any] = {"retrained": gold, "suspects": suspects, "class": 9}
    for name, verdicts in exact_verdicts(groups).items():
        out[name] = {v: verdicts.count(v) for v in ("refuted", "inconclusive", "supported")}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--networks", type=Path, help="folder in which trained networks are kept")
    parser.add_argument("--brief", action="store_true", help="nothing retrained or learnt again, fewer methods")
    parser.add_argument("--verify", action="store_true", help="only put edited networks to the test of unlearning")
    parser.add_argument("--only", choices=sorted(bed.MAKERS), help="one network of the tier, in a file of its own")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or STEMMA_DATA")
    tier, clock = TIERS[args.tier], bed.Clock(args.seconds)
    if args.verify:
        results = Path(__file__).parent / "results"
        Result(args.out or results / "forgetting_verified.json", {}).put(["verdicts"], verified(args.data))
        return
    name_of = f"forgetting_{args.tier}{'_' + args.only if args.only else ''}.json"
    out = args.out or Path(__file__).parent / "results" / name_of
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else "processor"
    head = {"tier": args.tier, "settings": dict(tier), "samples": SAMPLES, "others": OTHERS, "device": card,
            "version": Unlearning.version, "methods": {n: [m.spec.digest, given] for n, (m, given) in METHODS.items()},
            "torch": torch.__version__, "machine": f"{os.cpu_count()} cores, {platform.python_version()}"}  # fmt: skip
    result = Result(out, head)
    result.resume("settings", "methods", "version", "samples", "others")
    for name, epochs in tier["networks"].items():
        if args.only in (None, name):
            train, test = read(tier, name, args.data)
            study(result, name, epochs, tier, (train, test), args, clock)
    result.put(["seconds"], round(clock.gone))


def study(result: Result, name: str, epochs: float, tier: Mapping[str, Any], data: tuple[bed.Data, bed.Data], args: Any,
          clock: bed.Clock) -> None:  # fmt: skip
    train, test = data
    generic = elsewhere(train, args.data, OTHERS)
    cases: list[dict[str, Any]] = []
    for seed in tier["seeds"]:
        net = bed.trained(name, train, seed, epochs, args.device, args.networks)
        model = bed.as_model(net, f"{name}-{seed}", train)
        result.put(["networks", name, "dense", f"seed {seed}"], bed.right(net, test, args.device))
        clock.say(f"{name}-{seed} is trained")
        for label in range(CLASSES):
            if clock.over():
                clock.say(f"no time for class {label} of {name}-{seed} and what follows")
                return
            key = ["networks", name, "cases", f"seed {seed} class {label}"]
            if result.has(key):
                cases.append(result.content["networks"][name]["cases"][key[-1]])
                continue
            case = EvaluationPair(net, model, train, test, label, seed, args.device)
            gold: list[np.ndarray] = []
            whole = seed == tier["seeds"][0] and label in REFERRED and not args.brief
            if whole and name != "resnet18":
                nets = retrained(name, train, label, tier["retrained"], epochs, args.device, args.networks)
                gold = [bed.answers(n, case.lost, args.device) for n in nets]
                between = [other.apart(a, b) for i, a in enumerate(gold) for b in gold[:i]]
                figures = [case.figures(n, []) for n in nets]
                steps = [other.relearning(n, case.forget, case.retain, case.lost, args.device) for n in nets]
                result.put(["networks", name, "retrained", f"class {label}"],
                           {"figures": figures, "relearning": steps, "between": between})  # fmt: skip
            cases.append(measured(case, generic, gold, relearn=label in REFERRED and not args.brief, brief=not whole))
            result.put(key, cases[-1])
            result.put(["networks", name, "summary"], summary(cases))
            drops = {n: round(cases[-1][n].get("drop", 1.0), 3) for n in BRIEF}
            clock.say(f"{name}-{seed} class {label}: others lose {drops}")


if __name__ == "__main__":
    main()
