"""Matrices that are still to be put together, found by size and by name: so that many do not mean very many pairs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from stemma.checkpoints.tensor import Tensor

PIECES = 8
"""Most pieces that are put together."""

MANY, RARE = 128, 64
"""Proposals from which only those are looked at that share a part of the name with the matrix wanted, and tensors that
may have a part of a name in common for it to tell anything."""

Shape = tuple[int, ...]


@dataclass(eq=False)
class Shelf:
    """Pieces by what they could be joined to. Mutable: what was used is taken off.

    Attributes:
        pieces: Matrices by name.
    """

    pieces: dict[str, Tensor]
    _runs: dict[tuple[int, Shape, int], list[tuple[str, ...]]] = field(default_factory=dict)

    def take(self, names: Iterable[str]) -> None:
        """Take pieces off.

        Args:
            names: What was used.
        """
        for n in names:
            del self.pieces[n]

    def beside(self, whole: Tensor, axis: int) -> list[str]:
        """Pieces that agree with a matrix in all axes but one.

        Args:
            whole: The matrix.
            axis: That one.

        Returns:
            Their names.
        """
        return [n for n in self._fitting.get((axis, all_but(whole.shape, axis)), ()) if n in self.pieces]

    def runs(self, whole: Tensor, axis: int) -> list[tuple[str, ...]]:
        """Pieces whose names differ in one number only, neighbours whose lengths add up to that of a matrix.

        Args:
            whole: The matrix.
            axis: Along which they are joined.

        Returns:
            Names of the pieces, in their order.
        """
        key = axis, all_but(whole.shape, axis), whole.shape[axis] if axis < len(whole.shape) else 0
        if key not in self._runs:
            groups = numbered(self.beside(whole, axis))
            self._runs[key] = [run for group in groups for run in adding_up(group, self.pieces, whole, axis)]
        return [run for run in self._runs[key] if all(n in self.pieces for n in run)]

    def factors(self, whole: Tensor) -> tuple[list[str], dict[int, list[str]]]:
        """Pieces that could be factors of a matrix.

        Args:
            whole: The matrix.

        Returns:
            Those with its rows; and those with its columns, by number of rows.
        """
        rank = len(whole.shape)
        left = [n for n in self._by_rows.get((rank, whole.shape[0]), ()) if n in self.pieces]
        right: dict[int, list[str]] = {}
        for n in self._by_columns.get((rank, whole.shape[1]), ()):
            if n in self.pieces:
                right.setdefault(self.pieces[n].shape[0], []).append(n)
        return left, right

    def named_like(self, name: str, among: Sequence[str]) -> Sequence[str]:
        """Of very many pieces those that share a telling part of a name.

        Args:
            name: The name.
            among: Pieces.

        Returns:
            All of them where they are few or where no part of the name tells anything.
        """
        if len(among) <= MANY:
            return among
        near: set[str] = set()
        for word in set(parts_of_name(name)):
            near |= self._words.get(word, frozenset())
        return [n for n in among if n in near] or among[:MANY]

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
        """Names by each of their parts; parts that very many have are left out."""
        out: dict[str, set[str]] = {}
        for n in self.pieces:
            for word in parts_of_name(n):
                out.setdefault(word, set()).add(n)
        return {word: frozenset(names) for word, names in out.items() if len(names) <= RARE}


def all_but(shape: Sequence[int], axis: int) -> Shape:
    """A shape without the length of one axis.

    Args:
        shape: Axis lengths.
        axis: The axis.

    Returns:
        The lengths, -1 in that place.
    """
    return (*shape[:axis], -1, *shape[axis + 1 :]) if axis < len(shape) else tuple(shape)


def numbered(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in one number only, in its order.

    Args:
        names: Any names.

    Returns:
        Groups of two or more.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for n in names:
        words = re.split(r"(\d+)", n)
        for k in range(1, len(words), 2):
            groups.setdefault((*words[:k], "#", *words[k + 1 :]), []).append(n)
    return [sorted(group, key=natural) for group in groups.values() if len(group) > 1]


def adding_up(
    names: Sequence[str], pieces: Mapping[str, Tensor], whole: Tensor, axis: int
) -> list[tuple[str, ...]]:  # fmt: skip
    """Neighbours in a list whose lengths add up.

    Args:
        names: Pieces in order.
        pieces: Matrices by name.
        whole: What they should make.
        axis: Along which they are joined.

    Returns:
        Names of two or more neighbours, at most `PIECES`.
    """
    out = []
    for first in range(len(names)):
        total = 0
        for last in range(first, min(len(names), first + PIECES)):
            total += pieces[names[last]].shape[axis]
            if total >= whole.shape[axis]:
                break
        if total == whole.shape[axis] and last > first:
            out.append(tuple(names[first : last + 1]))
    return out


@lru_cache(maxsize=1 << 16)
def parts_of_name(name: str) -> tuple[str, ...]:
    """The parts of a name.

    Args:
        name: As tensors have it.

    Returns:
        Its words.
    """
    return tuple(re.split(r"[._/]", name))


@lru_cache(maxsize=1 << 16)
def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that puts names in the order of their numbers.

    Args:
        name: As tensors have it.

    Returns:
        Its words and numbers.
    """
    return tuple((int(w), "") if w.isdigit() else (-1, w) for w in re.split(r"(\d+)", name))
