"""Runs of a balance benchmark: what one is, how many are carried out at once, and what comes of them."""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.multimodal import strategies
from stemma.multimodal.competition_strength import CompetitionTest, over_concepts
from stemma.multimodal.concepts import concept_outputs, fused_representation
from stemma.multimodal.masks import masks_of
from stemma.multimodal.modulation_rule import Modulation
from stemma.multimodal.strategies.base import AbstractStrategy, Setting
from stemma.multimodal.training_loop import Examples, Fit, responses_of
from testbeds.measured import stamp
from testbeds.multimodal_networks import built, convolutional, perceptron, places
from testbeds.paired_digits import AudioVisual, Task, views

WIDTH = 64
SIZES = {"a": 64, "v": 64, "image": 784, "audio": 1024, "sums": 56}
"""Entries of one input."""

CONCEPTS = 3
"""Networks of one modality alone behind a competition strength, each with a start of its own."""

KINDS = {kind.name: kind for kind in strategies.ALL}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: Name of the task.
        fusion: `late` or `early`.
        method: Name of the strategy.
        options: Its parameters.
        seed: Of the pairs, the start and the order.
        fit: What differs from the defaults of `Fit`.
        score: Which part is scored: `test`, or `valid` while choosing.
        network: `perceptron` or `convolutional`.
        strength: Whether competition strength is measured.
    """

    task: str
    fusion: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    fit: Mapping[str, Any] = field(default_factory=dict)
    score: str = "test"
    network: str = "perceptron"
    strength: bool = False

    @property
    def key(self) -> str:
        """Identity."""
        return json.dumps(asdict(self), sort_keys=True)


TASKS: Mapping[str, Callable[[Path, int], Task]] = {
    "competition": lambda data, seed: views(seed, (1.5, 0.5), 8.0, 800),
    "no competition": lambda data, seed: views(seed, (1.5, 1.5), 1.0, 500),
    "clean": lambda data, seed: AudioVisual().task(data, seed),
    "noisy": lambda data, seed: AudioVisual(noise=1.0).task(data, seed),
    "raw": lambda data, seed: AudioVisual(noise=1.0, raw=True).task(data, seed),
    "three": lambda data, seed: AudioVisual(noise=1.0, third=True).task(data, seed),
}


@lru_cache(4)
def _task(name: str, data: Path, seed: int, device: str, kept: Path) -> Task:
    """The pairs of a seed, made once for all processes."""
    file = kept / f"{name}-{seed}.pt"
    if not file.exists():
        made = TASKS[name](data, seed)
        new = file.with_suffix(f".{os.getpid()}")
        torch.save([(dict(p.inputs), p.labels) for p in (made.train, made.valid, made.dep, made.test)], new)
        new.replace(file)
    parts = torch.load(file, weights_only=True)
    return Task(*(Examples(inputs, labels) for inputs, labels in parts)).to(device)


def strategy(method: str, options: Mapping[str, Any]) -> AbstractStrategy:
    """A strategy by its name; modulation takes the cheapest plan that is equal to the exact one here."""
    if method == "agm":
        rule = {k: v for k, v in options.items() if k != "alone"}
        return strategies.Agm(Modulation(**rule), plan="late-fast", unimodal_loss_weight=options.get("alone", 0.0))
    return KINDS[method](**options)


def _setting(run: Run, task: Task, seed: int) -> Setting:
    names = tuple(task.train.inputs)
    depth = 1 if run.fusion == "early" and run.task in ("competition", "no competition") else 2

    def encoder(name: str) -> Callable[[], torch.nn.Module]:
        if run.network == "convolutional" and name != "sums":
            return convolutional
        return lambda: perceptron(SIZES[name], WIDTH, depth)

    net = built({m: encoder(m) for m in names}, WIDTH, 10, run.fusion, seed).to(task.train.labels.device)
    return Setting(net, names, masks_of("zero", names), places(dict.fromkeys(names)), seed=seed)


def carried(run: Run, data: Path, device: str, kept: Path) -> dict[str, Any]:
    """Train once and score: accuracy of every response, and competition strengths if they are asked for."""
    torch.set_num_threads(1)
    start, task = time.perf_counter(), _task(run.task, data, run.seed, device, kept)
    setting = _setting(run, task, run.seed)
    Fit(seed=run.seed, **run.fit)(setting, task.train, strategy(run.method, run.options), task.valid)
    part = getattr(task, run.score)
    found = {
        "accuracy": {m: _accuracy(r, part.labels) for m, r in responses_of(setting, part).items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    if run.strength:
        parts = (task.dep, task.test)
        features = [fused_representation(setting.model, p.inputs)[0] for p in parts]
        found["strength"] = {
            m: _strengths(features, concepts)
            for m in setting.modalities
            if (concepts := _concepts(run.task, run.fusion, run.seed, m, json.dumps(dict(run.fit)), data, device, kept))
        }
    return found


def _strengths(features: list[np.ndarray], concepts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """As we measure it, and as the published code does: penalty 120 on features as they are."""
    tests = {"ours": CompetitionTest(draws=2), "published": CompetitionTest(120.0, scaled=False, draws=2)}
    found = {k: [t(features[0], a, features[1], b) for a, b in concepts] for k, t in tests.items()}
    mean = over_concepts(found["ours"])
    return {
        "whitened": mean.whitened,
        "plain": mean.plain,
        "published": float(np.mean([f.whitened for f in found["published"]])),
    }


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


@lru_cache(64)
def _concepts(
    name: str, fusion: str, seed: int, modality: str, fit: str, data: Path, device: str, kept: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What networks of one modality alone answer to the part that readouts are fitted on, and to the one scored."""
    task, out = _task(name, data, seed, device, kept), []
    for i in range(CONCEPTS):
        start = 1000 + CONCEPTS * seed + i
        setting = _setting(Run(name, fusion, "single"), task, start)
        Fit(seed=start, **json.loads(fit))(setting, task.train, strategies.Single(modality))
        out.append(
            tuple(concept_outputs(setting.model, p.inputs, modality, setting.masks) for p in (task.dep, task.test))
        )
    return out


