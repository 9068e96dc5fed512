"""Reads many small tensors with few calls: neighbours in one file come in one slice."""

from collections.abc import Iterator, Sequence

from stemma.checkpoints.tensor import CHUNK, ByteSource, Tensor

SMALL = 1 << 16
"""Largest tensor, in bytes, that is read together with others."""


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor may be read together with others: it is small, and all of it can be read."""
    return tensor.nbytes <= SMALL and tensor.leading is None


def small_tensors(tensors: Sequence[Tensor]) -> Iterator[tuple[int, memoryview]]:
    """Position and canonical bytes of each of some tensors of at most `SMALL` bytes, in any order.

    Cost: one read per run of neighbouring tensors, of at most 4 MiB.

    Args:
        tensors: Any tensors; those that do not lie in a file are read one by one.

    Yields:
        The bytes, valid until the next is asked for.
    """
    sources: dict[int, ByteSource] = {}
    places: dict[int, list[tuple[int, int, int]]] = {}
    for i, t in enumerate(tensors):
        size = t.nbytes
        place = t.storage.place(size)
        if place is not None:
            sources[id(place[0])] = place[0]
            places.setdefault(id(place[0]), []).append((place[1], size, i))
        else:
            buffer = memoryview(bytearray(size))
            if size:
                t.storage.read_into(0, buffer)
            yield i, buffer
    for key, found in places.items():
        file = sources[key]
        found.sort()
        for run in _runs(found):
            start = run[0][0]
            read = memoryview(bytearray(run[-1][0] + run[-1][1] - start))
            if read:
                file.read_into(start, read)
            for offset, size, i in run:
                yield i, read[offset - start : offset - start + size]


def _runs(places: Sequence[tuple[int, int, int]]) -> Iterator[Sequence[tuple[int, int, int]]]:
    """Stretches of places, by offset, without gaps and of at most `CHUNK` bytes."""
    first = 0
    for k in range(1, len(places) + 1):
        at_end = k == len(places) or places[k][0] != places[k - 1][0] + places[k - 1][1]
        if at_end or places[k][0] + places[k][1] - places[first][0] > CHUNK:
            yield places[first:k]
            first = k
