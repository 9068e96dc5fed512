"""Content identity of tensors and models, tagged with its algorithm."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from stemma.checkpoints.tensor import CHUNK, Tensor
from stemma.checkpoints.tensor_names import tied
from stemma.types import Digest

ALGORITHM = "sha256"
BATCH = 64 << 20
"""Bytes of tensors that a worker takes at once; a larger tensor is taken alone."""


def of_tensor(tensor: Tensor, buffer: bytearray | None = None) -> Digest:
    """Identity of one tensor: its dtype, shape and bytes, not its name.

    Cost: one pass over the bytes, one slice in memory.

    Args:
        tensor: Any tensor.
        buffer: Memory to reuse.

    Returns:
        The tagged digest.
    """
    h = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    for part in tensor.chunks(buffer):
        h.update(part)
    return Digest(f"{ALGORITHM}:{h.hexdigest()}")


def of_tensors(tensors: Iterable[Tensor], workers: int | None = None) -> dict[str, Digest]:
    """Identity of many tensors, on all cores (hashing and reading release the interpreter lock).

    Largest first, so that one huge tensor is hashed beside all the others; tiny ones share a task and a buffer.

    Args:
        tensors: The tensors.
        workers: Threads; the number of cores (at most 4) by default.

    Returns:
        Digest by tensor name, in the given order.
    """
    tensors = list(tensors)
    workers = workers or min(4, os.cpu_count() or 1)

    def work(batch: Sequence[Tensor]) -> list[tuple[str, Digest]]:
        buffer = bytearray(min(CHUNK, max(1, *(t.nbytes for t in batch), 1)))
        return [(t.name, of_tensor(t, buffer)) for t in batch]

    batches = _batches(tensors, max(1, min(BATCH, sum(t.nbytes for t in tensors) // (4 * workers))))
    with ThreadPoolExecutor(workers) as pool:
        found = dict(pair for pairs in pool.map(work, batches) for pair in pairs)
    return {t.name: found[t.name] for t in tensors}


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


def counted(tensors: Iterable[Tensor], tensor_digests: Mapping[str, Digest]) -> list[Tensor]:
    """The tensors that make up a model's identity: all but second names of tied tensors (see `names`).

    Whether the file stored the tie, stored the bytes twice or dropped the second name makes no difference.

    Returns:
        The tensors in the given order.
    """
    by_name = {t.name: t for t in tensors}
    groups: dict[Digest, list[str]] = {}
    for name in by_name:
        groups.setdefault(tensor_digests[name], []).append(name)
    dropped = tied(groups.values(), by_name)
    return [t for t in by_name.values() if t.name not in dropped]


def of_model(tensors: Iterable[Tensor], tensor_digests: Mapping[str, Digest]) -> Digest:
    """Identity of a model: over the sorted lines of name, dtype, shape and tensor digest.

    Returns:
        The tagged digest.
    """
    lines = sorted(f"{_escaped(t.name)}\t{t.dtype}\t{list(t.shape)}\t{tensor_digests[t.name]}\n" for t in tensors)
    content = "".join(lines)
    return Digest(f"{ALGORITHM}:{hashlib.sha256(content.encode()).hexdigest()}")


def _escaped(name: str) -> str:
    # a name cannot imitate the end of its line
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def of_contents(tensor_digests: Iterable[Digest]) -> Digest:
    """Identity of a multiset of tensors, whatever their names.

    Returns:
        The tagged digest.
    """
    content = "\n".join(sorted(tensor_digests))
    return Digest(f"{ALGORITHM}:{hashlib.sha256(content.encode()).hexdigest()}")
