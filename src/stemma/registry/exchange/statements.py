"""What one registry tells another: statements, each known by the digest of its text.

A statement is about a key (a model's name, a pair of models, the family tree); of several about one key, the one with
the largest revision counts. So any two collections are merged by their union, in any order and any number of times.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from stemma.errors import ExchangeError, RegistryError
from stemma.registry import blobs, records
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord, TensorRecord
from stemma.registry.search import SKETCH_BYTES
from stemma.types import Digest, Spec, jsonable

MODEL, EVIDENCE, TREE, EDGE = "model", "evidence", "tree", "edge"
KINDS = (MODEL, EVIDENCE, TREE, EDGE)

MAX_MODEL = 64 << 10
"""Bytes that the export of one model takes at most, compressed."""

MAX_TEXT = 1 << 20
"""Characters of one statement."""

MAX_NAME = 500
"""Characters of a name."""

LINEAGE = "lineage"
"""The key of the statement that a family tree was drawn; its edges are those of the same revision."""

MAX_COUNT = 1 << 62
"""Largest number that a database stores."""

FIELDS = {
    MODEL: {"key", "kind", "revision", "removed", "record", "tensors", "complete", "sketches", "functional"},
    EVIDENCE: {"key", "kind", "revision", "a", "b", "spec", "content", "added_at"},
    TREE: {"key", "kind", "revision", "facts", "edges", "added_at", "stemma_version"},
    EDGE: {"key", "kind", "revision", "parent", "child", "relation", "confidence", "p_value"},
}
"""Fields of a statement, by its kind; a tombstone has only the first four and `digest` of MODEL."""

TOMBSTONE = {"key", "kind", "revision", "removed", "digest"}

_TIME = re.compile(r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL_DIGEST = re.compile(r"(?:partial:)?(?:sha256:)?[0-9a-f]{64}")
_RECORD = {
    "name", "digest", "names_free_digest", "source", "format", "tensors", "parameters", "dtypes", "config", "claims",
    "license", "added_at", "stemma_version",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a registry.

    Attributes:
        kind: `model` (a tombstone too), `evidence`, `tree` or `edge`.
        key: What it is about.
        revision: Numbers that grow with every change in the registry that states it.
        text: Canonical JSON.
        body: The JSON values.
    """

    kind: str
    key: str
    revision: tuple[int, ...]
    text: str
    body: Mapping[str, Any]

    @property
    def digest(self) -> Digest:
        """Identity of the statement."""
        return records.bytes_digest(self.text.encode())

    @property
    def order(self) -> str:
        """The revision as text that sorts as the numbers do."""
        return ".".join(f"{n:019d}" for n in self.revision)


def statement(kind: str, key: str, revision: Sequence[int], **body: Any) -> Statement:
    """A statement of these values, made here; raises if they are not JSON, or more than a statement may hold."""
    values = {"kind": kind, "key": key, "revision": list(revision), **body}
    try:
        text = canonical_text(values)
    except ValueError:
        _refuse(f"a statement about {_short(key)} holds numbers that are not finite, or text that is not Unicode")
    if len(text) > MAX_TEXT:
        _refuse(f"a statement about {_short(key)} is too long")
    if kind == MODEL and not values["removed"]:
        _check_record(values)
    else:
        _CHECKS[kind](values)
    return Statement(kind, key, tuple(revision), text, values)


