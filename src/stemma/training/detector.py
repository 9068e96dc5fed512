"""Training of the lineage detector on families with known history."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.kinship.learned.batches import Arrays, stacked
from stemma.kinship.learned.detector import LineageDetector
from stemma.training import calibration
from stemma.training.detector_questions import Drawing, Pool, Question

Progress = Callable[[str, int, int | None], None]

PARTS = ("train", "selection", "calibration", "test")
LEAST_FAMILIES = 8
"""Fewer families cannot be split into four parts that share none."""


@dataclass(frozen=True)
class Training:
    """How a detector is trained.

    Attributes:
        steps: Updates.
        batch: Questions per update, all of one architecture.
        rate: Highest learning rate of AdamW: warm-up over a twentieth, then a cosine down to 0.
        weight_decay: Of AdamW.
        features: Share of updates in which features are shown, where the pools have them.
        layers: Share of questions in which some layers are left out, as between networks that share only a part.
        check: Updates between evaluations on the selection families; the best weights are kept.
        questions: Questions per evaluation, and of the calibration and test families at the end.
        drawing: How questions are drawn.
        seed: Of the start, the order and the questions.
    """

    steps: int = 1500
    batch: int = 16
    rate: float = 2e-3
    weight_decay: float = 0.01
    features: float = 0.3
    layers: float = 0.3
    check: int = 150
    questions: int = 600
    drawing: Drawing = field(default_factory=Drawing)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.check, self.questions) < 1 or not self.rate > 0:
            raise MisuseError("steps, batch, check and questions of a training must be 1 or more, and its rate above 0")


def split(families: Sequence[str], seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Split whole families: seven tenths to train on, a tenth each to select, to calibrate and to test.

    Args:
        families: Their names; order and repetition do not matter.
        seed: Of the draw.

    Returns:
        Families of each part of `PARTS`.

    Raises:
        MisuseError: If there are too few.
    """
    known = sorted(set(families))
    if len(known) < LEAST_FAMILIES:
        raise MisuseError(
            f"a detector is trained, selected, calibrated and tested on different families, so it needs at least "
            f"{LEAST_FAMILIES} of one architecture: there are {len(known)}. Build a zoo of more families"
        )
    order = [known[i] for i in np.random.default_rng([seed, 17]).permutation(len(known))]
    tenth = max(2 if len(known) >= 12 else 1, len(known) // 10)
    cuts = (len(known) - 3 * tenth, len(known) - 2 * tenth, len(known) - tenth)
    rows = (order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] : cuts[2]], order[cuts[2] :])
    return {part: tuple(row) for part, row in zip(PARTS, rows, strict=True)}