class Ledger:
    """Results by run, on disk after every one: whoever is stopped keeps what was done, and goes on from there."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        known = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.about, self.summary = path, dict(about), known.get("summary", {})
        self.done: dict[str, dict[str, Any]] = {json.dumps(r["run"], sort_keys=True): r for r in known.get("runs", [])}

    def __getitem__(self, run: Run) -> dict[str, Any] | None:
        return self.done.get(run.key)

    def carry_out(self, runs: Iterable[Run], data: Path, device: str, jobs: int, until: float) -> bool:
        """Carry out what is not done yet, several at once.

        Returns:
            Whether all of them are done.
        """
        waiting: list[Run] = []
        seen: set[str] = set(self.done)
        for run in runs:
            if run.key not in seen:
                seen.add(run.key)
                waiting.append(run)
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as kept, ProcessPoolExecutor(jobs, mp_context=context) as pool:
            futures = {pool.submit(carried, run, data, device, Path(kept)): run for run in waiting}
            written = time.monotonic()
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                self.done[futures[future].key] = {"run": asdict(futures[future]), **future.result()}
                if time.monotonic() > until:
                    for other in futures:
                        other.cancel()
                if time.monotonic() > written + 5:
                    self.write()
                    written = time.monotonic()
        self.write()
        return all(run.key in self.done for run in waiting)

    def write(self) -> None:
        """Put everything on disk, whole or not at all."""
        found = {**self.about, **stamp(self.path.stem), "summary": self.summary, "runs": list(self.done.values())}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(found, default=float) + "\n")
        new.replace(self.path)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean difference over paired seeds, with its 95 % interval (Student) and the one-sided lower limit."""
    from scipy.stats import t

    d = np.array(ours) - np.array(theirs)
    if len(d) < 2:
        return {"mean": float(d.mean()) if len(d) else None, "n": len(d)}
    error = float(d.std(ddof=1) / len(d) ** 0.5)
    half, one = float(t.ppf(0.975, len(d) - 1)) * error, float(t.ppf(0.95, len(d) - 1)) * error
    mean = float(d.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "lower_one_sided": mean - one, "n": len(d)}


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval (Student)."""
    return {k: v for k, v in paired(values, [0.0] * len(values)).items() if k != "lower_one_sided"}