def canonical_text(value: Any) -> str:
    """The one way to write JSON values: sorted keys, no spaces, finite numbers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def pair_key(a: str, b: str, spec: Mapping[str, Any]) -> str:
    """The key of evidence: of an ordered pair and a method."""
    return records.bytes_digest(records.canonical_json([a, b, spec]).encode())


def edge_key(parent: Mapping[str, str], child: Mapping[str, str]) -> str:
    """The key of an edge of a family tree: of its ends."""
    return records.bytes_digest(records.canonical_json([dict(parent), dict(child)]).encode())


# What a foreign text may hold


def parse(text: str) -> Statement:
    """Read one statement of somebody else, and check every value in it.

    Args:
        text: Canonical JSON.

    Returns:
        The statement.

    Raises:
        ExchangeError: If it is not canonical, or holds anything that this format does not.
    """
    if len(text) > MAX_TEXT:
        _refuse(f"a statement has {len(text):,} characters, more than {MAX_TEXT:,}")
    try:
        body = json.loads(text, parse_constant=lambda name: _refuse(f"it holds {name[:20]}, which is no JSON number"))
        same = canonical_text(body) == text
    except (ValueError, RecursionError):
        _refuse("a statement is not JSON that Stemma writes")
    if not same or not isinstance(body, dict):
        _refuse("a statement is not in canonical JSON")
    kind = body.get("kind")
    if kind not in KINDS:
        _refuse(f"a statement is of the unknown kind {_short(kind)}")
    expected = TOMBSTONE if kind == MODEL and body.get("removed") is True else FIELDS[kind]
    if set(body) != expected:
        _refuse(f"a statement about a {kind} has other fields than {', '.join(sorted(expected))}")
    revision = body["revision"]
    if not isinstance(revision, list) or not 1 <= len(revision) <= 4 or not all(map(_is_count, revision)):
        _refuse(f"a revision is {_short(revision)}")
    _CHECKS[kind](body)
    return Statement(kind, body["key"], tuple(revision), text, body)


def _check_model(body: Mapping[str, Any]) -> None:
    check_name(body["key"])
    if not isinstance(body["removed"], bool):
        _refuse(f"'removed' is {_short(body['removed'])}")
    if body["removed"]:
        _digest(body["digest"], _MODEL_DIGEST)
        return
    _check_record(body)
    _check_tensors(body)
    for sketch in (*_list(body["sketches"]), *_list(body["functional"])):
        _check_sketch(sketch)


def _check_record(body: Mapping[str, Any]) -> None:
    check_name(body["key"])
    record = body["record"]
    if not isinstance(record, dict) or set(record) != _RECORD or record["name"] != body["key"]:
        _refuse(f"the record of {_short(body['key'])} has other fields than {', '.join(sorted(_RECORD))}")
    for field in ("digest", "names_free_digest"):
        _digest(record[field], _MODEL_DIGEST)
    for field in ("source", "format", "stemma_version"):
        _text(record[field], field)
    _time(record["added_at"])
    if not all(_is_count(record[field]) for field in ("tensors", "parameters")):
        _refuse(f"the counts of {_short(body['key'])} are not numbers that can be")
    _texts(record["claims"], "claims")
    if record["license"] is not None:
        _text(record["license"], "license")
    if record["config"] is not None and not isinstance(record["config"], dict):
        _refuse(f"the configuration of {_short(body['key'])} is {_short(record['config'])}")
    dtypes = record["dtypes"]
    if not isinstance(dtypes, dict) or not all(_is_count(n) for n in dtypes.values()):
        _refuse(f"the number formats of {_short(body['key'])} are {_short(dtypes)}")


def _check_tensors(body: Mapping[str, Any]) -> None:
    """A complete list of tensors must have the digest that the record states."""
    if not isinstance(body["complete"], bool):
        _refuse(f"'complete' is {_short(body['complete'])}")
    listed = tensor_records(body["tensors"])
    record = body["record"]
    if body["complete"] and record["digest"].startswith("sha256:"):
        if len({t.name for t in listed}) != len(listed) or len(listed) != record["tensors"]:
            _refuse(f"the tensors of {_short(record['name'])} are not as many as its record says")
        if records.model_digests(listed) != (record["digest"], record["names_free_digest"]):
            _refuse(f"the tensors of {_short(record['name'])} do not have the digest that its record states")


def tensor_records(columns: Any) -> tuple[TensorRecord, ...]:
    """The tensors in a statement: columns of names, formats, shapes and marks, and their digests one after another."""
    if not isinstance(columns, dict) or set(columns) != {"names", "dtypes", "shapes", "uncounted", "digests"}:
        _refuse("a list of tensors has other columns than names, dtypes, shapes, uncounted and digests")
    names, dtypes, shapes = (_list(columns[c]) for c in ("names", "dtypes", "shapes"))
    raw, uncounted = _bytes(columns["digests"]), _list(columns["uncounted"])
    if not len(names) == len(dtypes) == len(shapes) == len(raw) / 32:
        _refuse("the columns of a list of tensors are not of one length")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < len(names) for n in uncounted):
        _refuse("a list of tensors marks some that it does not hold")
    skipped, out = set(uncounted), []
    for i, (name, dtype, shape) in enumerate(zip(names, dtypes, shapes, strict=True)):
        _text(name, "name of a tensor", MAX_NAME * 4)
        _text(dtype, "number format", 20)
        if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_count, shape)):
            _refuse(f"the shape of {_short(name)} is {_short(shape)}")
        if math.prod(shape) > MAX_COUNT:
            _refuse(f"the shape of {_short(name)} is larger than any tensor")
        digest = Digest(f"sha256:{raw[32 * i : 32 * i + 32].hex()}")
        out.append(TensorRecord(name, dtype, tuple(shape), digest, i not in skipped))
    return tuple(out)


def tensor_keys(columns: Mapping[str, Any]) -> set[int]:
    """Lookup keys of the matrices among the tensors of a statement: a vector of ones is shared by thousands."""
    raw = base64.b64decode(columns["digests"])
    wide = [i for i, shape in enumerate(columns["shapes"]) if sum(n > 1 for n in shape) >= 2]
    return {int.from_bytes(raw[32 * i : 32 * i + 8], "big", signed=True) for i in wide}


def tensor_columns(listed: Sequence[TensorRecord]) -> dict[str, Any]:
    """The columns that `tensor_records` reads."""
    return {
        "names": [t.name for t in listed],
        "dtypes": [t.dtype for t in listed],
        "shapes": [list(t.shape) for t in listed],
        "uncounted": [i for i, t in enumerate(listed) if not t.counted],
        "digests": base64.b64encode(b"".join(bytes.fromhex(t.digest.rpartition(":")[2]) for t in listed)).decode(),
    }


def _check_sketch(sketch: Any) -> None:
    if not isinstance(sketch, dict) or set(sketch) != {"network", "probes", "spec", "values", "added_at"}:
        _refuse("a sketch has other fields than network, probes, spec, values and added_at")
    for field in ("network", "probes"):
        if sketch[field] is not None:
            _digest(sketch[field], _DIGEST)
    _spec(sketch["spec"])
    _time(sketch["added_at"])
    values = sketch_values(sketch)
    if sketch["spec"] != jsonable(fingerprinters()[0].spec):
        return  # of another method, or version: it is kept, and not used
    bits = values.get("bits")
    if bits is None or bits.dtype != np.uint8 or bits.shape != (SKETCH_BYTES,) or "units" not in values:
        _refuse("a weight sketch has no bits, or no units, or others than it should have")
    _check_units(values)


def _check_units(values: Mapping[str, np.ndarray]) -> None:
    """The units of a weight sketch: what the test on sketches takes for granted."""
    units, owners = values["units"], values.get("owners")
    fits = units.dtype == np.int8 and units.ndim == 3 and max(units.shape) <= 256
    if not fits or owners is None or owners.dtype != np.int64 or owners.shape != (len(units), 4):
        _refuse("the units of a weight sketch do not have the shapes of one")
    if len(owners) and (owners[:, :3].min() < 0 or owners[:, 0].max() > units.shape[1]):
        _refuse("the units of a weight sketch are more than it holds")


def sketch_values(sketch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a sketch in a statement."""
    try:
        values = blobs.unpack(_bytes(sketch["values"]))
    except RegistryError:
        _refuse("the values of a sketch are damaged")
    except Exception as e:  # whatever the package that reads arrays raises
        _refuse(f"the values of a sketch cannot be read ({type(e).__name__})")
    if any(v.dtype.kind == "f" and not np.isfinite(v).all() for v in values.values()):
        _refuse("a sketch holds numbers that are not finite")
    return values


