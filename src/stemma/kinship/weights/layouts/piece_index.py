"""Index of matrices that may be pieces of others, by size and by name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from stemma.checkpoints.tensor import Tensor

MAX_PIECES = 8
"""Most pieces of one matrix."""

MANY_PROPOSALS, RARE_WORD = 128, 64
"""Number of proposals from which those with a common part of the name are preferred, and most tensors that may share a
part of a name for it to be used."""

Shape = tuple[int, ...]


@dataclass(eq=False)
class PieceIndex:
    """Matrices by name that may be joined to others; used ones are removed."""

    pieces: dict[str, Tensor]
    _runs: dict[tuple[int, Shape, int], list[tuple[str, ...]]] = field(default_factory=dict)

    def remove(self, names: Iterable[str]) -> None:
        """Remove used pieces."""
        for n in names:
            del self.pieces[n]

    def matching_but_axis(self, whole: Tensor, axis: int) -> list[str]:
        """Pieces that agree with a matrix in all axes but one."""
        return [n for n in self._fitting.get((axis, all_but(whole.shape, axis)), ()) if n in self.pieces]

    def consecutive_pieces(self, whole: Tensor, axis: int) -> list[tuple[str, ...]]:
        """Consecutively numbered pieces whose lengths along an axis add up to a matrix's."""
        key = axis, all_but(whole.shape, axis), whole.shape[axis] if axis < len(whole.shape) else 0
        if key not in self._runs:
            groups = numbered_groups(self.matching_but_axis(whole, axis))
            self._runs[key] = [run for group in groups for run in runs_of_length(group, self.pieces, whole, axis)]
        return [run for run in self._runs[key] if all(n in self.pieces for n in run)]

    def factors(self, whole: Tensor) -> tuple[list[str], dict[int, list[str]]]:
        """Pieces with the rows of a matrix; and those with its columns, by number of rows."""
        rank = len(whole.shape)
        left = [n for n in self._by_rows.get((rank, whole.shape[0]), ()) if n in self.pieces]
        right: dict[int, list[str]] = {}
        for n in self._by_columns.get((rank, whole.shape[1]), ()):
            if n in self.pieces:
                right.setdefault(self.pieces[n].shape[0], []).append(n)
        return left, right

    def with_similar_names(self, name: str, among: Sequence[str]) -> Sequence[str]:
        """Of very many pieces those that share a rare part of a name; else all."""
        if len(among) <= MANY_PROPOSALS:
            return among
        near: set[str] = set()
        for word in set(name_parts(name)):
            near |= self._words.get(word, frozenset())
        return [n for n in among if n in near] or among[:MANY_PROPOSALS]

    @cached_property
    def _fitting(self) -> dict[tuple[int, Shape], list[str]]:
        out: dict[tuple[int, Shape], list[str]] = {}
        for n, t in self.pieces.items():
            for axis in (0, 1):
                out.setdefault((axis, all_but(t.shape, axis)), []).append(n)
        return out

    @cached_property
    def _by_rows(self) -> dict[tuple[int, int], list[str]]:
        out: dict[tuple[int, int], list[str]] = {}
        for n, t in self.pieces.items():
            out.setdefault((len(t.shape), t.shape[0]), []).append(n)
        return out

    @cached_property
    def _by_columns(self) -> dict[tuple[int, int], list[str]]:
        out: dict[tuple[int, int], list[str]] = {}
        for n, t in self.pieces.items():
            out.setdefault((len(t.shape), t.shape[1]), []).append(n)
        return out

    @cached_property
    def _words(self) -> dict[str, frozenset[str]]:
        """Names by each of their parts, without very common parts."""
        out: dict[str, set[str]] = {}
        for n in self.pieces:
            for word in name_parts(n):
                out.setdefault(word, set()).add(n)
        return {word: frozenset(names) for word, names in out.items() if len(names) <= RARE_WORD}


def all_but(shape: Sequence[int], axis: int) -> Shape:
    """A shape with -1 in place of the length of one axis."""
    return (*shape[:axis], -1, *shape[axis + 1 :]) if axis < len(shape) else tuple(shape)


def numbered_groups(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ in one number only, in its order."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for n in names:
        words = re.split(r"(\d+)", n)
        for k in range(1, len(words), 2):
            groups.setdefault((*words[:k], "#", *words[k + 1 :]), []).append(n)
    return [sorted(group, key=natural_sort_key) for group in groups.values() if len(group) > 1]


def runs_of_length(
    names: Sequence[str], pieces: Mapping[str, Tensor], whole: Tensor, axis: int
) -> list[tuple[str, ...]]:  # fmt: skip
    """Neighbours in a list whose lengths along an axis add up to a matrix's; at most `MAX_PIECES`."""
    out = []
    for first in range(len(names)):
        total = 0
        for last in range(first, min(len(names), first + MAX_PIECES)):
            total += pieces[names[last]].shape[axis]
            if total >= whole.shape[axis]:
                break
        if total == whole.shape[axis] and last > first:
            out.append(tuple(names[first : last + 1]))
    return out


@lru_cache(maxsize=1 << 16)
def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a tensor name."""
    return tuple(re.split(r"[._/]", name))


@lru_cache(maxsize=1 << 16)
def natural_sort_key(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key that orders names by their numbers."""
    return tuple((int(w), "") if w.isdigit() else (-1, w) for w in re.split(r"(\d+)", name))
