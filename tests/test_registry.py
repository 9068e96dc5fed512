"""The registry against a plain dict and a slow scan."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registries import rows, tamper
from stemma.checkpoints.model import Model
from stemma.errors import RegistryError, UnknownNameError
from stemma.networks.load import from_arrays
from stemma.registry import AddStatus, ModelRecord, Registry, SketchIndex, TensorRecord, records
from stemma.registry.blobs import INLINE_LIMIT, pack, unpack
from stemma.registry.model_records import describe, write_copy
from stemma.types import Digest, Fingerprint, Spec

pytestmark = pytest.mark.anywhere

SPEC = Spec("sketch", 1, {"seed": 0})


def arrays(seed: int, layers: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"l{i}.weight": rng.standard_normal((4, 5)).astype(np.float32) for i in range(layers)}


def model(name: str, seed: int) -> Model:
    return from_arrays(arrays(seed), name)


def sketch(digest: Digest, seed: int, extra: int = 8) -> Fingerprint:
    rng = np.random.default_rng(seed)
    values = {"bits": rng.integers(0, 256, 256, dtype=np.uint8), "units": rng.standard_normal(extra)}
    return Fingerprint(digest, None, SPEC, values)


def enrol(registry: Registry, name: str, seed: int, **options) -> ModelRecord:
    record, tensors = describe(model(name, seed))
    return registry.add(record, tensors, [sketch(record.digest, seed)], **options).record


@pytest.fixture
def registry(address: str) -> Iterator[Registry]:
    with Registry(address) as r:
        yield r


# Round trips


def test_a_model_comes_back_as_it_was_given(registry: Registry) -> None:
    m = replace(model("família/模型 1", 1), config={"a": [1, {"b": None}], "eps": 1e-5}, claims={"license": "mit"})
    record, tensors = describe(m, license="apache-2.0")
    stored = registry.add(record, tensors).record
    assert registry.get(m.name) == stored == registry.models()[0] == registry.by_digest(m.digest)[0]
    assert replace(stored, added_at="", stemma_version="") == record
    assert stored.added_at
    assert stored.stemma_version
    assert registry.tensors(m.digest) == tuple(sorted(tensors, key=lambda t: t.name))


def test_numbers_that_json_lacks_are_stored_by_name(registry: Registry) -> None:
    record, tensors = describe(replace(model("m", 1), config={"scale": float("nan"), "clip": [float("inf")]}))
    assert registry.add(record, tensors).record.config == {"scale": "nan", "clip": ["inf"]}


def test_fingerprints_come_back_bit_for_bit(registry: Registry) -> None:
    made = {}
    for seed in range(5):
        record, tensors = describe(model(f"m{seed}", seed))
        made[record.digest] = sketch(record.digest, seed, extra=20_000 if seed == 3 else 8)
        registry.add(record, tensors, [made[record.digest]])
    found = {f.model: f for f in registry.fingerprints(SPEC)}
    assert found.keys() == made.keys()
    for digest, f in made.items():
        one = registry.fingerprint(digest, SPEC)
        assert one is not None
        for other in (one, found[digest]):
            assert other.spec == SPEC
            assert {k: v.tobytes() for k, v in other.values.items()} == {k: v.tobytes() for k, v in f.values.items()}
    assert registry.fingerprint(record.digest, Spec("sketch", 2, {"seed": 0})) is None
    assert list(registry.fingerprints(Spec("sketch", 2, {"seed": 0}))) == []


def test_packed_values_are_the_same_bytes_whatever_their_order_and_layout() -> None:
    a, b = np.arange(12.0).reshape(3, 4), np.arange(3, dtype=np.int8)
    content = pack({"a": a, "b": b, "c": np.array(2, np.float32)})
    assert content == pack({"c": np.array(2, np.float32), "b": b, "a": np.asfortranarray(a)})
    assert {k: v.tolist() for k, v in unpack(content).items()} == {"a": a.tolist(), "b": [0, 1, 2], "c": 2.0}
    with pytest.raises(RegistryError, match="damaged"):
        unpack(content[:-1])


def test_the_newest_evidence_of_an_ordered_pair_counts(registry: Registry) -> None:
    a, b = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)
    assert registry.get_evidence(a, b, SPEC) is None
    registry.put_evidence(a, b, SPEC, {"p": 0.5})
    registry.put_evidence(a, b, SPEC, {"p": 0.25, "list": [1, None, "x"]})
    found = registry.get_evidence(a, b, SPEC)
    assert found is not None
    assert (found.a, found.b, found.spec, found.content) == (a, b, SPEC, {"p": 0.25, "list": [1, None, "x"]})
    assert registry.get_evidence(b, a, SPEC) is None
    assert registry.get_evidence(a, b, Spec("sketch", 1, {"seed": 1})) is None
    assert len(rows(registry, "SELECT * FROM evidence")) == 2


def test_kept_weights_are_a_readable_copy(registry: Registry) -> None:
    m = model("m", 1)
    record, tensors = describe(m)
    stored = registry.add(record, tensors, weights=lambda path: write_copy(m, path)).record
    path = registry.weights(stored)
    assert path is not None
    from safetensors.numpy import load_file

    assert {k: v.tobytes() for k, v in load_file(path).items()} == {k: v.tobytes() for k, v in arrays(1).items()}
    assert registry.weights(enrol(registry, "without", 2)) is None
    assert registry.check() == []
    path.unlink()
    if registry.path is None:  # a server has them still
        assert registry.weights(stored) == path
        path.unlink()
        tamper(registry, "DELETE FROM blob_piece WHERE number = 0")
    with pytest.raises(RegistryError, match="missing"):
        registry.weights(stored)


def test_large_blobs_lie_elsewhere_and_small_ones_are_rows(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    registry.add(record, tensors, [sketch(record.digest, 1, extra=INLINE_LIMIT)])
    sizes = dict(rows(registry, "SELECT size, content IS NULL FROM blob"))
    assert all(is_file == (size >= INLINE_LIMIT) for size, is_file in sizes.items())
    assert len(set(sizes.values())) == 2
    assert registry.check() == []


# Names


def test_a_known_model_is_not_enrolled_again(registry: Registry) -> None:
    enrol(registry, "m", 1)
    record, tensors = describe(model("m", 1))
    assert registry.add(record, tensors, [sketch(record.digest, 1)]).status is AddStatus.KNOWN
    assert len(rows(registry, "SELECT * FROM model")) == len(rows(registry, "SELECT * FROM fingerprint")) == 1


def test_a_known_name_with_other_weights_needs_replace(registry: Registry) -> None:
    old = enrol(registry, "m", 1)
    record, tensors = describe(model("m", 2))
    with pytest.raises(RegistryError, match="'m' is registered with different weights"):
        registry.add(record, tensors)
    assert registry.get("m") == old
    assert registry.add(record, tensors, replace=True).status is AddStatus.REPLACED
    assert registry.get("m").digest == record.digest
    assert registry.by_digest(old.digest) == ()
    assert len(rows(registry, "SELECT * FROM model")) == 2  # the old row stays


def test_removal_is_a_tombstone(registry: Registry) -> None:
    old = enrol(registry, "m", 1)
    assert registry.remove("m") == old
    assert registry.models() == ()
    assert list(registry.fingerprints(SPEC)) == []
    assert len(registry.sketch_index(SPEC)) == 0
    assert registry.by_tensor_digests([t.digest for t in describe(model("m", 1))[1]]) == {}
    assert [r for (r,) in rows(registry, "SELECT removed FROM model ORDER BY id")] == [0, 1]
    with pytest.raises(UnknownNameError):
        registry.remove("m")
    assert enrol(registry, "m", 2).name == "m"
    assert registry.check() == []


@pytest.mark.parametrize("name", ["", " m", "a\nb", "\x1b[31m", "a\u202eb"])
def test_names_that_cannot_be_shown_are_refused(registry: Registry, name: str) -> None:
    record, tensors = describe(model("m", 1))
    with pytest.raises(RegistryError, match="is not a valid model name"):
        registry.add(replace(record, name=name), tensors)
    assert registry.models() == ()


def test_a_record_must_follow_from_its_tensors(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    with pytest.raises(RegistryError, match="do not match its digest"):
        registry.add(record, tensors[1:])
    with pytest.raises(RegistryError, match="do not match its digest"):
        registry.add(replace(record, names_free_digest=record.digest), tensors)
    with pytest.raises(RegistryError, match="was passed with"):
        registry.add(record, tensors, [sketch(Digest("sha256:" + "0" * 64), 1)])
    with pytest.raises(RegistryError, match="Rename the file or tensor"):
        registry.add(replace(record, source="/x/\udcff"), tensors)
    assert registry.models() == ()


def test_lookup_by_name_then_by_digest(registry: Registry) -> None:
    a, b = enrol(registry, "alpha", 1), enrol(registry, "beta", 2)
    enrol(registry, "alpha-copy", 1)
    hexadecimal = a.digest.removeprefix("sha256:")
    assert registry.get(hexadecimal[:8]).name == registry.get(a.digest).name == "alpha"
    assert registry.get("sha256:" + hexadecimal[:12]).digest == a.digest
    assert [r.name for r in registry.by_digest(a.digest)] == ["alpha", "alpha-copy"]
    with pytest.raises(UnknownNameError, match=r"'alhpa'.*Did you mean 'alpha'"):
        registry.get("alhpa")
    enrol(registry, "hub/org/omega", 4)
    with pytest.raises(UnknownNameError, match="Did you mean 'hub/org/omega'"):
        registry.get("omega")
    with pytest.raises(UnknownNameError, match="stemma list"):
        registry.get(hexadecimal[:7])
    enrol(registry, b.digest[7:15], 3)  # a name goes before a digest
    assert registry.get(b.digest[7:15]).digest != b.digest


def test_a_prefix_of_several_digests_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "verified_manifest", lambda record, tensors: records.manifest(tensors))
    record, tensors = describe(model("m", 1))
    for i in "12":
        registry.add(replace(record, name=f"m{i}", digest=Digest("sha256:" + "ab" * 5 + i * 54)), tensors)
    with pytest.raises(RegistryError, match=r"matches 2 models: 'm1' .*'m2' .*Use more digits"):
        registry.get("abababab")
    assert registry.get("ab" * 5 + "2").name == "m2"


def test_renamed_copies_are_found_without_names(registry: Registry) -> None:
    enrol(registry, "m", 1)
    renamed = from_arrays({f"other.{k}": v for k, v in arrays(1).items()}, "x")
    assert registry.by_digest(renamed.digest) == ()
    assert [r.name for r in registry.by_names_free_digest(renamed.names_free_digest)] == ["m"]


def test_shared_tensors_are_those_of_a_slow_scan(registry: Registry) -> None:
    rng, pool = random.Random(5), list(arrays(9, layers=12).values())
    contents: dict[Digest, set[Digest]] = {}
    for i in range(25):
        chosen = rng.sample(pool, 4)
        record, tensors = describe(from_arrays({f"t{j}": a for j, a in enumerate(chosen)}, f"m{i}"))
        registry.add(record, tensors)
        contents[record.digest] = {t.digest for t in tensors}
    wanted = set(rng.sample(sorted(set().union(*contents.values())), 5))
    expected = {d: c & wanted for d, c in contents.items() if c & wanted}
    found = registry.by_tensor_digests(wanted)
    assert found == expected
    assert list(found) == sorted(expected, key=lambda d: (-len(expected[d]), d))
    counts = sorted(map(len, expected.values()), reverse=True)
    assert [len(v) for v in registry.by_tensor_digests(wanted, limit=3).values()] == counts[:3]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "replace", "remove"]), st.sampled_from("abc"), st.integers(0, 3)),
        max_size=14,
    )
)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_registry_is_a_dict_with_a_memory(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, kind: str, steps
) -> None:
    """Any sequence of changes leaves what the same changes leave in a dict, also when it is opened anew."""
    path = tmp_path_factory.mktemp("r") / "r.db"
    if kind == "postgresql":
        path = request.getfixturevalue("postgresql").address()
    expected: dict[str, Digest] = {}
    with Registry(path) as registry:
        for what, name, seed in steps:
            digest = model(name, seed).digest
            if what == "remove":
                if name in expected:
                    registry.remove(name)
                    del expected[name]
                else:
                    with pytest.raises(UnknownNameError):
                        registry.remove(name)
            elif what == "add" and expected.get(name, digest) != digest:
                with pytest.raises(RegistryError):
                    enrol(registry, name, seed)
            else:
                enrol(registry, name, seed, replace=what == "replace")
                expected[name] = digest
            assert {r.name: r.digest for r in registry.models()} == expected
    with Registry(path) as registry:
        assert {r.name: r.digest for r in registry.models()} == expected
        assert {f.model for f in registry.fingerprints(SPEC)} == set(expected.values())
        assert len(registry.sketch_index(SPEC)) == len(set(expected.values()))
        assert registry.check() == []


# Search


def slow_nearest(digests: list[Digest], bits: np.ndarray, query: np.ndarray, n: int) -> list[tuple]:
    def hamming(a: np.ndarray, b: np.ndarray) -> int:
        return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))

    both = [(hamming(row[:128], query[:128]), hamming(row[128:], query[128:])) for row in bits]
    ranked = []
    for d, (ordered, invariant) in zip(digests, both, strict=True):
        rank = min(sum(o < ordered for o, _ in both), sum(i < invariant for _, i in both))
        ranked.append((rank, ordered + invariant, d, ordered, invariant))
    return [(d, rank, ordered, invariant) for rank, _, d, ordered, invariant in sorted(ranked)[:n]]


@pytest.mark.parametrize("n", [1, 7, 60, 1000])
def test_the_search_is_that_of_a_slow_scan(n: int) -> None:
    rng = np.random.default_rng(n)
    bits = rng.integers(0, 256, (60, 256), dtype=np.uint8)
    bits[10:20] = bits[3]  # ties
    digests = [Digest(f"sha256:{rng.integers(1 << 62):064x}") for _ in bits]
    query = bits[3].copy()
    query[:9] ^= 1
    found = SketchIndex(digests, bits).nearest(query, n)
    assert [(f.digest, f.rank, f.ordered, f.invariant) for f in found] == slow_nearest(digests, bits, query, n)


def test_either_code_suffices_to_be_found() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 256, (3000, 256), dtype=np.uint8)
    digests = [Digest(f"sha256:{i:064x}") for i in range(3000)]
    index = SketchIndex(digests, bits)
    unrelated = rng.integers(0, 256, 256, dtype=np.uint8)
    for half in (slice(0, 128), slice(128, 256)):
        query = unrelated.copy()
        query[half] = bits[1234][half]
        assert digests[1234] in {f.digest for f in index.nearest(query, 2)}
    assert digests[1234] not in {f.digest for f in index.nearest(unrelated, 2)}  # the control


def test_an_empty_index_and_wrong_sketches() -> None:
    index = SketchIndex([], np.zeros((0, 256), np.uint8))
    assert index.nearest(np.zeros(256, np.uint8), 5) == ()
    with pytest.raises(RegistryError, match="a sketch must be uint8"):
        index.nearest(np.zeros(255, np.uint8), 5)
    with pytest.raises(RegistryError, match="sketches must be uint8"):
        SketchIndex([Digest("a")], np.zeros((1, 10), np.uint8))


def test_the_index_follows_a_corrected_fingerprint(registry: Registry) -> None:
    record, tensors = describe(model("m", 1))
    for seed in (1, 2):
        registry.add(record, tensors, [sketch(record.digest, seed)])
    newest = sketch(record.digest, 2).values["bits"]
    assert registry.sketch_index(SPEC).nearest(newest, 1)[0].ordered == 0
    assert len(rows(registry, "SELECT * FROM fingerprint")) == 2
    assert registry.check() == []
    bad = Fingerprint(record.digest, None, SPEC, {"bits": np.zeros(9, np.uint8)})
    with pytest.raises(RegistryError, match="uint8"):
        registry.add(record, tensors, [bad])


def test_records_are_digested_over_canonical_json() -> None:
    """The stored form is a contract: these digests may never change."""
    assert records.canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'
    assert records.bytes_digest(b'{"a":1}') == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    listing = records.manifest(
        [TensorRecord("b", "F32", (2, 3), Digest("d")), TensorRecord("a", "I8", (), Digest("e"))]
    )
    assert json.loads(listing) == [["a", "I8", [], "e", True], ["b", "F32", [2, 3], "d", True]]
    assert records.manifest(reversed(records.parse_manifest(listing))) == listing
    assert asdict(records.parse_manifest(listing)[0])["shape"] == ()
    with pytest.raises(RegistryError, match="JSON"):
        records.canonical_json({"x": object()})