def _check_evidence(body: Mapping[str, Any]) -> None:
    for field in ("a", "b"):
        _digest(body[field], _MODEL_DIGEST)
    _spec(body["spec"])
    _time(body["added_at"])
    if not isinstance(body["content"], dict):
        _refuse(f"the content of evidence is {_short(body['content'])}")
    if body["key"] != pair_key(body["a"], body["b"], body["spec"]):
        _refuse("evidence is filed under another pair than the one it is about")


def _check_tree(body: Mapping[str, Any]) -> None:
    _time(body["added_at"])
    _text(body["stemma_version"], "version")
    if body["key"] != LINEAGE or not isinstance(body["facts"], dict) or not _is_count(body["edges"]):
        _refuse("a family tree is not one")


def _check_edge(body: Mapping[str, Any]) -> None:
    for end in ("parent", "child"):
        if not isinstance(body[end], dict) or set(body[end]) != {"name", "digest"}:
            _refuse(f"the {end} of an edge is {_short(body[end])}")
        check_name(body[end]["name"])
        _digest(body[end]["digest"], _MODEL_DIGEST)
    _text(body["relation"], "relation", 100)
    for field in ("confidence", "p_value"):
        value = body[field]
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
        ):
            _refuse(f"the {field} of an edge is {_short(value)}")
    if body["key"] != edge_key(body["parent"], body["child"]):
        _refuse("an edge is filed under other models than those it is about")


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    MODEL: _check_model,
    EVIDENCE: _check_evidence,
    TREE: _check_tree,
    EDGE: _check_edge,
}


def check_name(name: Any) -> str:
    """A name that may be shown and stored; raises for any other."""
    good = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()
    return name if good else _refuse(f"{_short(name)} is no name of a model")


def model_record(body: Mapping[str, Any]) -> ModelRecord:
    """The record in a statement about a model that was not removed."""
    return ModelRecord(**body["record"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else _refuse(f"a list is {_short(value)}")


def _text(value: Any, what: str, limit: int = 10_000) -> None:
    if not isinstance(value, str) or len(value) > limit:
        _refuse(f"the {what} is {_short(value)}")


def _time(value: Any) -> None:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        _refuse(f"{_short(value)} is no time")


def _texts(value: Any, what: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        _refuse(f"the {what} are {_short(value)}")


def _digest(value: Any, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse(f"{_short(value)} is no digest")


def _spec(value: Any) -> None:
    good = isinstance(value, dict) and set(value) == {"name", "version", "params"} and isinstance(value["params"], dict)
    if not good or not isinstance(value["name"], str) or not _is_count(value["version"]):
        _refuse(f"a method is {_short(value)}")
    assert Spec(**value).digest


def _bytes(value: Any) -> bytes:
    try:
        found = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        _refuse("values are not base64")
    return found if base64.b64encode(found).decode() == value else _refuse("values are not in canonical base64")


def _short(value: Any) -> str:
    """A foreign value as part of a message."""
    try:
        shown = repr(value[:100] if isinstance(value, (str, list)) else value)
    except (RecursionError, ValueError):
        shown = type(value).__name__
    return shown if len(shown) <= 100 else shown[:100] + "…"


def _refuse(why: str) -> NoReturn:
    raise ExchangeError(why)
