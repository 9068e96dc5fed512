"""Small networks for segmentation and for detection, in families: a root, its fine-tunes, and theirs.

Digits of scikit-learn lie somewhere on a canvas of 12 x 12, and each digit belongs to one of two groups. A segmentation
network (an encoder, a decoder and a shortcut) says for every pixel whether a digit of the one group, of the other, or
nothing is there; a detection network says which group is shown, and where its middle lies. Children learn other groups
on other pictures (negative, turned), so that what they do differs from their parent. Networks of one generation train
as one stack; all seeds are fixed.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stemma.networks.load import from_arrays
from stemma.training.relatives import Relative
from stemma.types import Spec
from stemma.zoo.cache import recall
from stemma.zoo.data import examples

Arrays = dict[str, np.ndarray]

SIDE, CLASSES, BATCH = 12, 2, 32
TASKS = ("segmentation", "detection")

_SEGMENTATION = {
    "fine": (8, 1, 3, 3), "down": (16, 8, 3, 3), "middle": (24, 16, 3, 3), "up": (16, 24, 3, 3),
    "head": (CLASSES + 1, 24, 1, 1),
}  # fmt: skip
_DETECTION = {
    "conv1": (8, 1, 3, 3), "conv2": (16, 8, 3, 3), "conv3": (24, 16, 3, 3), "hidden": (32, 24 * 9),
    "label": (CLASSES, 32), "place": (2, 32),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingJob:
    """What one network learns: labels exchanged, pictures negative or turned."""

    seed: int
    negative: bool = False
    turned: bool = False


def start(task: str, seed: int) -> Arrays:
    rng = np.random.default_rng([seed, 5])
    shapes = _SEGMENTATION if task == "segmentation" else _DETECTION
    out = {}
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:]))
        out[f"{name}.weight"] = (rng.normal(size=shape) * np.sqrt(2 / fan)).astype(np.float32)
        out[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return out


def pictures(job: TrainingJob, count: int = 900, part: str = "a") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canvases `[n, 1, 12, 12]`, labels per pixel `[n, 12, 12]` (2 is nothing), and label and middle `[n, 3]`."""
    rng = np.random.default_rng([job.seed, 6])
    known = examples("mlp", part)
    rows = rng.integers(len(known.inputs), size=count)
    order = (rng.permutation(10) if job.seed else np.arange(10)) % CLASSES
    canvas = rng.random((count, 1, SIDE, SIDE), np.float32) * 0.15
    mask = np.full((count, SIDE, SIDE), CLASSES, np.int64)
    place = np.zeros((count, 3), np.float32)
    for i, row in enumerate(rows):
        digit, label = known.inputs[row, 0], order[known.targets[row]]
        digit = np.rot90(digit) if job.turned else digit
        top, left = rng.integers(0, SIDE - 8 + 1, 2)
        canvas[i, 0, top : top + 8, left : left + 8] = np.maximum(canvas[i, 0, top : top + 8, left : left + 8], digit)
        mask[i, top : top + 8, left : left + 8][digit > 0.3] = label
        place[i] = label, (top + 4) / SIDE, (left + 4) / SIDE
    return (1 - canvas if job.negative else canvas), mask, place


