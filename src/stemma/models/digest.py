"""Content identity of tensors and models, tagged with its algorithm."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from stemma.types import Digest

if TYPE_CHECKING:
    from stemma.models.model import Tensor

ALGORITHM = "sha256"


def of_tensor(tensor: "Tensor", buffer: bytearray | None = None) -> Digest:
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


def of_tensors(tensors: Iterable["Tensor"], workers: int | None = None) -> dict[str, Digest]:
    """Identity of many tensors, on all cores (hashing and reading release the interpreter lock).

    Args:
        tensors: The tensors.
        workers: Threads; the number of cores (at most 4) by default.

    Returns:
        Digest by tensor name, in the given order.
    """
    tensors = list(tensors)
    workers = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip([t.name for t in tensors], pool.map(of_tensor, tensors), strict=True))


def of_model(tensors: Iterable["Tensor"], tensor_digests: Mapping[str, Digest]) -> Digest:
    """Identity of a model: over the sorted lines of name, dtype, shape and tensor digest.

    Returns:
        The tagged digest.
    """
    lines = sorted(f"{t.name}\t{t.dtype}\t{list(t.shape)}\t{tensor_digests[t.name]}\n" for t in tensors)
    content = "".join(lines)
    return Digest(f"{ALGORITHM}:{hashlib.sha256(content.encode()).hexdigest()}")


def of_contents(tensor_digests: Iterable[Digest]) -> Digest:
    """Identity of a multiset of tensors, whatever their names.

    Returns:
        The tagged digest.
    """
    content = "\n".join(sorted(tensor_digests))
    return Digest(f"{ALGORITHM}:{hashlib.sha256(content.encode()).hexdigest()}")
