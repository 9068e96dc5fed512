"""Training with plain torch, from a recipe; what was trained once is kept outside the repository by its digest."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from testbeds.varied import attention_networks, chains, data, public, residual
from testbeds.varied.structure import Arrays, Structure

Design = dict[str, Any]

VERSION = 1
"""Raised whenever a recipe would make other weights than before; it is part of every digest."""

MASK = 0
"""The token that hides another one (masked language models)."""


@dataclass(frozen=True)
class Recipe:
    """How one network comes about.

    Attributes:
        design: The architecture, as JSON.
        data: A set of pictures or an author.
        part: `all`, or one of two halves: `a`, `b`.
        start: Seed of the random start.
        order: Seed of the order of the examples.
        optimizer: `sgd`, `momentum`, `adam` or `adamw`.
        rate: Learning rate.
        decay: Weight decay.
        steps: How many batches.
        batch: Examples in a batch.
        falling: Whether the learning rate falls like a cosine.
        public: What is not learnt but taken from a public source (`public.py`).
    """

    design: Design
    data: str
    part: str
    start: int
    order: int
    optimizer: str
    rate: float
    decay: float
    steps: int
    batch: int
    falling: bool
    public: tuple[tuple[Any, ...], ...] = ()

    @property
    def digest(self) -> str:
        known = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Network:
    """A trained network: how it came about, its tensors, and the share of unseen examples it gets right."""

    recipe: Recipe
    arrays: Arrays
    quality: float

    @property
    def design(self) -> Design:
        return self.recipe.design

    @property
    def config(self) -> dict[str, Any] | None:
        return configuration(self.design, self.arrays)


def module(design: Design) -> Any:
    """The file that knows this architecture."""
    return {"chain": chains, "residual": residual}.get(design["form"], attention_networks)


def structure(design: Design) -> Structure:
    return module(design).structure(design)


def forward(design: Design, arrays: Arrays, x: torch.Tensor) -> torch.Tensor:
    """Logits, without learning."""
    with torch.no_grad():
        return module(design).forward(design, {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items()}, x)


def configuration(design: Design, arrays: Arrays) -> dict[str, Any] | None:
    """What transformers would save beside these tensors; a head of its own is not tied to the table."""
    if module(design) is not attention_networks:
        return None
    config = attention_networks.configuration(design)
    if config is not None and is_language(design):
        known = structure(design)
        config["tie_word_embeddings"] = bool(known.tied) and known.tied[0] not in arrays
    return config


def is_language(design: Design) -> bool:
    return design["form"] in attention_networks.LANGUAGE


def started(design: Design, seed: int) -> Arrays:
    """The random start of a seed."""
    made = module(design).start(design, torch.Generator().manual_seed(seed))
    return {n: t.numpy() for n, t in made.items()}


def questions(design: Design, source: str, folder: Path, count: int = 64) -> torch.Tensor:
    """Unseen inputs: pictures, or passages."""
    if not is_language(design):
        i = design["input"]
        return data.split(folder, source, i["side"], i["channels"], "test")[0][:count]
    text = data.passages(folder, source, design["vocabulary"], "test")
    length = design["length"]
    return text[: count * length].view(count, length)


class Examples:
    """Batches of one recipe."""

    def __init__(self, recipe: Recipe, folder: Path, teacher: Arrays | None = None) -> None:
        self.recipe, design = recipe, recipe.design
        self.teacher = teacher
        self.rng = torch.Generator().manual_seed(recipe.order)
        self.language = is_language(design)
        if self.language:
            self.text = data.passages(folder, recipe.data, design["vocabulary"], recipe.part)
        else:
            i = design["input"]
            self.x, self.y = data.split(folder, recipe.data, i["side"], i["channels"], recipe.part)

    def loss(self, p: dict[str, torch.Tensor]) -> torch.Tensor:
        design, n = self.recipe.design, self.recipe.batch
        call = module(design).forward
        if not self.language:
            at = torch.randint(len(self.x), (n,), generator=self.rng)
            return self._missed(call(design, p, self.x[at], True), self.y[at], self.x[at])
        length = design["length"]
        at = torch.randint(len(self.text) - length, (n, 1), generator=self.rng)
        tokens = self.text[at + torch.arange(length)]
        if design["form"] != "bert":
            said = call(design, p, tokens[:, :-1], True)
            return self._missed(said.flatten(0, 1), tokens[:, 1:].flatten(), tokens[:, :-1])
        hidden = torch.rand(tokens.shape, generator=self.rng) < 0.15
        return F.cross_entropy(call(design, p, tokens.masked_fill(hidden, MASK), True)[hidden], tokens[hidden])

    def _missed(self, said: torch.Tensor, truth: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with the truth, or with what a teacher says."""
        if self.teacher is None:
            return F.cross_entropy(said, truth)
        wanted = forward(self.recipe.design, self.teacher, asked)
        return F.cross_entropy(said, wanted.flatten(0, -2).softmax(1))


