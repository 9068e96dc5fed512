"""Two held-back beds of networks with known history, on which nothing is ever chosen.

Sources of a bed differ in nothing but their seed. Each has a child of every kind of `KINDS` and a grandchild of every
kind of `GRANDCHILDREN`; what is not said below is as in the first line.

| kind | made by |
|---|---|
| new head | fine-tuning on other labels, with a fresh head of as many classes; every layer learns |
| new head, again | the same on yet other labels |
| new width | the head has another number of classes |
| head kept | going on with the source's task on other examples |
| relabelled | the source's head goes on, with the labels exchanged |
| partly frozen | a fresh head, and the first two layers stay |
| long | the head is kept; so long that weights change by more than their length |
| long new head | the same, of other labels with a fresh head |
| distilled | another start learns the source's probabilities on other examples |
| few-shot | ten examples of each new label, fresh head |
| imbalanced | fresh head, and the rarest label has a fiftieth of the examples of the commonest |
| pruned | half of the entries of each matrix, the smallest, are zero |
| int8 | matrices rounded to 255 levels per row |
| grandchild | fine-tuning of `new head` on other labels with a fresh head |
| grandchild, long | fine-tuning of `long` on other labels with a fresh head |
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.zoo.cache import folder as cache_folder
from testbeds.held_back.networks import EARLY, STACK, Arrays, Lesson, answers, fresh, learn, module_of
from testbeds.held_back.tasks import Task, examples, few, imbalanced

BEDS = ("garments", "spoken")
SOURCES = 24
VERSION = 1
"""Raised whenever a member would have other weights than before."""

TAUGHT = (
    "new head", "new head, again", "new width", "head kept", "relabelled", "partly frozen", "long", "long new head",
    "distilled", "few-shot", "imbalanced",
)  # fmt: skip
KINDS = (*TAUGHT, "pruned", "int8")
GRANDCHILDREN = {"grandchild": "new head", "grandchild, long": "long"}
FRESH_HEADS = frozenset({"new head", "new head, again", "new width", "partly frozen", "long new head", "few-shot",
                         "imbalanced", "grandchild", "grandchild, long"})  # fmt: skip
SAME_START = frozenset(KINDS) - {"distilled"} | frozenset(GRANDCHILDREN)
"""Kinds whose weights come from their source; a distilled student's do not."""


@dataclass(frozen=True)
class Schedule:
    """Steps, examples in each, and rate."""

    steps: int
    batch: int
    rate: float


