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

MANY_POOLS = 15
"""Number of pools from which whole pools are held out, instead of families of each."""


@dataclass(frozen=True)
class Training:
    """How a detector is trained.

    Attributes:
        steps: Updates.
        batch: Questions per update.
        rate: Highest learning rate of AdamW: warm-up over a twentieth, then a cosine down to 0.
        weight_decay: Of AdamW.
        drawn: Questions drawn about each pool to learn from, for `v3`; `paper` draws new ones for every update.
        order: Weight of the loss on the order of all pairs in a question, for `v3`.
        check: Updates between evaluations on the selection families; the best weights are kept.
        questions: Questions per evaluation, and of the calibration and test families at the end.
        drawing: How questions are drawn.
        seed: Of the start, the order and the questions.
    """

    steps: int = 1500
    batch: int = 48
    rate: float = 3e-3
    weight_decay: float = 0.05
    drawn: int = 200
    order: float = 0.5
    check: int = 100
    questions: int = 1200
    drawing: Drawing = field(default_factory=lambda: Drawing(relatives=6, orphans=0.35, roots=0.2, descendants=0.5))
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.check, self.questions) < 1 or not self.rate > 0:
            raise MisuseError("steps, batch, check and questions of a training must be 1 or more, and its rate above 0")


PAPER = Training(batch=16, rate=0.01, weight_decay=0.01, check=150, questions=600, drawing=Drawing())
"""How the preset `paper` is trained."""


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


def split_pools(pools: Sequence[Pool], seed: int = 0) -> dict[str, tuple[Pool, ...]]:
    """Split whole pools: three fifths to train on, a tenth to select, a fifth to calibrate, a tenth to test.

    What is calibrated on networks of other makes than those of the training holds for other makes.

    Returns:
        Pools of each part of `PARTS`.
    """
    order = np.random.default_rng([seed, 19]).permutation(len(pools))
    cuts = [round(len(pools) * share) for share in (0.6, 0.7, 0.9)]
    return {
        part: tuple(pools[i] for i in sorted(rows)) for part, rows in zip(PARTS, np.split(order, cuts), strict=True)
    }


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

    Cost: about 5 s per pool to measure, and a minute for 1,500 updates, on one core. Deterministic on one machine.

    Args:
        pools: Models with their history, whose families (or, of many pools, whole pools) are split
            by the training's seed; or pools for each part of
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
    if not isinstance(pools, Mapping) and len(pools) >= MANY_POOLS and start.preset == "v3":
        pools = split_pools(pools, training.seed)
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
    return array.astype(np.float16).astype(np.float32) if preset == "v3" else array


QuestionBatches = list[tuple[list[Arrays], list[int]]]


def _learn(network: Any, pools: Sequence[Pool], families: Sequence[str], start: LineageDetector, training: Training,
           selection: QuestionBatches, progress: Progress | None) -> dict[str, np.ndarray]:  # fmt: skip
    import torch

    if start.preset == "v3":
        known = _drawn(pools, families, training, progress)
        _standardise(network, [q for q, _ in known])
        batches = _mixed(known, training)
    else:
        batches = _batches(pools, families, start, training)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=training.rate, weight_decay=training.weight_decay)
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
        _losses(network, questions, labels, training.order).mean().backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if (step + 1) % training.check == 0 or step + 1 == training.steps:
            loss = _loss(network, selection)
            if loss < lowest:
                best, lowest = _weights(network), loss
    return best


def _losses(network: Any, questions: Sequence[Arrays], labels: Sequence[int], order: float) -> Any:
    """Cross-entropy of each question; of `v3` with that of the order of its pairs."""
    import torch

    found = network(stacked(questions))
    if not isinstance(found, tuple):
        own = list(labels)
        logits = _with_none_last(found, own, questions)
        return torch.nn.functional.cross_entropy(logits, torch.tensor(own), reduction="none")
    logits, odds, neither = found
    columns = [_column(q, label, logits.shape[1] - 1) for q, label in zip(questions, labels, strict=True)]
    out = torch.nn.functional.cross_entropy(logits, torch.tensor(columns), reduction="none")
    if not order:
        return out
    truth = torch.full(odds.shape, -1)
    for i, q in enumerate(questions):
        n = len(q["order"])
        truth[i, :n, :n] = torch.from_numpy(np.where(np.triu(np.ones((n, n)), 1) > 0, q["order"], -1))
    choices = torch.stack([odds / 2, -odds / 2, neither], -1)
    pairs = torch.nn.functional.cross_entropy(
        choices.flatten(0, 2), truth.flatten(), ignore_index=-1, reduction="none"
    ).view(len(questions), -1)
    return out + order * pairs.sum(1) / (truth.flatten(1) >= 0).sum(1).clamp(min=1)


