"""The search index of a large registry as a file beside it, so that a query reads it as it lies.

The file is derived from the database: whatever was added since is appended before a search, a file that belongs to
another state of the registry is made anew, and `check` compares every row. It holds a page with the header, then one
record per model: the number of its contents (8 bytes) and its sketch (256 bytes).
"""

import contextlib
import json
import os
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import sqlalchemy as sa

try:
    import fcntl
except ImportError:  # Windows: the index is read from the database each time
    fcntl = None

from stemma.registry import rows, schema
from stemma.registry.database import AbstractDatabase
from stemma.registry.search import SKETCH_BYTES, SketchIndex
from stemma.types import Digest, Spec

LARGE = 5_000
"""Number of different models from which the index is kept in a file."""

HEADER, RECORD = 4096, 8 + SKETCH_BYTES
_BATCH = 20_000


@dataclass(frozen=True)
class Header:
    """What a file holds.

    Attributes:
        spec: The method of the sketches.
        rows: Number of records.
        highest: The highest number of contents among them, 0 without records.
        last: The last row of fingerprints that was considered.
        anchor: Digest of that row's record, which no other registry has.
    """

    spec: str
    rows: int = 0
    highest: int = 0
    last: int = 0
    anchor: str = ""

    def encoded(self) -> bytes:
        """The page at the start of the file."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return (b"%08x " % zlib.crc32(text) + text + b"\n").ljust(HEADER, b"\0")

    @classmethod
    def decoded(cls, page: bytes) -> "Header | None":
        """The header in a page, None if it is damaged."""
        checksum, _, text = page.rstrip(b"\0").rstrip(b"\n").partition(b" ")
        try:
            return cls(**json.loads(text)) if int(checksum, 16) == zlib.crc32(text) else None
        except (ValueError, TypeError):
            return None


def path_of(registry: Path, spec: Spec) -> Path:
    """Where the index of one method lies."""
    return registry.with_name(f"{registry.name}.sketches-{spec.digest.rpartition(':')[2][:16]}")


def open_index(database: AbstractDatabase, registry: Path, spec: Spec) -> SketchIndex:
    """The index of the live models: from the file of a large registry, which is brought up to date, else in memory."""
    with database.reading() as connection:
        large = fcntl is not None and _contents(connection) >= LARGE
        if not large:
            return _in_memory(connection, spec)
        try:
            records = _up_to_date(connection, path_of(registry, spec), spec)
        except OSError:  # a folder that cannot be written, a full disk
            return _in_memory(connection, spec)
        live = _live(connection, records)

    def digests(at: Sequence[int]) -> list[Digest | None]:
        with database.reading() as reading:
            return _live_digests(reading, records[list(at), 0].tolist())

    return SketchIndex(digests, records.view(np.uint8)[:, 8:], live)


def _in_memory(connection: sa.Connection, spec: Spec) -> SketchIndex:
    found = sorted(rows.live_sketches(connection, spec), key=lambda r: r.digest)
    matrix = np.frombuffer(b"".join(r.bits for r in found), np.uint8).reshape(len(found), SKETCH_BYTES)
    return SketchIndex([Digest(r.digest) for r in found], matrix)


def _contents(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.max(schema.content.c.id))).scalar() or 0


def _live(connection: sa.Connection, records: np.ndarray) -> int:
    """How many live models have a record."""
    if len(records) == _contents(connection):  # all that were ever added
        return connection.execute(sa.select(sa.func.count(sa.distinct(schema.live.c.content_id)))).scalar_one()
    live = np.fromiter(connection.execute(sa.select(schema.live.c.content_id).distinct()).scalars(), np.int64)
    return int(np.isin(records[:, 0].astype(np.int64), live).sum())


def _live_digests(connection: sa.Connection, contents: Sequence[int]) -> list[Digest | None]:
    found: dict[int, Digest] = {}
    for at in range(0, len(contents), rows.QUERY_BATCH):
        part = contents[at : at + rows.QUERY_BATCH]
        query = sa.select(schema.content.c.id, schema.content.c.digest).where(
            schema.content.c.id.in_(part), rows.is_live(schema.content.c.id)
        )
        found |= {r.id: Digest(r.digest) for r in connection.execute(query)}
    return [found.get(c) for c in contents]


def _up_to_date(connection: sa.Connection, path: Path, spec: Spec) -> np.ndarray:
    """The records of the file, `uint64 [models, 33]`, mapped; what is missing is appended, what is wrong made anew."""
    header = _read_header(path)
    newest = connection.execute(sa.select(sa.func.max(schema.fingerprint.c.id))).scalar() or 0
    if header is None or header.last < newest or not _belongs(connection, header, spec):
        with _locked(path):
            header = _read_header(path)
            if header is not None and _belongs(connection, header, spec):
                header = _appended(connection, path, header, newest)
            else:
                header = None
            if header is None:
                header = _made_anew(connection, path, Header(spec.digest), newest)
    records = _mapped(path, header)
    if not _numbered(records, header):
        with _locked(path):
            records = _mapped(path, _made_anew(connection, path, Header(spec.digest), newest))
    return records


def _numbered(records: np.ndarray, header: Header) -> bool:
    """Whether the numbers of records can be those of contents; a file that is damaged in large parts has others."""
    return not len(records) or (int(records[:, 0].min()) > 0 and int(records[:, 0].max()) == header.highest)


def _mapped(path: Path, header: Header) -> np.ndarray:
    if not header.rows:
        return np.zeros((0, RECORD // 8), np.uint64)
    return np.memmap(path, np.uint64, "r", HEADER, (header.rows, RECORD // 8)).view(np.ndarray)


def _read_header(path: Path) -> Header | None:
    try:
        with path.open("rb") as f:
            header = Header.decoded(f.read(HEADER))
            size = os.fstat(f.fileno()).st_size
    except FileNotFoundError:
        return None
    return header if header is not None and size >= HEADER + header.rows * RECORD else None


def _belongs(connection: sa.Connection, header: Header, spec: Spec) -> bool:
    """Whether the file was made from this registry as it is or was."""
    f = schema.fingerprint.c
    anchor = connection.execute(sa.select(f.record_digest).where(f.id == header.last)).scalar()
    return header.spec == spec.digest and anchor == header.anchor


def _anchored(connection: sa.Connection, header: Header, newest: int) -> Header:
    f = schema.fingerprint.c
    anchor = connection.execute(sa.select(f.record_digest).where(f.id == newest)).scalar()
    return replace(header, last=newest, anchor=anchor or "")


def _appended(connection: sa.Connection, path: Path, header: Header, newest: int) -> Header | None:
    """The file with what was added since; None if a sketch that it holds was replaced."""
    new = dict(_new_sketches(connection, header))
    if new and min(new) <= header.highest:
        held = _mapped(path, header)[:, 0].astype(np.int64)
        if np.isin(held, list(new)).any():
            return None
    with path.open("r+b") as f:
        f.seek(HEADER + header.rows * RECORD)
        header = _write(f, header, sorted(new.items()))
        header = _anchored(connection, header, newest)
        _finish(f, header)
    return header


def _made_anew(connection: sa.Connection, path: Path, header: Header, newest: int) -> Header:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w+b") as f:
            f.seek(HEADER)
            header = _anchored(connection, _write(f, header, _all_sketches(connection, header)), newest)
            _finish(f, header)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return header


def _write(f, header: Header, sketches: Iterable[tuple[int, bytes]]) -> Header:
    count, highest = header.rows, header.highest
    for content, bits in sketches:
        f.write(content.to_bytes(8, "little") + bits)
        count, highest = count + 1, max(highest, content)
    return replace(header, rows=count, highest=highest)


def _finish(f, header: Header) -> None:
    """The records are on disk before the header counts them."""
    f.flush()
    os.fsync(f.fileno())
    f.seek(0)
    f.write(header.encoded())
    f.flush()


def _spec_id(header: Header) -> sa.ScalarSelect:
    return sa.select(schema.spec.c.id).where(schema.spec.c.digest == header.spec).scalar_subquery()


def _all_sketches(connection: sa.Connection, header: Header) -> Iterator[tuple[int, bytes]]:
    b, last = schema.sketch_bits.c, 0
    while True:
        query = sa.select(b.content_id, b.bits).where(b.spec_id == _spec_id(header), b.content_id > last)
        found = connection.execute(query.order_by(b.content_id).limit(_BATCH)).all()
        if not found:
            return
        yield from ((r.content_id, r.bits) for r in found)
        last = found[-1].content_id


def _new_sketches(connection: sa.Connection, header: Header) -> Iterator[tuple[int, bytes]]:
    """Sketches of the fingerprints that were stored since, by the number of their contents."""
    f, b, c = schema.fingerprint.c, schema.sketch_bits.c, schema.content.c
    query = sa.select(f.model_digest).where(f.id > header.last, f.spec_digest == header.spec)
    models = sorted(set(connection.execute(query).scalars()))
    for at in range(0, len(models), rows.QUERY_BATCH):
        joined = sa.select(b.content_id, b.bits).join(schema.content, c.id == b.content_id)
        part = joined.where(b.spec_id == _spec_id(header), c.digest.in_(models[at : at + rows.QUERY_BATCH]))
        yield from ((r.content_id, r.bits) for r in connection.execute(part))


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock of a file: one process writes it at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as f:
        if fcntl is not None:
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def differences(connection: sa.Connection, path: Path, spec: Spec) -> int:
    """Number of records of a file that are not what the database holds, or are missing from it; 0 without a file."""
    header = _read_header(path)
    if header is None or not _belongs(connection, header, spec):
        return 0  # it is made anew by the next search
    records = _mapped(path, header)
    held = dict(_all_sketches(connection, header))
    later = {content for content, _ in _new_sketches(connection, header)}
    wrong = 0
    for record in records:
        content = int(record[0])
        wrong += content not in later and held.pop(content, b"") != record[1:].tobytes()
    return wrong + len(held.keys() - later)