SCHEDULES = {
    "garments": {"source": Schedule(400, 48, 0.05), "child": Schedule(160, 32, 0.02),
                 "long": Schedule(450, 32, 0.4), "distilled": Schedule(400, 48, 0.05)},
    "spoken": {"source": Schedule(900, 32, 0.0015), "child": Schedule(400, 32, 0.001),
               "long": Schedule(1600, 32, 0.006), "distilled": Schedule(900, 32, 0.0015)},
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network with its history.

    Attributes:
        name: Unique in its bed.
        bed: `garments` or `spoken`.
        source: Number of the source that it goes back to.
        parent: Name of the network that it was made from, None for a source.
        kind: `source`, one of `KINDS`, or one of `GRANDCHILDREN`.
        generation: 0 for sources.
        task: What it learnt last.
        accuracy: On test examples of that task; of a distilled student how often it says what its teacher says.
        chance: Share of the commonest label among these.
        change: Length of the change of the weights before the head over the length that they had in the parent.
        arrays: Parameters and buffers.
    """

    name: str
    bed: str
    source: int
    parent: str | None
    kind: str
    generation: int
    task: Task
    accuracy: float
    chance: float
    change: float
    arrays: Arrays = field(repr=False, compare=False)

    @property
    def model(self) -> Model:
        """The network as a model of the package."""
        return _model(self)


_MODELS: dict[tuple[str, str], Model] = {}


def _model(member: Member) -> Model:
    key = member.bed, member.name
    if key not in _MODELS:
        if member.bed == "garments":
            spec = InputSpec("image", (1, 28, 28), 0.0, 1.0)
        else:
            spec = InputSpec("tensor", (1, 20, 16), -4.0, 4.0)
        _MODELS[key] = from_module(module_of(member.bed, member.arrays), member.name, spec)
    return _MODELS[key]


def bed(name: str, sources: int = SOURCES) -> tuple[Member, ...]:
    """All members of a bed, in the order of their sources; trained once, then read from the cache of the zoo.

    Args:
        name: One of `BEDS`.
        sources: How many.

    Returns:
        The members.
    """
    return _bed(name, sources)


def probes(name: str, count: int = 384) -> Probes:
    """Inputs of a bed, from the test part: spoken digits, or garments that lie upright and digits, half and half."""
    if name == "spoken":
        x, _ = examples(_base(name), "test")
        return Probes.of(x[:count], kind="tensor", source="spoken digits, test part")
    first, second = _base(name), Task("mnist")
    rng = np.random.default_rng(17)
    both = []
    for task in (first, second):
        x, _ = examples(task, "test")
        both.append(x[rng.choice(len(x), count // 2, replace=False)])
    x = np.concatenate(both)[rng.permutation(count)]
    return Probes.of(x.astype(np.float32) / 255, kind="image", source="garments and digits, test part")


@lru_cache(maxsize=2)
def _bed(name: str, sources: int) -> tuple[Member, ...]:
    recipe = json.dumps(
        {
            "bed": name,
            "sources": sources,
            "version": VERSION,
            "schedules": {k: asdict(v) for k, v in SCHEDULES[name].items()},
        },
        sort_keys=True,
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:24]
    path = cache_folder().parent / "held-back" / f"{name}-{digest}.npz"
    about = path.with_suffix(".json")
    if not (path.exists() and about.exists()):
        pieces = path.with_suffix("")
        made = list(_make(name, sources, pieces))
        _store(path, [m.arrays for m in made])
        about.write_text(json.dumps([asdict(replace(m, arrays={})) for m in made]))
        shutil.rmtree(pieces)
    rows = json.loads(about.read_text())
    return tuple(
        Member(**{**row, "task": Task(**row["task"]), "arrays": found})
        for row, found in zip(rows, _stored(path), strict=True)
    )


def _base(name: str) -> Task:
    return Task("fashion" if name == "garments" else "speech")


def _other(name: str, source: int, number: int) -> Task:
    """Other labels; of garments every second one is the handwritten digits."""
    seed = 1000 * (source + 1) + number
    if name == "spoken":
        return Task("speech", "voice", 10, seed)
    return Task("mnist", seed=seed) if (source + number) % 2 else Task("fashion", "turned class", 10, seed)


def _task(name: str, kind: str, source: int) -> Task:
    base = _base(name)
    match kind:
        case "source" | "head kept" | "long" | "distilled" | "pruned" | "int8":
            return base
        case "relabelled":
            return replace(base, seed=source + 1)
        case "new width":
            return Task("speech", "speaker", 6) if name == "spoken" else Task("fashion", "turned class", 4, source + 1)
    order = ("new head", "new head, again", "partly frozen", "long new head", "few-shot", "imbalanced", *GRANDCHILDREN)
    return _other(name, source, order.index(kind))


def _seed(name: str, source: int, kind: str) -> int:
    text = f"{name}/{source}/{kind}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def _make(name: str, sources: int, keep: Path) -> Iterator[Member]:
    plans, everyone = SCHEDULES[name], range(sources)
    made: dict[tuple[int, str], Arrays] = {}

    def teach(way: str, kinds: Sequence[str], plan: Schedule) -> None:
        jobs = [(s, k) for k in kinds for s in everyone]
        for at in range(0, len(jobs), STACK):
            some = jobs[at : at + STACK]
            path = keep / f"{way.replace(' ', '-')}-{at}.npz"
            if not path.exists():
                lessons = [_lesson(name, k, s, _above(name, s, k, made), plan.rate) for s, k in some]
                _store(path, learn(name, lessons, plan.steps, plan.batch))
            made.update(zip(some, _stored(path), strict=True))

    teach("source", ["source"], plans["source"])
    for way in ("child", "new width", "long", "distilled"):
        teach(way, [k for k in TAUGHT if _way(k) == way], plans["child" if way == "new width" else way])
    teach("grandchild", list(GRANDCHILDREN), plans["child"])
    for s in everyone:
        made[s, "pruned"], made[s, "int8"] = _pruned(made[s, "source"]), _rounded(made[s, "source"])
        for kind in ("source", *KINDS, *GRANDCHILDREN):
            yield _member(name, s, kind, made)


def _above(name: str, source: int, kind: str, made: dict[tuple[int, str], Arrays]) -> Arrays:
    """What a network starts from, or learns from."""
    if kind == "source":
        return fresh(name, _seed(name, source, kind))
    return made[source, GRANDCHILDREN.get(kind, "source")]


def _store(path: Path, networks: Sequence[Arrays]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **{f"{i}/{n}": a for i, arrays in enumerate(networks) for n, a in arrays.items()})  # ty: ignore[invalid-argument-type]
    part.rename(path)


def _stored(path: Path) -> list[Arrays]:
    found: dict[int, Arrays] = {}
    with np.load(path) as held:
        for key in held.files:
            number, name = key.split("/", 1)
            found.setdefault(int(number), {})[name] = held[key]
    return [found[i] for i in sorted(found)]


def _way(kind: str) -> str:
    return "long" if kind.startswith("long") else kind if kind in ("new width", "distilled") else "child"


def _lesson(name: str, kind: str, source: int, start: Arrays, rate: float) -> Lesson:
    task, seed = _task(name, kind, source), _seed(name, source, kind)
    x, y = examples(task, "a" if kind == "source" else "b", 20_000 if kind == "source" else 8000)
    if kind in ("few-shot", "imbalanced"):
        rows = few(y, 10, seed) if kind == "few-shot" else imbalanced(y, 50, seed)
        x, y = x[rows], y[rows]
    targets = np.eye(task.width, dtype=np.float32)[y]
    begin = dict(start)
    if kind in FRESH_HEADS:
        begin |= {n: a for n, a in fresh(name, seed, task.width).items() if n.startswith("answer")}
    if kind == "distilled":
        targets = _soft(answers(name, start, x))
        begin = fresh(name, seed)
    return Lesson(begin, x, targets, seed, rate, EARLY[name] if kind == "partly frozen" else ())


def _soft(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()


def _each_matrix(arrays: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return {n: change(a).astype(a.dtype) if a.ndim >= 2 else a.copy() for n, a in arrays.items()}


def _pruned(arrays: Arrays) -> Arrays:
    return _each_matrix(arrays, lambda a: np.where(np.abs(a) > np.median(np.abs(a)), a, 0))


def _rounded(arrays: Arrays) -> Arrays:
    def change(a: np.ndarray) -> np.ndarray:
        step = np.abs(a).max(axis=tuple(range(1, a.ndim)), keepdims=True) / 127
        return np.round(a / step) * step

    return _each_matrix(arrays, change)


def _member(name: str, source: int, kind: str, made: dict[tuple[int, str], Arrays]) -> Member:
    above = None if kind == "source" else GRANDCHILDREN.get(kind, "source")
    task, arrays = _task(name, kind, source), made[source, kind]
    x, y = examples(task, "test", 1500)
    said = answers(name, arrays, x).argmax(1)
    if kind == "distilled":
        y = answers(name, made[source, "source"], x).argmax(1)
    change = 0.0 if above is None else _change(made[source, above], arrays)
    return Member(
        name=f"{name}-{source:02d}-{kind}".replace(", ", "-").replace(" ", "-"),
        bed=name,
        source=source,
        parent=None if above is None else f"{name}-{source:02d}-{above}".replace(", ", "-").replace(" ", "-"),
        kind=kind,
        generation=0 if above is None else 1 + (kind in GRANDCHILDREN),
        task=task,
        accuracy=round(float((said == y).mean()), 4),
        chance=round(float(np.bincount(y).max() / len(y)), 4),
        change=round(change, 4),
        arrays=arrays,
    )


def _change(parent: Arrays, child: Arrays) -> float:
    names = [n for n in parent if n.endswith(("weight", "bias")) and not n.startswith("answer")]
    far, long = (
        np.sqrt(sum(np.square(x).sum() for x in xs))
        for xs in zip(*[(child[n] - parent[n], parent[n]) for n in names], strict=True)
    )
    return float(far / long)


def learned(members: Sequence[Member]) -> dict[str, Any]:
    """By kind: accuracy, chance and change; the least are those of single networks."""
    out: dict[str, Any] = {}
    for kind in dict.fromkeys(m.kind for m in members):
        here = [m for m in members if m.kind == kind]
        out[kind] = {
            "networks": len(here),
            "accuracy": round(float(np.mean([m.accuracy for m in here])), 3),
            "least": min(m.accuracy for m in here),
            "chance": round(float(np.mean([m.chance for m in here])), 3),
            "learnt": all(m.accuracy > 2 * m.chance for m in here),
            "change": round(float(np.mean([m.change for m in here])), 3),
            "least change": min(m.change for m in here),
        }
    return out