def _column(question: Arrays, label: int, last: int) -> int:
    """Column of the right answer among the logits of the related candidates."""
    return last if label == len(question["candidates"]) else int(np.flatnonzero(question["place"] == label)[0])


def _drawn(
    pools: Sequence[Pool], families: Sequence[str], training: Training, progress: Progress | None
) -> list[tuple[Arrays, int]]:
    """Questions to learn from, as many about each pool; those that nothing related is asked about teach nothing."""
    rng, out = np.random.default_rng([training.seed, 0]), []
    for i, pool in enumerate(pools):
        if progress is not None:
            progress("measuring", i, len(pools))
        left = training.drawn
        while left > 0:
            drawn = draw_many(pool, families, rng, training.drawing, min(left, training.batch))
            for questions, labels in _with_answer([pool.arrays(q, "v3") for q in drawn], [q.label for q in drawn]):
                out += zip(questions, labels, strict=True)
            left -= training.batch
    if not out:
        raise MisuseError("the families to train on give no questions: build a zoo in which models have relatives")
    return out


def _mixed(known: Sequence[tuple[Arrays, int]], training: Training) -> Iterator[tuple[list[Arrays], list[int]]]:
    rng = np.random.default_rng([training.seed, 2])
    while True:
        rows = [known[i] for i in rng.integers(len(known), size=training.batch)]
        yield [q for q, _ in rows], [label for _, label in rows]


def _standardise(network: Any, questions: Sequence[Arrays]) -> None:
    """Numbers of pairs in units of their spread; those that change their sign keep their zero."""
    import torch

    from stemma.kinship.learned.evidence import ODD

    rows = np.concatenate([q["pairs"][1:, 0] for q in questions])
    shift = rows.mean(0)
    shift[: 2 * len(ODD)] = 0
    scale = 1 / np.maximum(np.sqrt(np.square(rows - shift).mean(0)), 1e-3)
    with torch.no_grad():
        network.shift.copy_(torch.from_numpy(shift))
        network.scale.copy_(torch.from_numpy(scale))


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
            total += _losses(network, questions, labels, 0.0).tolist()
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
        drawn = draw_many(pool, families, rng, training.drawing, training.batch)
        batch = _with_answer([pool.arrays(q, start.preset) for q in drawn], [q.label for q in drawn])
        failed = 0 if batch else failed + 1
        yield from batch
    raise MisuseError("the families to train on give no questions: build a zoo in which models have several relatives")


def _with_answer(arrays: list[Arrays], labels: list[int]) -> QuestionBatches:
    """One batch, or none: left out are questions without a related candidate, or whose answer is not among those."""
    answerable = [
        bool(a["candidates"].any()) and (label == len(a["candidates"]) or bool(a["candidates"][label]))
        for a, label in zip(arrays, labels, strict=True)
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
        for _ in range(-(-training.questions // (len(usable) * training.batch))):
            drawn = draw_many(pool, families, rng, training.drawing, training.batch)
            batches += _with_answer([pool.arrays(q, start.preset) for q in drawn], [q.label for q in drawn])
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
    named = np.array([p[:-1].max() >= 0.95 for p in found])
    none = np.array([i == len(p) - 1 for p, i in zip(found, labels, strict=True)])
    return {
        "questions": len(labels),
        "orphans": int(none.sum()),
        "parent_found": round(float(right[~none].mean()), 4) if (~none).any() else None,
        "orphan_refused": round(float(right[none].mean()), 4) if none.any() else None,
        "wrong_parent_named_at_.95": round(float((named & ~right).mean()), 4),
        "cross_entropy": round(calibration.cross_entropy(found, labels), 4),
        "calibration_error": round(calibration.calibration_error(found, labels), 4),
    }
