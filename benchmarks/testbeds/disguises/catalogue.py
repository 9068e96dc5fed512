"""The forty-two attacks: what is done to a copy so that it is not recognised, in which order, and what it costs.

Thirty-one keep what the network computes (exactly, or to the precision of the file); eleven start with a permutation
of everything and then change the network. The outputs are compared with the victim's after the file was read back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from testbeds.disguises import damage, storage, symmetries
from testbeds.disguises.damage import Damage
from testbeds.disguises.storage import Storage
from testbeds.disguises.symmetries import Change
from testbeds.varied import training
from testbeds.varied.structure import Arrays
from testbeds.varied.training import Bed, Design, Network

Rng = np.random.Generator
Plan = tuple[tuple[Change, ...], tuple[Storage, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Attack:
    """One way to disguise a copy.

    Attributes:
        name: For tables.
        group: `symmetry`, `storage`, `composed` or `damaged`.
        changes: Symmetries, in order.
        damage: What alters the network after them.
        stores: How the file is written, in order.
        drawn: For compositions, draws symmetries and ways to write.
    """

    name: str
    group: str
    changes: tuple[Change, ...] = ()
    damage: Damage | None = None
    stores: tuple[Storage, ...] = ()
    drawn: Callable[[Rng], Plan] | None = None


@dataclass(frozen=True)
class Disguise:
    """A disguised copy.

    Attributes:
        stored: What the file holds.
        config: What stands beside it, where it still fits.
        plain: The tensors under their own names, for baselines.
        design: Their architecture.
        difference: Largest difference of the outputs by the victim's largest.
        steps: What a composition was made of.
    """

    stored: dict[str, Any]
    config: dict[str, Any] | None
    plain: Arrays
    design: Design
    difference: float
    steps: tuple[str, ...] = ()


SYMMETRIES: dict[str, Change] = {
    "permute one layer": symmetries.permute_one_layer,
    "permute all layers": symmetries.permute_all_layers,
    "permute heads": symmetries.permute_heads,
    "permute stream": symmetries.permute_stream,
    "rescale .5": symmetries.rescale(0.5),
    "rescale 2": symmetries.rescale(2.0),
    "turn signs": symmetries.turn_signs,
    "rotate stream": symmetries.rotate_stream,
    "value-output maps": symmetries.value_output_maps,
    "rotary planes": symmetries.rotary_planes,
    "query-key maps": symmetries.query_key_maps,
    "scale embedding 1.7": symmetries.scale_embedding,
    "move or fold gains": symmetries.gains_moved_or_folded,
    "fold batch norms": symmetries.fold_batch_norms,
}
LAYOUTS: dict[str, Storage] = {
    "fuse or split": storage.fused_or_split,
    "factors, random": storage.factors("random"),
    "factors, svd": storage.factors("svd"),
    "factors, svd 95 %": storage.factors("svd-95"),
    "tensor parallel": storage.tensor_parallel,
    "names shuffled": storage.shuffled_names,
    "names opaque": storage.opaque_names,
    "transposed": storage.transposed,
    "renumbered": storage.renumbered,
}
PRECISIONS: dict[str, Storage] = {
    "bfloat16 as uint16": storage.brain_bits,
    "float16": storage.half_precision,
    "bfloat16": storage.brain_floats,
}
DAMAGES: dict[str, Damage] = {
    "noise .001": damage.noise(0.001),
    "noise .01": damage.noise(0.01),
    "noise .03": damage.noise(0.03),
    "noise .1": damage.noise(0.1),
    "int8": damage.few_bits(8),
    "int4": damage.few_bits(4),
    "prune 30 %": damage.weights_pruned(0.3),
    "train on, rate .1": damage.trained_further(0.1),
    "train on, rate 1": damage.trained_further(1.0),
    "drop a layer": damage.layer_dropped,
    "remove 20 % of units": damage.units_removed,
    "trim vocabulary": damage.vocabulary_trimmed,
}
LOSSY = ("factors, svd 95 %", "float16", "bfloat16", "bfloat16 as uint16")
"""Ways to write that change the function a little."""

_MIXED = {"permute everything": symmetries.permute_everything, **SYMMETRIES}
_LAST = "fold batch norms"


def _composition(count: int) -> Callable[[Rng], Plan]:
    """One symmetry fewer than steps, then one way to write; for three, sometimes two ways."""

    def draw(rng: Rng) -> Plan:
        ways = 2 if count == 3 and rng.random() < 0.5 else 1
        names = [str(n) for n in rng.choice(list(_MIXED), count - ways, replace=False)]
        names.sort(key=lambda n: n == _LAST)
        layouts = [n for n in LAYOUTS if n != "factors, svd 95 %"]
        stores = [str(rng.choice(layouts))] + ([str(rng.choice(list(PRECISIONS)))] if ways == 2 else [])
        every = {**LAYOUTS, **PRECISIONS}
        return tuple(_MIXED[n] for n in names), tuple(every[n] for n in stores), (*names, *stores)

    return draw


ATTACKS: tuple[Attack, ...] = (
    *(Attack(n, "symmetry", (c,)) for n, c in SYMMETRIES.items()),
    *(Attack(n, "storage", stores=(s,)) for n, s in {**LAYOUTS, **PRECISIONS}.items()),
    Attack("two composed", "composed", drawn=_composition(2)),
    Attack("three composed", "composed", drawn=_composition(3)),
    *(Attack(n, "damaged", (symmetries.permute_everything,), d) for n, d in DAMAGES.items()),
    Attack("rotate stream, reorder tokens", "symmetry", (symmetries.rotate_stream,), damage.vocabulary_reordered),
    Attack("the same, names opaque", "symmetry", (symmetries.rotate_stream,), damage.vocabulary_reordered,
           (storage.opaque_names,)),
)  # fmt: skip
KEEP_NAMES = ("transposed", *PRECISIONS)
"""Ways to write under which the configuration beside the file stays."""


def disguise(attack: Attack, victim: Network, bed: Bed, rng: Rng) -> Disguise | None:
    """Apply an attack, or None where the victim has nothing that it changes."""
    if attack.drawn is None:
        return _applied(attack, victim, bed, rng, (attack.changes, attack.stores, ()))
    for _ in range(50):
        plan = attack.shown_as(rng)
        if (found := _applied(attack, victim, bed, rng, plan)) is not None:
            return found
    return None


def _applied(attack: Attack, victim: Network, bed: Bed, rng: Rng, plan: Plan) -> Disguise | None:
    changes, stores, steps = plan
    design, known = victim.design, training.structure(victim.design)
    arrays: Arrays | None = victim.arrays
    for change in changes:
        if (arrays := change(arrays, known, rng)) is None:
            return None
    if attack.damage is not None:
        if (found := attack.damage(design, arrays, victim, bed, rng)) is None:
            return None
        design, arrays = found
    stored: dict[str, Any] = dict(arrays)
    undo = []
    for store in stores:
        if (written := store(stored, known, rng)) is None:
            return None
        stored, back = written
        undo.append(back)
    plain = stored
    for back in reversed(undo):
        plain = back(plain)
    named = all(s in [{**LAYOUTS, **PRECISIONS}[n] for n in KEEP_NAMES] for s in stores)
    config = training.configuration(design, plain) if named else None
    return Disguise(stored, config, plain, design, difference(victim, design, plain, bed), steps)


def difference(victim: Network, design: Design, plain: Arrays, bed: Bed) -> float:
    """Largest difference of the outputs on unseen inputs, by the victim's largest output; on what words are left."""
    x = training.questions(victim.design, victim.recipe.data, bed.folder, 32)
    if "kept" in design:
        kept, x = torch.tensor(design["kept"]), x % len(design["kept"])
        first, second = (
            training.forward(victim.design, victim.arrays, kept[x])[..., kept],
            training.forward(design, plain, x),
        )
    else:
        first, second = training.forward(victim.design, victim.arrays, x), training.forward(design, plain, x)
    return float((first - second).abs().max() / first.abs().max())
