"""What was made quick about many tensors and many models, against slow twins that say the same in plain words."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.errors import RegistryError
from stemma.fingerprints.tensor_content import QUANTILES, features, long_axes, matrices
from stemma.fingerprints.unit_keys import LENGTH, UNITS, UnitKeys
from stemma.fingerprints.weight_sketch import CODE, ENTRIES, WeightSketch
from stemma.kinship.relation import grids
from stemma.kinship.relation.grids_of_many import certainly_none, grids_of
from stemma.kinship.weights.constants.public_starts import _patterns, _seed_of
from stemma.kinship.weights.contents import agreement
from stemma.kinship.weights.maps.blocks import UnitBlock
from stemma.networks.load import from_arrays
from stemma.registry import AddStatus, Registry
from stemma.registry.additions import Addition
from stemma.registry.ingest import fingerprinters
from stemma.registry.model_records import describe
from stemma.types import Fingerprint

# Fingerprints


def rescaled(x: np.ndarray) -> np.ndarray:
    """Scaled by a power of two to at most one; non-finite entries are zero."""
    x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    exponent = -int(np.frexp(np.abs(x).max())[1])
    return np.ldexp(x if abs(exponent) < 100 else x.astype(np.float64), exponent)


def plain_hashes(length: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([0, length])
    return generator.integers(0, buckets, length), generator.integers(0, 2, length) * 2 - 1


def buckets(cut: tuple[int, ...], lengths: tuple[int, ...], number: int) -> np.ndarray:
    out = np.zeros(cut, np.int64)
    for axis, length in enumerate(lengths):
        if length > 1:
            hashes = plain_hashes(length, number)[0][: cut[axis]]
            out = out + np.expand_dims(hashes, [i for i in range(len(cut)) if i != axis])
    return out % number


def plain_order_sums(t: Tensor) -> np.ndarray:
    x = rescaled(t.rows(0, max(1, min(t.shape[0], ENTRIES // max(1, t.size // t.shape[0]))))).astype(np.float32)
    for axis in long_axes(t.shape):
        rms = np.sqrt(np.mean(x * x, axis=tuple(i for i in range(x.ndim) if i != axis), keepdims=True))
        x = x / np.where(rms > 0, rms, 1)
    x = x - x.mean()
    for axis, length in enumerate(t.shape):
        if length > 1:
            signs = plain_hashes(length, CODE)[1][: x.shape[axis]].astype(np.float32)
            x = x * np.expand_dims(signs, [i for i in range(x.ndim) if i != axis])
    return np.bincount(buckets(x.shape, t.shape, CODE).reshape(-1), x.reshape(-1), CODE)


def plain_content(t: Tensor) -> np.ndarray:
    """Sorted profiles, and the sorted entries after scales of units are divided out."""
    profiles = features(t, entries=False).profiles
    number = QUANTILES // len(profiles)
    profile = np.concatenate([p[np.linspace(0, len(p) - 1, number).astype(int)] for p in profiles])
    profile = np.pad(profile, (0, QUANTILES - len(profile)))
    if t.size > ENTRIES:
        return np.concatenate([profile, profile[::-1]])
    x = rescaled(t.array()).reshape(t.shape[0], -1).astype(np.float64)
    row_scales, column_scales = np.ones((len(x), 1)), np.ones((1, x.shape[1]))
    for _ in range(8):
        mean = column_scales * (row_scales * x**2).mean(axis=0, keepdims=True)
        column_scales = column_scales / np.where(mean > 0, mean, 1)
        mean = row_scales * (column_scales * x**2).mean(axis=1, keepdims=True)
        row_scales = row_scales / np.where(mean > 0, mean, 1)
    ordered = np.sort((x * np.sqrt(row_scales * column_scales)).reshape(-1))
    return np.concatenate([profile, ordered[np.linspace(0, x.size - 1, QUANTILES).astype(int)] / 4])


def content_cells(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the second code, and how far each is from the edge of its cell."""
    classes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for t in matrices(model).values():
        classes.setdefault(tuple(sorted(t.shape[i] for i in long_axes(t.shape))), []).append(plain_content(t))
    code, rank, margin = np.zeros(CODE, bool), np.full(CODE, np.inf), np.ones(CODE)
    for sizes, found in classes.items():
        generator = np.random.default_rng([0, *sizes])
        draw = generator.random(CODE)
        halves = [generator.standard_normal((CODE // 2, QUANTILES)) for _ in range(2)]
        total = sum(found, np.zeros(2 * QUANTILES))
        sums = np.concatenate([p @ total[i * QUANTILES :][:QUANTILES] for i, p in enumerate(halves)])
        cell = sums / (0.05 * np.sqrt(len(found))) + generator.random(CODE)
        first = draw < rank
        code = np.where(first, np.floor(cell).astype(int) % 2 == 1, code)
        margin = np.where(first, np.abs(cell - np.rint(cell)), margin)
        rank = np.minimum(rank, draw)
    return code, margin


def odd_models() -> Iterator[Model]:
    rng = np.random.default_rng(20)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    chain = {"a.weight": drawn(200, 90), "b.weight": drawn(60, 200), "c.weight": drawn(10, 60)}
    yield from_arrays(chain, "chain")
    yield from_arrays({f"l{i}.weight": drawn(32, 150) for i in range(5)}, "alike")
    yield from_arrays(
        {f"l{i}.weight": drawn(8, 6, 3, 3) for i in range(3)} | {"p.weight": drawn(30, 8, 1, 1)}, "kernels"
    )
    wide = {"h.weight": drawn(90, 70).astype(np.float16), "d.weight": drawn(70, 80).astype(np.float64) * 1e200}
    yield from_arrays(wide | {"t.weight": drawn(80, 90) * np.float32(1e-36)}, "formats")
    sparse, bad = drawn(120, 100), drawn(100, 110)
    sparse[:50] = 0
    bad[3, 4], bad[5, 6] = np.nan, np.inf
    more = {"s.weight": sparse, "n.weight": bad, "z.weight": np.zeros((20, 30), np.float32)}
    yield from_arrays(more | {"o.weight": np.ones((30, 20), np.float32), "x.bias": drawn(7)}, "odd")
    yield from_arrays({"large.weight": drawn(1100, 1000), "other.weight": drawn(1000, 1100)}, "large")


@pytest.mark.parametrize("model", [*odd_models()], ids=lambda m: m.name)
def test_a_sketch_is_what_it_says(model: Model) -> None:
    found = WeightSketch()(model).values
    bits = np.unpackbits(found["bits"]).astype(bool)
    sums = sum((plain_order_sums(t) for t in matrices(model).values()), np.zeros(CODE))
    clear = np.abs(sums) > 1e-2  # where the order in which entries are added cannot decide
    assert clear.mean() > 0.3
    assert np.array_equal(bits[:CODE][clear], sums[clear] > 0)
    code, margin = content_cells(model)
    clear = margin > 1e-6  # where rounding cannot decide
    assert clear.mean() > 0.99
    assert np.array_equal(bits[CODE:][clear], code[clear])
    again = WeightSketch()(model).values  # in memory that another sketch has used
    assert all(np.array_equal(found[k], again[k]) for k in found)


@pytest.mark.parametrize("model", [*odd_models()], ids=lambda m: m.name)
def test_the_units_of_a_sketch_are_what_it_says(model: Model) -> None:
    found, known, kept = WeightSketch()(model).values, structure(model).axes, 0
    for t in sorted(matrices(model).values(), key=lambda t: (-t.size, t.shape, t.name)):
        axis = next((k for k, x in enumerate(known.get(t.name, ())) if x.hidden and x.kind != "head"), None)
        if axis is None or kept == 16:
            continue
        rows_read = min(t.shape[0], ENTRIES // (t.size // t.shape[0]))
        x = rescaled(t.rows(0, min(rows_read, 64) if axis == 0 else rows_read)).astype(np.float32)
        x = np.moveaxis(x, axis, 0)[:64]
        lengths = tuple(s for i, s in enumerate(t.shape) if i != axis)
        for k, length in enumerate(lengths):
            if length > 1:
                signs = plain_hashes(length, 24)[1].astype(np.float32)[: x.shape[k + 1]]
                x = x * np.expand_dims(signs, [i for i in range(x.ndim) if i != k + 1])
        where = buckets(x.shape[1:], lengths, 24).reshape(-1)
        sums = np.stack([np.bincount(where, unit.reshape(-1), 24) for unit in x])
        top = np.abs(sums).max(axis=1, keepdims=True)
        assert np.array_equal(found["units"][kept][: len(x)], np.rint(sums / np.where(top > 0, top, 1) * 127))
        others = zlib.crc32(repr(sorted(s for s in lengths if s > 1)).encode())
        assert found["owners"][kept].tolist() == [len(x), t.shape[axis], others, zlib.crc32(t.name.encode())]
        kept += 1
    assert not found["owners"][kept:].any()


@pytest.mark.parametrize("model", [*odd_models()], ids=lambda m: m.name)
def test_keys_of_units_are_those_of_one_unit_after_another(model: Model) -> None:
    fixed, beside = list[tuple[Tensor, int]](), list[tuple[Tensor, int]]()
    for name, t in matrices(model).items():
        labels = structure(model).axes.get(name, ())
        for axis, label in enumerate(labels):
            others = [o for i, o in enumerate(labels) if i != axis]
            if label.kind not in {"unit", "stream"} or len(label.segments) > 1 or label.segments[0].block > 1:
                continue
            if not any(o.hidden for o in others):
                fixed.append((t, axis))
            elif label.kind == "unit" and all(not o.hidden or o.kind == "stream" for o in others):
                beside.append((t, axis))
    keys: list[set[int]] = []
    for places in (fixed, beside):
        keys.append(set())
        for t, axis in sorted(places, key=lambda p: (p[0].size, p[0].shape, p[0].name))[:16]:
            x = np.moveaxis(t.rows(0, min(t.shape[0], LENGTH if axis else UNITS)).astype(np.float64), axis, 0)[:UNITS]
            others = sorted(s for i, s in enumerate(t.shape) if i != axis and s > 1)
            counted: Counter[int] = Counter()
            for unit in np.nan_to_num(x.reshape(len(x), -1)[:, :LENGTH], nan=0.0, posinf=0.0, neginf=0.0):
                if unit.any():
                    directions = np.random.default_rng([0, len(unit)]).standard_normal((len(unit), 24))
                    signs = np.packbits(unit @ directions > 0).tobytes()
                    text = f"1 {others} ".encode() + signs
                    counted[int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)] += 1
            keys[-1] |= {k for k, n in counted.items() if n == 1}
    kept = sorted(keys[0])[: max(32, 64 - len(keys[1]))]
    kept += sorted(keys[1] - {*kept})[: 64 - len(kept)]
    assert UnitKeys()(model).values["unit_keys"].tolist() == sorted(kept)


# Registry


def addition(name: str, seed: int, **changes: object) -> Addition:
    rng = np.random.default_rng(seed)
    shapes = {"l0.weight": (20, 10), "l1.weight": (8, 20), "l2.weight": (3, 8)}
    model = from_arrays({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, name)
    record, tensors = describe(model)
    return Addition(replace(record, **changes), tensors, [method(model) for method in fingerprinters()])  # ty: ignore


def without_times(table: list[dict[str, object]]) -> list[tuple[tuple[str, str], ...]]:
    """Rows without numbers, which follow the order of writing, and without what a time is part of."""
    left_out = {"id", "record", "record_digest", "content_id", "model_id", "spec_id", "applied_at"}
    return sorted(tuple((k, str(v)) for k, v in row.items() if k not in left_out) for row in table)


@pytest.mark.anywhere
def test_models_that_are_added_together_are_added_as_one_by_one(address: str, tmp_path) -> None:
    before = [addition("old", 1), addition("gone", 2)]
    broken = addition("broken", 9, claims={"card": "\ud800"})
    together = [
        addition("new", 3), addition("old", 4), addition("other name of old", 1), addition("gone", 5),
        addition("new", 6), addition("new", 3), broken, addition("same as new", 3), addition("last", 7),
        addition("old", 1, license="mit"),
    ]  # fmt: skip
    with Registry(address) as one, Registry(tmp_path / "single.db") as other:
        for registry in (one, other):
            for a in before:
                registry.add(a.record, a.tensors, a.fingerprints)
            registry.remove("gone")
        found = one.add_all(together)
        expected: list[object] = []
        for a in together:
            try:
                expected.append(other.add(a.record, a.tensors, a.fingerprints))
            except RegistryError as e:
                expected.append(e)
        for a, b in zip(found, expected, strict=True):
            assert type(a) is type(b)
            assert str(a) == str(b) if isinstance(a, RegistryError) else a.status == b.status  # ty: ignore
        assert [a.status for a in found if not isinstance(a, RegistryError)].count(AddStatus.ADDED) == 5
        timeless = [replace(m, added_at="") for m in one.models()]
        assert timeless == [replace(m, added_at="") for m in other.models()]
        assert one.check() == []
        for a in together:
            kept = [[m.name for m in r.by_digest(a.record.digest)] for r in (one, other)]
            assert kept[0] == kept[1]
            tensors = [{*r.by_tensor_digests([t.digest for t in a.tensors])} for r in (one, other)]
            assert tensors[0] == tensors[1]
            keys = a.fingerprints[1].values["unit_keys"].tolist()
            assert {*one.by_unit_keys(keys, 9)} == {*other.by_unit_keys(keys, 9)}
            for f in a.fingerprints:
                stored = [r.fingerprint(a.record.digest, f.spec) for r in (one, other)]
                assert same_fingerprint(*stored)
        spec = fingerprinters()[0].spec
        assert {d: b.tolist() for d, b in one.sketches(spec).items()} == {
            d: b.tolist() for d, b in other.sketches(spec).items()
        }


def same_fingerprint(a: Fingerprint | None, b: Fingerprint | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.spec == b.spec and all(np.array_equal(a.values[k], b.values[k]) for k in (*a.values, *b.values))


# Quantisation grids


def to_bits(x: np.ndarray, bits: int, axis: tuple[int, ...]) -> np.ndarray:
    step = np.abs(x).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.rint(x / step) * step).astype(np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return (((x.view(np.uint32) + 0x8000) >> 16) << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("shape", [(24, 32), (16, 8, 3, 3), (100, 84), (10, 7), (3, 5), (36, 129)])
def test_grids_of_many_tensors_are_those_of_each(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "_cache", {})
    rng = np.random.default_rng(len(shape) * shape[0])
    every, rest = tuple(range(len(shape))), tuple(range(1, len(shape)))
    cases: list[tuple[np.ndarray, float]] = []
    for _ in range(2):
        x = 0.02 * rng.standard_normal(shape, dtype=np.float32)
        plain = [x, to_bits(x, 8, every), to_bits(x, 8, rest), to_bits(x, 4, rest), to_bits(x, 3, (0,)), np.sign(x)]
        plain += [np.where(rng.random(shape) < p, np.float32(0), x) for p in (0.3, 0.9, 1.0)]
        plain += [rng.integers(-n, n, shape).astype(np.float32) for n in (2, 90, 200, 3000)]
        plain += [np.round(x, 3), np.round(x, 4), x**3, np.repeat(x[:1], shape[0], axis=0)]
        cases += [(np.ascontiguousarray(y, np.float32), 2.0**-24) for y in plain]
        cases += [(bfloat16(x), 2.0**-9), (bfloat16(to_bits(x, 8, rest)), 2.0**-9)]
    slowly = [grids._grid_of(x, rounding) for x, rounding in cases]
    assert grids_of([x for x, _ in cases], [rounding for _, rounding in cases]) == slowly
    for rounding in (2.0**-24, 2.0**-9):
        alike = [i for i, case in enumerate(cases) if case[1] == rounding]
        none = certainly_none(np.stack([cases[i][0] for i in alike]), rounding)
        assert not any(certain and slowly[i] is not None for i, certain in zip(alike, none, strict=True))
        assert none.any() or min(shape) < 10


def test_a_public_seed_is_found_as_pattern_by_pattern() -> None:
    rng = np.random.default_rng(1)
    for i in range(40):
        x = rng.standard_normal(rng.integers(300, 1000))
        if i % 2:
            _, numbers = _patterns()[rng.integers(len(_patterns()))]
            x = numbers[: len(x)] + rng.choice([0.1, 2.0, 3.0, 4.0, 6.0]) * x[: len(numbers)]
        centred = (x - x.mean()) / x.std()
        of_each = [(abs(float(centred @ p[: len(x)])) / len(x) ** 0.5, seed) for seed, p in _patterns()]
        assert _seed_of(x) == (max(of_each)[1] if max(of_each)[0] > 7 else None)


# Units of many tensors


def drawn_blocks(shape: tuple[int, ...], order: tuple[int, ...], free: tuple[int, ...]) -> list[UnitBlock]:
    """Pairs of blocks that agree more or less, in one memory layout; some are unusual."""
    rng = np.random.default_rng(shape[0])
    blocks = []
    for k in range(40):
        a = rng.standard_normal(shape, dtype=np.float32)
        b = a + np.float32(rng.choice([0, 1e-4, 0.01, 0.3, 3])) * rng.standard_normal(shape, dtype=np.float32)
        if k % 2:
            b = b * np.exp(rng.standard_normal((shape[0], *(1,) * (len(shape) - 1)))).astype(np.float32)
        if k % 7 == 0:
            a[3] = 0
        if k % 11 == 0:
            b[5] = b[6]
        if k % 13 == 0:
            a = a * np.float32(1e-20)
        if k % 17 == 0:
            a[:] = np.sin(0.3 * np.arange(a.size).reshape(shape))
        sides = [np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order)) for x in (a, b)]
        blocks.append(UnitBlock(*sides, free))
    return blocks


@pytest.mark.parametrize(
    ("shape", "free"), [((24, 1, 32), (2,)), ((32, 1, 20, 16), (3,)), ((40, 2, 30), (2,)), ((8, 1, 9, 3, 3), ())]
)
def test_units_of_many_tensors_agree_as_those_of_each(shape: tuple[int, ...], free: tuple[int, ...]) -> None:
    for order in (tuple(range(len(shape))), tuple(reversed(range(len(shape)))), (1, 0, *range(2, len(shape)))):
        blocks = drawn_blocks(shape, order, free)
        found, slowly = agreement.of_blocks(blocks), [agreement.of_block(b) for b in blocks]
        assert found == slowly
        assert None in slowly or max(shape[2:]) < 16
        assert sum(s is not None and s[3] > 0 for s in slowly) > 20
