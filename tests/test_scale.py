"""Large registries: the index in a file, many small tensors, keys of hidden units, lineages brought up to date."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stemma.application.lineage import LineageRequest, lineage
from stemma.checkpoints import digest as digests
from stemma.checkpoints.model import Model
from stemma.checkpoints.read_together import small_tensors
from stemma.errors import RegistryError
from stemma.fingerprints.order_statistics import quantiles
from stemma.fingerprints.unit_keys import UnitKeys
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.networks.load import from_arrays, load
from stemma.registry import Registry, SketchIndex, sketch_file
from stemma.registry.additions import Addition
from stemma.registry.model_records import describe
from stemma.types import Digest, Fingerprint, Spec
from stemma.workspace import Workspace, search_scope

pytestmark = pytest.mark.anywhere

SPEC = Spec("sketch", 1, {"seed": 0})


def enrol(registry: Registry, number: int, bits: np.ndarray) -> Digest:
    record, tensors = describe(from_arrays({"w": np.full((2, 2), number, np.float32)}, f"m{number}"))
    registry.add(record, tensors, [Fingerprint(record.digest, None, SPEC, {"bits": bits})])
    return record.digest


# The index in a file


def test_the_index_in_a_file_is_the_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch_file, "LARGE", 5)
    rng = np.random.default_rng(1)
    registry, held = Registry(tmp_path / "r.db"), dict[Digest, np.ndarray]()
    file = sketch_file.path_of(registry.path, SPEC)

    def add(number: int) -> Digest:
        bits = rng.integers(0, 256, 256, dtype=np.uint8)
        held[digest := enrol(registry, number, bits)] = bits
        return digest

    def same() -> None:
        found = registry.sketch_index(SPEC)
        plain = SketchIndex([*held], np.stack([*held.values()]))
        assert len(found) == len(plain) == registry.count()
        for _ in range(3):
            query = next(iter(held.values())) ^ np.packbits(rng.random(2048) < rng.uniform(0, 0.5))
            for n in (1, 3, 100):
                assert found.nearest(query, n) == plain.nearest(query, n)

    names = [add(i) for i in range(4)]
    same()
    assert not file.exists()  # a small registry has none
    names += [add(i) for i in range(4, 20)]
    same()
    size = file.stat().st_size
    assert size == sketch_file.HEADER + 20 * sketch_file.RECORD
    add(20)
    same()
    assert file.stat().st_size == size + sketch_file.RECORD  # appended
    for name in ("m3", "m7", "m20"):
        del held[registry.remove(name).digest]
    same()
    held[names[5]] = rng.integers(0, 256, 256, dtype=np.uint8)  # corrected: the file is made anew
    enrol(registry, 5, held[names[5]])
    same()
    file.write_bytes(b"x" * 9000)
    same()
    other = Registry(tmp_path / "other.db")
    for i in range(30, 40):
        enrol(other, i, rng.integers(0, 256, 256, dtype=np.uint8))
    other.sketch_index(SPEC)
    file.write_bytes(sketch_file.path_of(other.path, SPEC).read_bytes())  # of another registry
    same()
    assert [f for f in registry.check() if f.kind == "index"] == []
    content = bytearray(file.read_bytes())
    content[sketch_file.HEADER + 300] ^= 1
    file.write_bytes(content)
    assert [f.subject for f in registry.check() if f.kind == "index"] == [str(file)]
    assert not file.exists()
    same()
    for damage in (b"\0", b"\xff"):  # a page that was lost, numbers of no contents
        content = bytearray(file.read_bytes())
        content[-sketch_file.RECORD :] = damage * sketch_file.RECORD
        file.write_bytes(content)
        same()


# Many small tensors


def test_small_tensors_have_their_own_bytes_and_digests(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {f"t{i}": rng.integers(0, 9, rng.integers(0, 4, 2)).astype(np.float32) for i in range(200)}
    arrays["large"] = rng.standard_normal((300, 300)).astype(np.float32)
    save_file(arrays, tmp_path / "m.safetensors")
    tensors = [*load(tmp_path / "m.safetensors").tensors.values()]
    small = [t for t in tensors if t.name != "large"][::2]
    for i, part in small_tensors(small):
        assert bytes(part) == b"".join(bytes(c) for c in small[i].chunks())
    assert digests.of_tensors(tensors) == {t.name: digests.of_tensor(t) for t in tensors}


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_quantiles_are_those_of_a_sort(spread: float) -> None:
    rng = np.random.default_rng(3)
    for number, size, count in ((1, 1, 5), (3, 70, 65), (1, 9000, 65), (7, 5000, 65), (1, 90_000, 33), (2, 70_000, 3)):
        x = rng.standard_normal((number, size)) * np.exp(spread * rng.standard_normal((number, size)))
        x[:, : size // 3] = x[0, 0]  # ties
        for kind in (np.float64, np.float32):
            with np.errstate(over="ignore"):
                y = np.nan_to_num(x.astype(kind), posinf=3e38, neginf=-3e38)
            expected = np.sort(y)[:, np.linspace(0, size - 1, count).astype(int)]
            assert np.array_equal(quantiles(y, count), expected)


def plain_order_code(arrays: list[np.ndarray]) -> np.ndarray:
    """The order-dependent code, entry by entry."""
    sums = np.zeros(1024)
    for a in arrays:
        x = a.astype(np.float32)
        for axis in (0, 1):
            x = x / np.sqrt(np.mean(x * x, axis=1 - axis, keepdims=True))
        x = x - x.mean()
        hashed = []
        for length in a.shape:
            generator = np.random.default_rng([0, length])
            hashed.append((generator.integers(0, 1024, length), generator.integers(0, 2, length) * 2 - 1))
        for i, j in np.ndindex(*a.shape):
            sums[(hashed[0][0][i] + hashed[1][0][j]) % 1024] += x[i, j] * hashed[0][1][i] * hashed[1][1][j]
    return sums


def test_a_sketch_of_many_tensors_is_the_sum_over_them() -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in [(6, 5)] * 40 + [(9, 6)] * 3 + [(5, 6)] * 20]
    found = WeightSketch()(from_arrays({f"l{i}.weight": a for i, a in enumerate(arrays)}, "m"))
    sums = plain_order_code(arrays)
    clear = np.abs(sums) > 1e-3  # where rounding cannot decide
    assert clear.sum() > 70
    assert np.array_equal(np.unpackbits(found.values["bits"])[:1024][clear] == 1, sums[clear] > 0)


def test_of_models_that_are_added_together_one_that_is_refused_stops_no_other(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.db")
    described = [describe(from_arrays({"w": np.full((2, 2), i, np.float32)}, f"m{i}")) for i in range(4)]
    registry.add(*described[0])
    taken = replace(described[1][0], name="m0"), described[1][1]
    outcomes = registry.add_all([Addition(*d) for d in (taken, described[2], described[3])])
    assert isinstance(outcomes[0], RegistryError)
    assert [m.name for m in registry.models()] == ["m0", "m2", "m3"]
    assert registry.by_tensor_digests([t.digest for t in described[1][1]]) == {}
    assert registry.check() == []
    with pytest.raises(RegistryError, match="do not match its digest"):
        Addition(replace(described[2][0], digest=described[3][0].digest), described[2][1])


# Hidden units as keys


def perceptron(seed: int, name: str) -> Model:
    rng = np.random.default_rng(seed)
    shapes = ((48, 20), (32, 48), (6, 32))
    weights = {f"layers.{i}.weight": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    return from_arrays(weights, name)


def thinned(parent: Model, seed: int) -> Model:
    """Three quarters of the units, in another order, trained a little."""
    rng = np.random.default_rng(seed)
    w = {n: t.array() for n, t in parent.tensors.items()}
    for before, after in (("layers.0.weight", "layers.1.weight"), ("layers.1.weight", "layers.2.weight")):
        kept = rng.permutation(len(w[before]))[: 3 * len(w[before]) // 4]
        w[before], w[after] = w[before][kept], w[after][:, kept]
    return from_arrays({n: (x + 0.03 * rng.standard_normal(x.shape)).astype(np.float32) for n, x in w.items()}, "thief")


def test_a_thinned_and_permuted_child_finds_its_parent_among_many(tmp_path: Path) -> None:
    files = tmp_path / "models"
    files.mkdir()
    for i in range(80):
        m = perceptron(i, f"m{i}")
        save_file({n: t.array() for n, t in m.tensors.items()}, files / f"m{i}.safetensors")
    workspace = Workspace(Registry(tmp_path / "r.db"), jobs=1)
    workspace.add([files])
    child = thinned(perceptron(7, "m7"), 1)
    keys = UnitKeys()(child).values["unit_keys"].tolist()
    assert workspace.registry.by_unit_keys(keys, 5)[0] == workspace.show("m7").digest
    shared = [len({*keys} & {*UnitKeys()(perceptron(i, "m")).values["unit_keys"].tolist()}) for i in range(80)]
    assert shared.pop(7) >= 10
    assert max(shared) <= 3  # independent networks
    scope = search_scope.search_registry(workspace.registry, child, 8, workspace.reopen)
    assert "m7" in {c.ref.name for c in scope.candidates}


# Lineages


@pytest.mark.slow
def test_a_lineage_is_brought_up_to_date(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    files, url = tmp_path / "models", str(tmp_path / "r.db")
    files.mkdir()
    workspace = Workspace(Registry(url), jobs=1)

    def put(name: str, base: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        shapes = ((48, 40), (40, 48), (32, 40))
        new = {f"layers.{i}.weight": rng.normal(size=s) / 6 for i, s in enumerate(shapes)}
        made = new if base is None else {n: base[n] + 0.4 * x for n, x in new.items()}
        save_file({n: x.astype(np.float32) for n, x in made.items()}, files / f"{name}.safetensors")
        workspace.add([files])
        return made

    def outline(**options: object) -> tuple:
        answer = lineage(LineageRequest(registry=url, **options))  # ty: ignore[invalid-argument-type]
        r = answer.result
        edges = [(e.parent, e.child, e.relation) for e in r.edges]
        return (edges, r.roots, r.families, r.missing_ancestors, r.not_tested), answer

    first, second = put("a0", None), put("b0", None)
    put("a1", first), put("a2", first), put("b1", second)
    assert outline()[1].reused is None
    answer = outline()[1]
    assert answer.reused.models == 5
    assert answer.document()["reused"]["models"] == 5
    put("a3", first), put("s", None)
    updated, answer = outline()
    assert answer.reused.models == 2  # only the family without a new model
    whole, answer = outline(redraw=True)
    assert answer.reused is None
    assert "reused" not in answer.document()
    assert updated == whole
    workspace.remove("b1")
    assert outline()[0] == outline(redraw=True)[0]
    assert outline(alpha=0.001)[1].reused is None  # decided at another level
