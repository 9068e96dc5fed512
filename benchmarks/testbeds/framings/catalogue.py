"""Two strangers made to look related, in ways that copy nothing a unit has learnt: 200 pairs, and controls beside them.

Every maker gets three networks of one architecture that were trained apart, and gives the two that are compared. The
controls do inherit something (a head, a table, answers); their verdicts are reported apart and count neither way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from testbeds.disguises.alignment import Effort, aligned
from testbeds.framings import moves
from testbeds.varied import attention_networks, training
from testbeds.varied.data import AUTHORS
from testbeds.varied.structure import Arrays
from testbeds.varied.training import Bed, Design, Network

Rng = np.random.Generator
EVERY = ("mlp-relu", "mlp-gelu", "mlp-tanh", "mlp-norm", "plain", "vgg", "separable", "resnet", "resnet-separable",
         "vit", "timm", "llama", "llama-tied", "gpt2", "bert")  # fmt: skip
TURNABLE = ("vit", "timm", "llama", "llama-tied", "gpt2")
PUBLIC = 20261204
"""The seed that everybody knows."""


@dataclass(frozen=True)
class Pair:
    """What is compared: tensors of both, the designs that they fit, and what the second has learnt."""

    first: Arrays
    second: Arrays
    first_design: Design
    second_design: Design
    source: str


@dataclass(frozen=True)
class Scene:
    """Three strangers of one architecture, and what is needed to make more."""

    networks: tuple[Network, Network, Network]
    bed: Bed
    rng: Rng

    @property
    def known(self) -> Any:
        return training.structure(self.networks[0].design)

    def pair(self, second: Arrays, first: Arrays | None = None, source: str | None = None) -> Pair:
        design, source = self.networks[0].design, source or self.networks[1].recipe.data
        return Pair(self.networks[0].arrays if first is None else first, second, design, design, source)

    def retrained(self, **changed: Any) -> Pair:
        """The first two, trained again with something in both recipes the same."""
        made = [self.bed.network(replace(n.recipe, **changed)) for n in self.networks[:2]]
        return self.pair(made[1].arrays, made[0].arrays, made[1].recipe.data)


@dataclass(frozen=True)
class Framing:
    """One way to frame a stranger: how many pairs, on which architectures, and which relations would be true."""

    name: str
    group: str
    count: int
    forms: tuple[str, ...]
    make: Callable[[Scene], Pair]
    allowed: tuple[str, ...] = ("same-init",)


def _moved(scene: Scene, effort: Effort) -> Arrays:
    first, second, _ = scene.networks
    return aligned(first.arrays, second.arrays, scene.known, scene.rng, effort)


def _aligned(scene: Scene) -> Pair:
    return scene.pair(_moved(scene, Effort()))


def _long_then_aligned(scene: Scene) -> Pair:
    """Four times as many steps on the same data: what the data alone dictates is learnt by both."""
    recipe = scene.networks[0].recipe
    pair = scene.retrained(steps=4 * recipe.steps, data=recipe.data, part="all", falling=True)
    return scene.pair(aligned(pair.first, pair.second, scene.known, scene.rng), pair.first, pair.source)


def _turned(scene: Scene) -> Pair:
    return scene.pair(_moved(scene, Effort(stream=True)))


def _tables_turned(scene: Scene) -> Pair:
    return scene.pair(_moved(scene, Effort(starts=1, rounds=1, stream=True, order=False)))


def _to_a_third(scene: Scene) -> Pair:
    first, second, third = scene.networks
    moved = [aligned(third.arrays, n.arrays, scene.known, scene.rng, Effort()) for n in (first, second)]
    return scene.pair(moved[1], moved[0])


def _sorted(scene: Scene) -> Pair:
    return scene.pair(*(moves.sorted_units(n.arrays, scene.known) for n in scene.networks[1::-1]))


def _scaled_alike(scene: Scene) -> Pair:
    victim = scene.networks[0].arrays
    second = moves.unit_norms_copied(victim, _moved(scene, Effort()), scene.known)
    return scene.pair(moves.vectors_copied(victim, moves.gains_copied(victim, second, scene.known)))


def _imposed(*changes: Callable[[Arrays, Arrays], Arrays], align: bool = False) -> Callable[[Scene], Pair]:
    def make(scene: Scene) -> Pair:
        victim, second = scene.networks[0].arrays, scene.networks[1].arrays
        if align:
            turn = scene.known.stream in ("rms", "layer") and scene.rng.random() < 0.5
            second = moves.unit_norms_copied(victim, _moved(scene, Effort(stream=turn)), scene.known)
            second = moves.gains_copied(victim, second, scene.known)
        for change in changes:
            second = change(victim, second)
        return scene.pair(second)

    return make


def _public(*entry: Any) -> Callable[[Scene], Pair]:
    return lambda scene: scene.retrained(public=(entry,))


def _widened(double: bool) -> Callable[[Scene], Pair]:
    def make(scene: Scene) -> Pair:
        wide = [moves.widened(n.arrays, scene.known, PUBLIC, double) for n in scene.networks[:2]]
        design = scene.networks[0].design
        if "inner" in design:
            design = {**design, "inner": design["inner"] + int(0.5 * design["inner"])}
        return Pair(*wide, design, design, scene.networks[1].recipe.data)

    return make


def _same_grid(scene: Scene) -> Pair:
    victim = scene.networks[0].arrays
    return scene.pair(*(moves.same_grid(victim, n.arrays) for n in scene.networks[1::-1]))


def _same_order(scene: Scene) -> Pair:
    recipe = scene.networks[0].recipe
    return scene.retrained(order=PUBLIC, data=recipe.data, part=recipe.part, steps=recipe.steps, batch=recipe.batch)


def _same_start(seed: int, steps: int) -> Callable[[Scene], Pair]:
    def make(scene: Scene) -> Pair:
        recipe, made = scene.networks[0].recipe, []
        design = recipe.design | ({"start": "default"} if "start" in recipe.design else {})
        recipe = replace(recipe, design=design, start=seed, part="all", steps=steps)
        for i, n in enumerate(scene.networks[:2]):
            own = replace(recipe, order=n.recipe.order, data=other_data(recipe, i))
            made.append(scene.bed.network(own).arrays)
        return scene.pair(made[1], made[0], other_data(recipe, 1))

    return make


def other_data(recipe: training.Recipe, which: int) -> str:
    """The first of two sources that share nothing, or the second."""
    if training.is_language(recipe.design):
        return AUTHORS[2 * which]
    return ("mnist", "fashion_mnist")[which]


def _inherited(table: bool) -> Callable[[Scene], Pair]:
    """A control: the victim's head, or its table of tokens, under (or above) a trunk that is new."""

    def make(scene: Scene) -> Pair:
        first, second, _ = scene.networks
        if table:
            names = [f"{attention_networks.FORMS[first.design['form']].table}.weight"]
        else:
            names = [n for n in first.arrays if n.rsplit(".", 1)[0] == list(first.arrays)[-1].rsplit(".", 1)[0]]
        begin = training.started(second.design, second.recipe.start) | {n: first.arrays[n] for n in names}
        return scene.pair(scene.bed.further(second.recipe, begin, tuple(names)).arrays)

    return make


