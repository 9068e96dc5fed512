"""Beds for few controls: teachers and peers of one architecture on the same data, students, and honest networks."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.checkpoints.model import Model
from stemma.probes import Probes
from stemma.types import Spec
from stemma.zoo.cache import recall
from stemma.zoo.data import Examples
from stemma.zoo.kinds import Schedule
from stemma.zoo.memory import model_of
from stemma.zoo.training import Arrays, initial, logits, seed_for, train

VERSION = 1
SIDE, STACK = 12, 24

_IMAGE = {"input_shape": [1, SIDE, SIDE], "classes": 10}
_CNN = {"model_type": "stemma-cnn", **_IMAGE, "stem": 8, "widths": [12, 16], "strides": [2, 2]}
_DEEP = {"model_type": "stemma-cnn", **_IMAGE, "stem": 6, "widths": [10, 14, 14], "strides": [2, 2, 1]}
_MLP = {"model_type": "stemma-mlp", **_IMAGE, "hidden": [64, 48]}
_WIDE = {"model_type": "stemma-mlp", **_IMAGE, "hidden": [112]}
_LM = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 32,
    "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
    "torch_dtype": "float32",
}  # fmt: skip
_WIDE_LM = {**_LM, "hidden_size": 48, "head_dim": 24, "intermediate_size": 112, "num_hidden_layers": 1}
LENGTH = 16


@dataclass(frozen=True)
class Bed:
    """One data set with its networks.

    Attributes:
        name: Of the data.
        split: `development`, where weights were chosen, or `scored`.
        teacher: Architecture of teachers and of their peers, the controls.
        others: Architectures of students and of honest networks.
        schedules: How each architecture learns.
        load: Inputs and labels: of the owner, of the attacker, and probes.
    """

    name: str
    split: str
    teacher: Mapping[str, Any]
    others: tuple[Mapping[str, Any], ...]
    load: Callable[[Path], tuple[Examples, Examples, Examples]]

    def schedule(self, config: Mapping[str, Any]) -> Schedule:
        """How long an architecture learns."""
        if config["model_type"] == "llama":
            return Schedule(160, 16, 8e-3)
        return Schedule(300, 32, 5e-3) if "hidden" in config else Schedule(150, 32, 1e-2)


@dataclass(frozen=True)
class Size:
    """How many networks a bed has.

    Attributes:
        teachers: Peers that have students.
        peers: Networks of the teacher's architecture on the owner's data, teachers included.
        students: Per teacher, architecture and kind of answer.
        honest: Per architecture and part of the data.
    """

    teachers: int
    peers: int
    students: int
    honest: int


SIZES = {"tiny": Size(2, 14, 1, 3), "small": Size(4, 24, 2, 8), "full": Size(8, 40, 4, 24)}


@dataclass(frozen=True, eq=False)
class Made:
    """A network of a bed: its role (`peer`, `student` or `honest`), and whom or what it learned from."""

    role: str
    model: Model
    teacher: int = -1
    answers: str = ""
    part: str = ""


def networks(bed: Bed, size: Size, data: Path) -> tuple[list[Made], Probes]:
    """All networks of a bed, the peers first (the first of them are the teachers), and the probes."""
    owner, attacker, asked = bed.load(data)
    made = [Made("peer", m, part="owner") for m in _trained(bed, bed.teacher, owner, size.peers, 1)]
    for a, config in enumerate(bed.others):
        for p, (part, examples) in enumerate((("owner", owner), ("attacker", attacker))):
            found = _trained(bed, config, examples, size.honest, seed_for(2, a, p))
            made += [Made("honest", m, part=part) for m in found]
    for t in range(size.teachers):
        given = answers(bed, made[t].model, attacker.inputs)
        for a, config in enumerate(bed.others):
            for kind in ("probabilities", "labels"):
                taught = Examples(attacker.inputs, given if kind == "probabilities" else given.argmax(-1))
                found = _trained(bed, config, taught, size.students, seed_for(3, t, a, kind == "labels"))
                made += [Made("student", m, t, kind, "attacker") for m in found]
    tokens = asked.inputs.dtype.kind == "i"
    return made, Probes.of(asked.inputs, None if tokens else asked.targets)


def answers(bed: Bed, model: Model, inputs: np.ndarray) -> np.ndarray:
    """Probabilities that a network of a bed gives."""
    weights = {n: np.array(t.array()) for n, t in model.tensors.items()}
    return torch.from_numpy(logits(model.config, [weights], inputs)[0]).softmax(-1).numpy()


def students(bed: Bed, model: Model, inputs: np.ndarray, count: int) -> list[Model]:
    """Networks of a model's architecture that learn its answers to some inputs, each from its own start."""
    return _trained(bed, model.config, Examples(inputs, answers(bed, model, inputs)), count, 4, identity=model.digest)


