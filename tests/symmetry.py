"""Slow, obvious twins of what models.units does, for the tests of hidden units."""

import numpy as np

from stemma.architectures.from_shapes import from_shapes
from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import permute
from stemma.types import UnitMember

FREE = {"unit", "stream"}


def rows(member: UnitMember, unit: int) -> list[int]:
    """The definition in `UnitMember`, written out."""
    if member.stride == 1:
        return [member.offset + unit * member.block + j for j in range(member.block)]
    return [member.offset + unit + j * member.stride for j in range(member.block)]


def permuted_by_hand(arrays, members, order):
    """Slow twin of `permute`: one row at a time."""
    out = {n: a.copy() for n, a in arrays.items()}
    for m in members:
        source, target = np.moveaxis(arrays[m.tensor], m.axis, 0), np.moveaxis(out[m.tensor], m.axis, 0)
        for new, old in enumerate(order):
            for i, j in zip(rows(m, new), rows(m, int(old)), strict=True):
                target[i] = source[j]
    return out


def assert_groups_are_symmetries(arrays, known: Structure, run, exempt=()):
    """Every group permuted whole leaves the outputs alone; its first member permuted alone does not."""
    before, generator = run(arrays), np.random.default_rng(3)
    scale = np.abs(before).max()
    assert known.groups
    for group in known.groups:
        if group.size == 1 or group.name in exempt:
            continue
        order = np.roll(generator.permutation(group.size), 1)
        if (order == np.arange(group.size)).all():
            order = np.roll(order, 1)
        whole = permute(arrays, known, {group.name: order})
        assert np.abs(run(whole) - before).max() / scale < 1e-5, group.name
        alone = permuted_by_hand(arrays, group.members[:1], order)
        assert np.abs(run(alone) - before).max() / scale > 1e-5, group.name


def noisy(shapes, seed=0):
    """Weights at which nothing is trivial: gains, biases and running statistics differ per unit."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            out[name] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        elif "running_var" in name:
            out[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            out[name] = (rng.normal(0, 0.3, shape) + (1 if name.endswith("weight") else 0)).astype(np.float32)
    return out


def assert_nothing_visible_is_hidden(shapes, truth: Structure):
    """Shapes alone never claim a unit where the structure known by name has something else."""
    found = from_shapes({f"t{i}": s for i, s in enumerate(shapes.values())})
    for i, name in enumerate(shapes):
        for mine, right in zip(found.axes[f"t{i}"], truth.axes[name], strict=True):
            if mine.kind != "fixed":
                assert len(right.segments) == 1, name
                assert right.kind in FREE, name
                assert right.segments[0].block == 1, name