def _distilled(align: bool) -> Callable[[Scene], Pair]:
    """A control: trained from the victim's answers, with another start."""

    def make(scene: Scene) -> Pair:
        first, second, _ = scene.networks
        recipe = replace(second.recipe, data=first.recipe.data)
        start = training.started(recipe.design, recipe.start)
        student = scene.bed.further(recipe, start, teacher=first.arrays).arrays
        if align:
            student = aligned(first.arrays, student, scene.known, scene.rng)
        return scene.pair(student, source=recipe.data)

    return make


def _two_students(scene: Scene) -> Pair:
    """A control: two networks that learnt from the answers of a third, each from its own start."""
    teacher, made = scene.networks[2], []
    for n in scene.networks[:2]:
        recipe = replace(n.recipe, data=teacher.recipe.data)
        start = training.started(recipe.design, recipe.start)
        made.append(scene.bed.further(recipe, start, teacher=teacher.arrays).arrays)
    return scene.pair(made[1], made[0], teacher.recipe.data)


_PARTS = ("same-init", "part-inherited")
_SOME = ("mlp-relu", "mlp-gelu", "plain", "vgg", "resnet", "vit", "llama", "bert")
_FIRST = ("mlp-relu", "plain", "resnet")
_STARTS = ("mlp-tanh", "resnet", "gpt2")
_WORDS = ("llama", "llama-tied", "gpt2", "bert")

