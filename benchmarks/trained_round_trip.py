"""Is a pruned network traced to its parent after its owner loaded it into the own class, trained it and saved it?

Every network of `testbeds.common_networks`, with its own weights for each seed: trained on digits, pruned to a share of
its units, written, loaded into its class, traced; trained one epoch more, saved, traced again among the true parent,
networks of other seeds of the same kind, and the true parent left out. Each is asked with the receipt beside the
weights, without it, and with a false one that names another network of the same kind.

    python benchmarks/trained_round_trip.py [--seeds N] [--kinds a,b] [--out FILE]

writes benchmarks/results/trained_round_trip.json
"""

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import stemma
from stemma.edits.artefacts.save import write
from stemma.edits.pruning.pruning import Pruning
from stemma.errors import StemmaError
from stemma.networks.from_module import from_module
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.zoo import data
from testbeds.common_networks import NETWORKS
from testbeds.measured import write_result
from testbeds.verdict_scores import interval

EPOCHS, RATE, KEPT = 6, 0.003, 0.6

NOT_KIN = ("inconclusive", "no-known-parent")
"""Answers that make no stranger a relative."""


def scores(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Ten scores per image; of a map of scores their mean."""
    out = module(x)
    return out.flatten(2).mean(2) if out.ndim == 4 else out


def trained(module: nn.Module, seed: int, part: str, epochs: int, rate: float) -> nn.Module:
    """The module after some epochs on digits, in evaluation mode."""
    found, draw = data.examples("cnn", part), torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(found.inputs).float(), torch.from_numpy(found.targets).long()
    optimizer = torch.optim.Adam(module.parameters(), rate)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draw).split(32):
            optimizer.zero_grad()
            F.cross_entropy(scores(module, x[rows]), y[rows]).backward()
            optimizer.step()
    return module.eval()


def accuracy(module: nn.Module) -> float:
    found = data.examples("cnn", "test")
    with torch.no_grad():
        answers = scores(module, torch.from_numpy(found.inputs).float()).argmax(1)
    return float((answers.numpy() == found.targets).mean())


def saved(module: nn.Module, folder: Path, beside: Path | None, **changed: Any) -> Path:
    """A folder with the weights alone, or with the plan and receipt of another folder, some entries changed."""
    folder.mkdir(parents=True)
    save_file(
        {n: t.detach().clone().contiguous() for n, t in module.state_dict().items()}, folder / "model.safetensors"
    )
    for name in ("plan.json", "receipt.json") if beside is not None else ():
        content = json.loads((beside / name).read_text())
        (folder / name).write_text(json.dumps(content | {k: v for k, v in changed.items() if k in content}))
    return folder


def asked(suspect: Path, against: list[Path], parent: str) -> dict[str, Any]:
    """Whether the parent comes first, and what the pair is called."""
    found = stemma.trace(str(suspect), against=[str(p) for p in against])
    rows = [*found.parents, *found.relatives]
    first = rows[0] if rows else {"digest": "", "relation": None, "steps": ()}
    near = next((c for c in found.candidates if c["digest"] == parent), None)
    pruned = "pruned" in str(first["relation"]) or "units removed" in (first["steps"] or ())
    return {
        "verdict": found.verdict, "parent": first["digest"] == parent, "named": first["digest"] == parent and pruned,
        "relation": str(first["relation"]), "direction": first.get("direction", ""), "related": len(rows),
        "near": None if near is None else near["verdict"],
        "reason": "" if near is None else f"{near['relation_reason'][:160]} / {near['weights']['reason'][:160]}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--kinds", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trained_round_trip.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    probes = Probes.of(data.examples("cnn", "b").inputs[:256].astype("float32"))
    for kind in args.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += of_kind(kind, args.seeds, probes, Path(folder))
        done = {
            k: Counter(r[k] for r in rows if k in r) for k in ("before_named", "after_named", "bare_named", "framed")
        }
        print(f"{time.perf_counter() - start:6.0f} s  {kind}: {rows[-1]}\n{done}", flush=True)
        seconds = round(time.perf_counter() - start)
        write_result(args.out, {"summary": summary(rows), "seconds": seconds, "rows": rows})


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Networks whose parent comes first, and is named with the edit: before training, after it, and without the plan.

    Returns:
        Counts, the share with its exact interval over networks, and the kinds that were missed once or more.
    """
    made = [r for r in rows if r["made"]]
    out: dict[str, Any] = {"kinds": len({r["kind"] for r in rows}), "networks": len(made), "of": len(rows)}
    for view in ("before", "after", "bare"):
        named = sum(r[f"{view}_named"] for r in made)
        out[view] = {
            "parent": sum(r[f"{view}_parent"] for r in made), "named": named, "share": named / max(1, len(made)),
            "interval": interval(named, len(made)),
            "missed": sorted({r["kind"] for r in made if not r[f"{view}_named"]}),
        }  # fmt: skip
    out["strangers called related"] = sum(r[k] not in NOT_KIN for r in made for k in ("framed", "stranger"))
    return out


def of_kind(kind: str, seeds: int, probes: Probes, home: Path) -> list[dict[str, Any]]:
    """One row for each seed; the next seed's network is the stranger that a false receipt names."""
    parents, modules = [], []
    for seed in range(seeds + 1):
        torch.manual_seed(1000 * len(kind) + seed)
        modules.append(trained(NETWORKS[kind](), seed, "a", EPOCHS, RATE))
        parents.append(saved(modules[-1], home / f"{kind}-{seed}", None))
    rows = []
    for seed in range(seeds):
        stranger = parents[seed + 1]
        model = load(str(parents[seed]))
        network = from_module(modules[seed], f"{kind}-{seed}", InputSpec("image", (1, 8, 8), 0.0, 1.0))
        made = home / f"pruned-{seed}"
        try:
            edited = Pruning(keep_ratio=KEPT, heads=True)(network, probes)
            write(edited, made, probes)
        except StemmaError as error:
            rows.append({"kind": kind, "seed": seed, "made": False, "why": str(error)[:200]})
            continue
        plan = json.loads((made / "plan.json").read_text())
        module = stemma.edits.load(made, NETWORKS[kind]())
        row: dict[str, Any] = {"kind": kind, "seed": seed, "made": True, "accuracy": [accuracy(modules[seed])]}
        row["accuracy"].append(accuracy(module))
        views = {"before": saved(module, home / f"before-{seed}", made)}
        module = trained(module, seed + 50, "b", 1, RATE / 3)
        row["accuracy"].append(accuracy(module))
        views["after"] = saved(module, home / f"after-{seed}", made)
        views["bare"] = saved(module, home / f"bare-{seed}", None)
        for name, at in views.items():
            row |= {f"{name}_{k}": v for k, v in asked(at, parents, str(model.digest)).items()}
        other = str(load(str(stranger)).digest)
        framed = saved(module, home / f"framed-{seed}", made, parent=other)
        found = asked(framed, [stranger], other)
        row["framed"] = found["verdict"]
        alone = asked(views["bare"], [stranger], other)
        row |= {"stranger": alone["verdict"], "stranger_near": alone["near"]}
        row["plan"] = plan["parent"] == str(model.digest)
        rows.append(row)
        shutil.rmtree(made)
    return rows


if __name__ == "__main__":
    main()