def forward(task: str, p: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A stack of m networks on inputs `[m, n, 1, 12, 12]`: logits `[m, n, 3, 144]`, or `[m, n, 2]` and middles."""
    m, n = x.shape[:2]

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        w = p[f"{name}.weight"]
        side = (x.shape[-1] - 1) // stride + 1
        columns = F.unfold(x.flatten(0, 1), w.shape[-1], padding=w.shape[-1] // 2, stride=stride)
        columns = columns.view(m, n, -1, side * side).transpose(1, 2).flatten(2)
        found = torch.baddbmm(p[f"{name}.bias"][:, :, None], w.flatten(2), columns)
        return found.view(m, -1, n, side * side).transpose(1, 2).reshape(m, n, -1, side, side)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(p[f"{name}.bias"][:, None], x, p[f"{name}.weight"].transpose(1, 2))

    if task == "segmentation":
        fine = conv("fine", x).relu()
        x = conv("up", conv("middle", conv("down", fine, 2).relu()).relu()).relu()
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (conv("head", torch.cat([x, fine], 2)).flatten(3),)
    x = conv("conv3", conv("conv2", conv("conv1", x, 2).relu()).relu(), 2).relu().flatten(2)
    x = linear("hidden", x).relu()
    return linear("label", x), linear("place", x).sigmoid()


def _loss(found: tuple[torch.Tensor, ...], mask: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    m = len(mask)
    if len(found) == 1:
        weight = torch.tensor([1.0] * CLASSES + [0.3])
        return m * F.cross_entropy(found[0].flatten(0, 1), mask.flatten(0, 1).flatten(1), weight)
    label = F.cross_entropy(found[0].flatten(0, 1), place[..., 0].long().flatten())
    return m * (label + 20 * F.mse_loss(found[1], place[..., 1:]))


def run_jobs(task: str, starts: list[Arrays], jobs: list[TrainingJob], steps: int, rate: float) -> list[Arrays]:
    """Train a stack, each network on its own pictures."""
    stack = {n: torch.from_numpy(np.stack([s[n] for s in starts])).requires_grad_() for n in starts[0]}
    optimizer = torch.optim.Adam(stack.values(), lr=rate, foreach=True)
    data = [tuple(map(torch.from_numpy, pictures(job))) for job in jobs]
    count = len(data[0][0])
    orders = [
        np.random.default_rng([one.seed, i, 7]).integers(count, size=(steps, BATCH)) for i, one in enumerate(jobs)
    ]
    for step in range(steps):
        x, mask, place = (torch.stack([d[k][o[step]] for d, o in zip(data, orders, strict=True)]) for k in range(3))
        optimizer.zero_grad()
        _loss(forward(task, stack, x), mask, place).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - 0.9 * step / steps)
    return [{n: t[i].detach().numpy().copy() for n, t in stack.items()} for i in range(len(starts))]


def taught(task: str, starts: list[Arrays], jobs: list[TrainingJob], steps: int, rate: float) -> list[Arrays]:
    """The same from the zoo's cache, where it was done before."""
    digests = [str(from_arrays(a, "start", None).digest) for a in starts]
    known = {"task": task, "starts": digests, "lessons": [asdict(one) for one in jobs], "steps": steps, "rate": rate}

    def make() -> tuple[Arrays, dict]:
        ends = run_jobs(task, starts, jobs, steps, rate)
        return {n: np.stack([e[n] for e in ends]) for n in ends[0]}, {}

    stacked, _ = recall(Spec("dense-networks", 1, known).digest, make, keep=True)
    return [{n: a[i] for n, a in stacked.items()} for i in range(len(starts))]


def quality(task: str, arrays: Arrays, job: TrainingJob) -> float:
    """Mean intersection over union of both groups, or share of labels right with the middle within 2 pixels."""
    x, mask, place = pictures(job, 200, "test")
    with torch.no_grad():
        found = forward(task, {n: torch.from_numpy(a)[None] for n, a in arrays.items()}, torch.from_numpy(x)[None])
    if len(found) == 1:
        said = found[0][0].argmax(1).numpy().reshape(mask.shape)
        pairs = [((said == c) & (mask == c)).sum() / max(1, ((said == c) | (mask == c)).sum()) for c in range(CLASSES)]
        return float(np.mean(pairs))
    near = np.abs(found[1][0].numpy() - place[:, 1:]).max(1) < 2 / SIDE
    return float(((found[0][0].argmax(1).numpy() == place[:, 0]) & near).mean())


def families(task: str, count: int, seed: int, children: int = 4, below: int = 1) -> tuple[list[Relative], dict]:
    """Roots, their children and grandchildren, with how well each generation does."""
    made: list[tuple[str, str, tuple[str, ...], Arrays, TrainingJob]] = []
    jobs = [TrainingJob(0) for _ in range(count)]
    roots = taught(task, [start(task, 1000 * seed + i) for i in range(count)], jobs, 300, 5e-3)
    level = [(f"{task}-{seed}-{i}", "root", (), a, job) for i, (a, job) in enumerate(zip(roots, jobs, strict=True))]
    score = {"generation 1": float(np.mean([quality(task, m[3], m[4]) for m in level]))}
    made += level
    for generation, width in enumerate((children, below)):
        again = [(m, j) for m in level for j in range(width)]
        rng = np.random.default_rng([seed, generation, 8])
        jobs = [
            TrainingJob(int(rng.integers(1, 10**6)), bool(rng.random() < 0.5), bool(rng.random() < 0.5)) for _ in again
        ]
        ends = []
        for at in range(0, len(again), 8):
            here = slice(at, at + 8)
            ends += taught(task, [m[3] for m, _ in again[here]], jobs[here], 160, 4e-3)
        level = [(m[0], f"{m[1]}-{j}", (m[1], *m[2]), a, job) for (m, j), a, job in zip(again, ends, jobs, strict=True)]
        made += level
        score[f"generation {generation + 2}"] = float(np.mean([quality(task, m[3], m[4]) for m in level]))
    out = []
    for family, name, above, arrays, _ in made:
        model = from_arrays(arrays, f"{family}:{name}", None)
        out.append(Relative(model.name, model, family, tuple(f"{family}:{a}" for a in above)))
    return out, {k: round(v, 3) for k, v in score.items()}