def _trained(
    bed: Bed, config: Mapping[str, Any], examples: Examples, count: int, seed: int, identity: str = ""
) -> list[Model]:
    recipe = {"bed": bed.name, "config": config, "seed": seed, "count": count, "schedule": bed.schedule(config),
              "identity": identity}  # fmt: skip

    def make() -> tuple[Arrays, Mapping[str, Any]]:
        starts = [initial(config, seed_for(seed, 0, i)) for i in range(count)]
        runs: list[list[Arrays]] = []
        for at in range(0, count, STACK):
            some = range(at, min(at + STACK, count))
            runs += train(config, [starts[i] for i in some], examples, bed.schedule(config),
                          [seed_for(seed, 1, i) for i in some])  # fmt: skip
        return {n: np.stack([r[-1][n] for r in runs]) for n in runs[0][-1]}, config

    stack, _ = recall(Spec("few-controls", VERSION, recipe).digest, make, keep=True)
    return [model_of(f"{bed.name}-{seed}-{i}", {n: a[i] for n, a in stack.items()}, config) for i in range(count)]


def _parts(x: np.ndarray, y: np.ndarray, each: int, probes: int, seed: int) -> tuple[Examples, Examples, Examples]:
    rows = np.random.default_rng([20261201, seed]).permutation(len(x))
    cuts = (slice(0, each), slice(each, 2 * each), slice(2 * each, 2 * each + probes))
    return tuple(Examples(x[rows[c]], y[rows[c]]) for c in cuts)  # ty: ignore[invalid-return-type]


def _resized(images: np.ndarray) -> np.ndarray:
    return F.interpolate(torch.from_numpy(images[:, None]), size=(SIDE, SIDE), mode="area").numpy()


def _idx(source: str, noise: float, each: int, seed: int) -> Callable[[Path], tuple[Examples, Examples, Examples]]:
    def load(folder: Path) -> tuple[Examples, Examples, Examples]:
        with np.load(folder / f"{source}_test.npz") as found:
            x, y = _resized(found["images"].astype(np.float32) / 255), found["labels"].astype(np.int64)
        draw = np.random.default_rng([seed, 5])
        return _parts(x + np.float32(noise) * draw.standard_normal(x.shape, np.float32), y, each, 256, seed)

    return load


@cache
def _cifar(folder: Path) -> tuple[Examples, Examples, Examples]:
    from PIL import Image

    packed = np.load(folder / "cifar10_jpeg_test.npz")
    head, bodies = packed["jpeg_header"].tobytes(), packed["jpeg_bodies"].tobytes()
    ends = np.cumsum(packed["body_lengths"].astype(np.int64))
    starts = np.concatenate([[0], ends[:-1]])
    grey = [
        np.array(Image.open(io.BytesIO(head + bodies[a:b])).convert("L")) for a, b in zip(starts, ends, strict=True)
    ]
    return _parts(_resized(np.array(grey, np.float32) / 255), packed["labels"].astype(np.int64), 3000, 256, 3)


@cache
def _speech(folder: Path) -> tuple[Examples, Examples, Examples]:
    packed = np.load(folder / "spoken_digits_mulaw8k.npz")
    y = packed["mulaw"].astype(np.float64) / 255 * 2 - 1
    wave = np.sign(y) * (256.0 ** np.abs(y) - 1) / 255
    pictures = []
    for part in np.split(wave, np.cumsum(packed["lengths"])[:-1]):
        padded = np.pad(part, (0, max(0, 1024 - len(part))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, 256)[::64] * np.hanning(256)
        power = np.log(np.abs(np.fft.rfft(frames)[:, 1:97]).T + 1e-3)
        pictures.append(F.adaptive_avg_pool2d(torch.from_numpy(power)[None], SIDE)[0].numpy())
    x = np.array(pictures, np.float32)
    x = (x - x.min()) / (x.max() - x.min())
    return _parts(x[:, None], packed["digit"].astype(np.int64), 1200, 256, 4)


@cache
def _text(folder: Path) -> tuple[Examples, Examples, Examples]:
    with np.load(folder / "text_authors.npz") as found:
        raw = np.minimum(found["bronte"], 127).astype(np.int64)
    rows = raw[: len(raw) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    owner, attacker, asked = _parts(rows[:, :-1], rows[:, 1:], 3000, 64, 5)
    return owner, attacker, asked


BEDS: Sequence[Bed] = (
    Bed("noisy clothes", "development", _CNN, (_DEEP, _WIDE), _idx("fashion_mnist", 0.15, 400, 1)),
    Bed("handwritten digits", "development", _MLP, (_CNN, _WIDE), _idx("mnist", 0.0, 3000, 2)),
    Bed("photographs", "scored", _CNN, (_DEEP, _WIDE), _cifar),
    Bed("spoken digits", "scored", _MLP, (_CNN, _WIDE), _speech),
    Bed("text", "scored", _LM, (_WIDE_LM,), _text),
)
"""What the weights were chosen on, and what nothing was chosen on."""