FRAMINGS: tuple[Framing, ...] = (
    Framing("aligned to the victim", "aligned", 18, EVERY, _aligned),
    Framing("both trained long, then aligned", "aligned", 6,
            ("mlp-relu", "mlp-norm", "plain", "resnet", "timm", "gpt2"), _long_then_aligned),
    Framing("aligned, stream and heads turned", "aligned", 10, TURNABLE, _turned),
    Framing("stream turned onto the victim's tables", "aligned", 5, TURNABLE, _tables_turned),
    Framing("both aligned to a third", "aligned", 12, EVERY, _to_a_third),
    Framing("units sorted by norm in both", "aligned", 12, EVERY, _sorted),
    Framing("aligned, scales and vectors copied", "aligned", 12, EVERY, _scaled_alike),
    Framing("norms, offsets, statistics copied", "imposed", 12, EVERY, _imposed(moves.vectors_copied)),
    Framing("moments imposed", "imposed", 5, EVERY[::3], _imposed(moves.moments_imposed)),
    Framing("spectrum imposed", "imposed", 6, EVERY[1::3], _imposed(moves.spectrum_imposed)),
    Framing("values imposed", "imposed", 8, EVERY[2::2], _imposed(moves.values_imposed)),
    Framing("everything at once", "imposed", 10, EVERY[::-1],
            _imposed(moves.vectors_copied, moves.spectrum_imposed, moves.values_imposed, align=True)),
    Framing("public mask, density .25", "public", 8, _SOME, _public("mask", 0.25, PUBLIC)),
    Framing("public mask, density .1", "public", 8, _SOME, _public("mask", 0.1, PUBLIC)),
    *(Framing(f"frozen first layer, {law}", "public", 3, _FIRST, _public("first", law, PUBLIC), _PARTS)
      for law in ("gabor", "pca", "kmeans", "dct", "random")),
    Framing("frozen table of positions", "public", 4, ("vit", "timm", "gpt2", "bert"), _public("positions"), _PARTS),
    Framing("frozen random table of tokens", "public", 4, _WORDS, _public("embedding", PUBLIC), _PARTS),
    Framing("identity as the start", "public", 4, ("mlp-relu", "mlp-tanh", "plain", "resnet"), _public("identity")),
    Framing("zeros added in the same places", "public", 5, EVERY[::3], _widened(False)),
    Framing("units doubled in the same places", "public", 4, EVERY[1::4], _widened(True)),
    Framing("one grid of four bits", "public", 4, EVERY[2::4], _same_grid),
    Framing("same order of the same data", "public", 4, EVERY[::4], _same_order),
    *(Framing(f"start of seed {seed}, {word}", "same start", 3, _STARTS, _same_start(seed, steps))
      for seed in (0, 1, 42, 1234) for word, steps in (("short", 40), ("long", 600))),
)  # fmt: skip
CONTROLS: tuple[Framing, ...] = (
    Framing("control: the victim's head, frozen", "control", 6, ("mlp-relu", "plain", "resnet", "vit", "timm", "llama"),
            _inherited(False)),
    Framing("control: the victim's table of tokens, frozen", "control", 4, _WORDS, _inherited(True)),
    Framing("control: distilled", "control", 5, ("mlp-relu", "plain", "resnet", "vit", "gpt2"), _distilled(False)),
    Framing("control: distilled, then aligned", "control", 5, ("mlp-relu", "plain", "resnet", "vit", "gpt2"),
            _distilled(True)),
    Framing("control: both distilled from a third", "control", 5, ("mlp-relu", "plain", "resnet", "vit", "gpt2"),
            _two_students),
)  # fmt: skip