def optimizer(recipe: Recipe, leaves: list[torch.Tensor]) -> torch.optim.Optimizer:
    if recipe.optimizer in ("sgd", "momentum"):
        momentum = 0.9 if recipe.optimizer == "momentum" else 0.0
        return torch.optim.SGD(leaves, recipe.rate, momentum, weight_decay=recipe.decay)
    make = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return make(leaves, recipe.rate, weight_decay=recipe.decay)


def learn(
    recipe: Recipe, folder: Path, begin: Arrays, frozen: tuple[str, ...] = (), teacher: Arrays | None = None
) -> Arrays:
    """Train from a start; what is fixed or masked by the recipe stays so, and so does what is frozen."""
    begin = dict(begin)
    fixed, masks = public.applied(recipe.public, recipe.design, begin, folder)
    fixed |= {n: begin[n] for n in frozen}
    p = {n: torch.from_numpy(np.array(fixed.get(n, a))) for n, a in begin.items()}
    kept = {n: torch.from_numpy(m) for n, m in masks.items()}
    leaves = [n for n, t in p.items() if t.is_floating_point() and ".running_" not in n and n not in fixed]
    for n in leaves:
        p[n] = (p[n] * kept[n] if n in kept else p[n]).requires_grad_()
    taught, examples = optimizer(recipe, [p[n] for n in leaves]), Examples(recipe, folder, teacher)
    for step in range(recipe.steps):
        if recipe.falling:
            taught.param_groups[0]["lr"] = recipe.rate * (0.5 + 0.5 * float(np.cos(np.pi * step / recipe.steps)))
        taught.zero_grad()
        examples.loss(p).backward()
        torch.nn.utils.clip_grad_norm_([p[n] for n in leaves], 5.0)
        taught.step()
        with torch.no_grad():
            for n, m in kept.items():
                p[n].mul_(m)
    for n in p:
        if n.endswith("num_batches_tracked"):
            p[n] = p[n] + recipe.steps
    return {n: t.detach().numpy().copy() for n, t in p.items()}


def right(design: Design, arrays: Arrays, source: str, folder: Path) -> float:
    """Share of unseen pictures, next or hidden tokens that are told right."""
    if not is_language(design):
        i = design["input"]
        x, y = data.split(folder, source, i["side"], i["channels"], "test")
        return float((forward(design, arrays, x[:500]).argmax(1) == y[:500]).float().mean())
    tokens = questions(design, source, folder, 32)
    if design["form"] != "bert":
        return float((forward(design, arrays, tokens[:, :-1]).argmax(2) == tokens[:, 1:]).float().mean())
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    said = forward(design, arrays, tokens.masked_fill(hidden, MASK)).argmax(2)
    return float((said == tokens)[hidden].float().mean())


class Bed:
    """Trains what is asked for, or takes it from the cache."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def network(self, recipe: Recipe) -> Network:
        path = self.cache / f"{recipe.digest}.npz"
        if (found := self._read(path)) is None:
            arrays = learn(recipe, self.folder, started(recipe.design, recipe.start))
            found = arrays, right(recipe.design, arrays, recipe.data, self.folder)
            self._write(path, *found)
        return Network(recipe, *found)

    def further(
        self, recipe: Recipe, begin: Arrays, frozen: tuple[str, ...] = (), teacher: Arrays | None = None
    ) -> Network:
        """Train from given arrays, with some of them frozen, or from a teacher's answers."""
        known = json.dumps([recipe.digest, content(begin), frozen, teacher and content(teacher)])
        path = self.cache / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.npz"
        if (found := self._read(path)) is None:
            arrays = learn(recipe, self.folder, begin, frozen, teacher)
            found = arrays, right(recipe.design, arrays, recipe.data, self.folder)
            self._write(path, *found)
        return Network(recipe, *found)

    def _read(self, path: Path) -> tuple[Arrays, float] | None:
        if not path.exists():
            return None
        try:
            with np.load(path) as stored:
                return {n: stored[n] for n in stored.files if n != "quality"}, float(stored["quality"])
        except (OSError, ValueError, KeyError, EOFError):
            path.unlink(missing_ok=True)
            return None

    def _write(self, path: Path, arrays: Arrays, quality: float) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
        np.savez(part, quality=quality, **arrays)
        part.replace(path)


def default_cache() -> Path:
    """`STEMMA_CACHE`, else the user's cache folder."""
    if given := os.environ.get("STEMMA_CACHE"):
        return Path(given) / "varied"
    import platformdirs

    return Path(platformdirs.user_cache_dir("stemma")) / "varied"


def content(arrays: Arrays) -> str:
    """A short digest of tensors and their names."""
    made = hashlib.sha256()
    for n in sorted(arrays):
        made.update(n.encode() + np.ascontiguousarray(arrays[n]).tobytes())
    return made.hexdigest()[:16]