def splits(pools: Sequence[Pool], seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Split every pool separately; a family that several pools hold is in one part only."""
    out: dict[str, tuple[str, ...]] = dict.fromkeys(PARTS, ())
    done: set[str] = set()
    for pool in pools:
        fresh = {r.family for r in pool.relatives} - done
        if len(fresh) < LEAST_FAMILIES:
            out["train"] += tuple(sorted(fresh))
        else:
            for part, own in split(sorted(fresh), seed).items():
                out[part] += own
        done |= fresh
    if not out["test"]:
        largest = max((len({r.family for r in p.relatives}) for p in pools), default=0)
        split([str(i) for i in range(largest)])
    return out


def train(
    pools: Sequence[Pool] | Mapping[str, Sequence[Pool]],
    start: LineageDetector | None = None,
    training: Training | None = None,
    made: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> LineageDetector:
    """Train a detector, keep the best weights by the selection families, and calibrate it on families of their own.

    Cost: a batch of 16 questions takes about 0.1 s on one core. Deterministic on one machine.

    Args:
        pools: Models with their history, whose families are split by the training's seed; or pools for each part of
            `PARTS` where they are split already. Preset `paper` needs features and matrices.
        start: The configuration; the default one unless given.
        training: How long and how fast.
        made: Notes about where the pools come from.
        progress: Called with what happens, how many updates are done, and of how many.

    Returns:
        The trained detector, with its figures on the test families in `made`.

    Raises:
        MisuseError: If there are too few families, or nothing to ask about them.
    """
    import torch

    start, training = start or LineageDetector(), training or Training()
    if isinstance(pools, Mapping):
        given = {p: tuple(pools.get(p, ())) for p in PARTS}
        families_of_part = {p: tuple(sorted({r.family for pool in given[p] for r in pool.relatives})) for p in PARTS}
    else:
        given, families_of_part = dict.fromkeys(PARTS, tuple(pools)), splits(pools, training.seed)
    batches = {p: _fixed_batches(given[p], families_of_part[p], start, training, i) for i, p in enumerate(PARTS[1:], 1)}
    if not any(batches["selection"]) or not any(batches["calibration"]):
        raise MisuseError("no family has a child with a parent to ask about: train on a zoo with more generations")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = start.untrained()
        best = _learn(
            network, given["train"], families_of_part["train"], start, training, batches["selection"], progress
        )
    stored = {n: _stored(a, start.preset) for n, a in best.items()}
    found = replace(start, weights=stored, temperature=1.0, shift=0.0)
    logits, labels = _logits_and_labels(found, batches["calibration"])
    temperature, shift = calibration.fit(logits, labels)
    note = {**(made or {}), "training": asdict(training), "families": {p: len(families_of_part[p]) for p in PARTS}}
    found = replace(found, temperature=temperature, shift=shift)
    return replace(found, made={**note, "test": report(found, batches["test"])})


def _stored(array: np.ndarray, preset: str) -> np.ndarray:
    """Weights as the file will hold them, so that the calibration is of those."""
    return array.astype(np.float16).astype(np.float32) if preset == "v2" else array


QuestionBatches = list[tuple[list[Arrays], list[int]]]


def _learn(network: Any, pools: Sequence[Pool], families: Sequence[str], start: LineageDetector, training: Training,
           selection: QuestionBatches, progress: Progress | None) -> dict[str, np.ndarray]:  # fmt: skip
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=training.weight_decay)
    batches = _batches(pools, families, start, training)
    best, lowest = _weights(network), np.inf
    for step in range(training.steps):
        if progress is not None:
            progress("training the detector", step, training.steps)
        questions, labels = next(batches)
        warm_up = max(1, training.steps // 20)
        factor = min(1.0, (step + 1) / warm_up) * 0.5 * (1 + np.cos(np.pi * step / training.steps))
        for group in optimizer.param_groups:
            group["lr"] = training.rate * factor
        optimizer.zero_grad()
        logits = network(stacked(questions))
        torch.nn.functional.cross_entropy(_with_none_last(logits, labels, questions), torch.tensor(labels)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % training.check == 0 or step + 1 == training.steps:
            loss = _loss(network, selection)
            if loss < lowest:
                best, lowest = _weights(network), loss
    return best


def _with_none_last(logits: Any, labels: list[int], questions: Sequence[Arrays]) -> Any:
    """The label of none is each question's own number of candidates; padded rows move it to the last column."""
    for i, q in enumerate(questions):
        if labels[i] == len(q["candidates"]):
            labels[i] = logits.shape[1] - 1
    return logits


def _weights(network: Any) -> dict[str, np.ndarray]:
    return {n: t.detach().numpy().copy() for n, t in network.state_dict().items() if t.is_floating_point()}


def _loss(network: Any, batches: QuestionBatches) -> float:
    import torch

    network.eval()
    total = []
    with torch.no_grad():
        for questions, labels in batches:
            logits = network(stacked(questions))
            own = list(labels)
            logits = _with_none_last(logits, own, questions)
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(own), reduction="none").tolist()
    network.train()
    return float(np.mean(total))


