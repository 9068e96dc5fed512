"""Digests of tensors and models, prefixed with the algorithm."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from stemma.checkpoints.read_together import is_small, small_tensors
from stemma.checkpoints.tensor import CHUNK, Tensor
from stemma.checkpoints.tensor_names import tied_aliases
from stemma.types import Digest

ALGORITHM = "sha256"
PARTIAL = "partial:"
"""What the digest of a model or tensor begins with of which only a sample was read."""

BATCH = 64 << 20
"""Bytes of tensors per task; a larger tensor is a task of its own."""
WORTH_THREADS = 4 << 20
"""Bytes of tensors from which several threads are started."""


def of_tensor(tensor: Tensor, buffer: bytearray | None = None) -> Digest:
    """Digest of one tensor: dtype, shape and bytes, not its name; read once, in slices.

    Returns:
        The digest. Of a tensor of which leading rows alone were read, it is over those and their number, and begins
        with `partial:`.
    """
    sample = "" if tensor.leading is None else f"first {tensor.readable} rows\n"
    h = hashlib.sha256(_head(tensor) + sample.encode())
    for part in tensor.cut().chunks(buffer):
        h.update(part)
    return Digest(f"{PARTIAL if sample else ''}{ALGORITHM}:{h.hexdigest()}")


def is_partial(digest: str) -> bool:
    """Whether a digest is that of a sample: equal ones say that all bytes agree that were read, and no more."""
    return digest.startswith(PARTIAL)


def of_tensors(tensors: Iterable[Tensor], workers: int | None = None) -> dict[str, Digest]:
    """Digests of many tensors by name, computed in `workers` threads (at most 4 by default)."""
    tensors = list(tensors)
    small = [t for t in tensors if is_small(t)]
    found = _of_small(small)
    rest = [t for t in tensors if not is_small(t)] if len(small) < len(tensors) else []
    if rest:
        found |= _of_large(rest, workers or min(4, os.cpu_count() or 1))
    return {t.name: found[t.name] for t in tensors}


def _of_small(tensors: Sequence[Tensor]) -> dict[str, Digest]:
    heads: dict[tuple[str, tuple[int, ...]], bytes] = {}
    found = {}
    for i, part in small_tensors(tensors):
        t = tensors[i]
        kind = t.dtype, t.shape
        head = heads.get(kind)
        if head is None:
            head = heads[kind] = _head(t)
        h = hashlib.sha256(head)
        h.update(part)
        found[t.name] = Digest(f"{ALGORITHM}:{h.hexdigest()}")
    return found


def _head(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {list(tensor.shape)}\n".encode()


def _of_large(tensors: Sequence[Tensor], workers: int) -> dict[str, Digest]:

    def work(batch: Sequence[Tensor]) -> list[tuple[str, Digest]]:
        buffer = bytearray(min(CHUNK, max(1, *(t.nbytes for t in batch), 1)))
        return [(t.name, of_tensor(t, buffer)) for t in batch]

    batches = _batches(tensors, max(1, min(BATCH, sum(t.nbytes for t in tensors) // (4 * workers))))
    if workers == 1 or sum(t.nbytes for t in tensors) < WORTH_THREADS:
        return dict(pair for batch in batches for pair in work(batch))
    with ThreadPoolExecutor(workers) as pool:
        return dict(pair for pairs in pool.map(work, batches) for pair in pairs)


def _batches(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    batches: list[list[Tensor]] = []
    room = 0
    for t in sorted(tensors, key=lambda t: -t.nbytes):
        if not batches or t.nbytes > room or len(batches[-1]) >= 1024:
            batches.append([])
            room = limit
        batches[-1].append(t)
        room -= t.nbytes
    return batches


def distinct_tensors(tensors: Iterable[Tensor], tensor_digests: Mapping[str, Digest]) -> list[Tensor]:
    """The tensors that make up a model's identity: all except second names of tied tensors (see `tensor_names`)."""
    by_name = {t.name: t for t in tensors}
    groups: dict[Digest, list[str]] = {}
    for name in by_name:
        groups.setdefault(tensor_digests[name], []).append(name)
    dropped = tied_aliases(groups.values(), by_name)
    return [t for t in by_name.values() if t.name not in dropped]


class Named(Protocol):
    """A tensor, or the record of one."""

    @property
    def name(self) -> str:
        """Canonical name."""

    @property
    def dtype(self) -> str:
        """Dtype code."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths."""


def of_model(tensors: Iterable[Named], tensor_digests: Mapping[str, Digest]) -> Digest:
    """Digest of a model: over the sorted lines of name, dtype, shape and tensor digest."""
    kinds: dict[tuple[str, tuple[int, ...]], str] = {}
    lines = []
    for t in tensors:
        name, key = t.name, (t.dtype, t.shape)
        kind = kinds.get(key) or kinds.setdefault(key, f"{t.dtype}\t{list(t.shape)}")
        if "\\" in name or not name.isprintable():
            lines.append(f"{_escaped(name)}\t{kind}\t{tensor_digests[name]}\n")
        else:
            lines.append(f"{name}\t{kind}\t{tensor_digests[name]}\n")
    lines.sort()
    return _of_text("".join(lines), partial=PARTIAL in {d[: len(PARTIAL)] for d in tensor_digests.values()})


def _of_text(content: str, *, partial: bool) -> Digest:
    return Digest(f"{PARTIAL if partial else ''}{ALGORITHM}:{hashlib.sha256(content.encode()).hexdigest()}")


def _escaped(name: str) -> str:
    # so that a name cannot contain the end of its line
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def of_contents(tensor_digests: Iterable[Digest]) -> Digest:
    """Digest of a multiset of tensors, whatever their names."""
    digests = sorted(tensor_digests)
    return _of_text("\n".join(digests), partial=bool(digests) and is_partial(digests[0]))  # before `sha256:`