def _batches(
    pools: Sequence[Pool], families: Sequence[str], start: LineageDetector, training: Training
) -> Iterator[tuple[list[Arrays], list[int]]]:
    """Endless batches of questions and labels, each about one pool, with a new number of candidates."""
    rng = np.random.default_rng([training.seed, 0])
    weights = np.array([np.sqrt(sum(r.child and r.family in set(families) for r in p.relatives)) for p in pools])
    if not weights.sum():
        raise MisuseError("the families to train on have no child to ask about: build a zoo of more families")
    failed = 0
    while failed < 1000:
        pool = pools[rng.choice(len(pools), p=weights / weights.sum())]
        if start.preset == "v2" and rng.random() >= training.features:
            pool = pool.without_features
        drawn = draw_many(pool, families, rng, training.drawing, training.batch)
        if drawn:
            count = pool.views.present.shape[1]
            some = (rng.random(count) < rng.uniform(0.2, 1) if rng.random() < training.layers else None for _ in drawn)
            asked = [pool.arrays(q, start.preset, start.crop, kept) for q, kept in zip(drawn, some, strict=True)]
            batch = _with_answer(asked, [q.label for q in drawn])
            failed = 0 if batch else failed + 1
            yield from batch
        else:
            failed += 1
    raise MisuseError("the families to train on give no questions: build a zoo in which models have several relatives")


def _with_answer(arrays: list[Arrays], labels: list[int]) -> QuestionBatches:
    """One batch, or none: a question whose right answer shares too few layers with the child is left out."""
    answerable = [
        label == len(a["candidates"]) or bool(a["candidates"][label]) for a, label in zip(arrays, labels, strict=True)
    ]
    batch = (
        [a for a, g in zip(arrays, answerable, strict=True) if g],
        [n for n, g in zip(labels, answerable, strict=True) if g],
    )
    return [batch] if any(answerable) else []


def draw_many(
    pool: Pool, families: Sequence[str], rng: np.random.Generator, drawing: Drawing, count: int
) -> list[Question]:
    """Up to `count` questions about some families of a pool, with about equally many candidates."""
    size = round(2 * (drawing.most / 2) ** rng.random())
    found = (pool.draw(families, rng, drawing, size) for _ in range(4 * count))
    return [q for q in found if q is not None][:count]


def _fixed_batches(
    pools: Sequence[Pool], families: Sequence[str], start: LineageDetector, training: Training, place: int
) -> QuestionBatches:
    """The same questions at every evaluation: as many of each pool, in batches of one size."""
    rng = np.random.default_rng([training.seed, place, 1])
    usable = [p for p in pools if {r.family for r in p.relatives} & set(families)]
    batches: QuestionBatches = []
    for pool in usable:
        for i in range(-(-training.questions // (len(usable) * training.batch))):
            visible = pool.without_features if start.preset == "v2" and i % 3 else pool
            drawn = draw_many(pool, families, rng, training.drawing, training.batch)
            batches += _with_answer(
                [visible.arrays(q, start.preset, start.crop) for q in drawn], [q.label for q in drawn]
            )
    return batches


def _logits_and_labels(detector: LineageDetector, batches: QuestionBatches) -> tuple[list[np.ndarray], list[int]]:
    logits, labels = [], []
    for questions, own in batches:
        rows = detector.logits(questions)
        for row, question, label in zip(rows, questions, own, strict=True):
            count = len(question["candidates"])
            logits.append(np.append(row[:count], row[-1]))
            labels.append(label)
    return logits, labels


def report(detector: LineageDetector, batches: QuestionBatches) -> dict[str, Any]:
    """Evaluate a calibrated detector: accuracy with and without a parent, cross-entropy and calibration error."""
    logits, labels = _logits_and_labels(detector, batches)
    if not labels:
        return {}
    found = calibration.probabilities(logits, detector.temperature, detector.shift)
    right = np.array([int(np.argmax(p)) == i for p, i in zip(found, labels, strict=True)])
    none = np.array([i == len(p) - 1 for p, i in zip(found, labels, strict=True)])
    return {
        "questions": len(labels),
        "orphans": int(none.sum()),
        "parent_found": round(float(right[~none].mean()), 4) if (~none).any() else None,
        "orphan_refused": round(float(right[none].mean()), 4) if none.any() else None,
        "cross_entropy": round(calibration.cross_entropy(found, labels), 4),
        "calibration_error": round(calibration.calibration_error(found, labels), 4),
    }
