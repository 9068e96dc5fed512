"""Which of many models belong to one family: a few tests of pairs, chosen by sketches, instead of all pairs."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stemma.errors import MisuseError

CODE = 1024
"""Bits of each of a sketch's two codes; unrelated models differ in about half of them."""

NEAR = 440
"""Hamming distance, of 1024, from which two sketches are no nearer than chance: half, less 4.5 standard deviations."""

ALL_PAIRS = 48
"""Up to so many models every pair is tested that is not joined yet."""

STRANGERS = 3
"""Failed tests after which two families are taken for strangers."""


def families(
    sketches: np.ndarray, related: Callable[[int, int], bool], nearest: int = 8, all_pairs: int = ALL_PAIRS,
    known: Sequence[Sequence[int]] = (),
) -> list[list[int]]:  # fmt: skip
    """Connected components of a relation, most of whose pairs are never tested.

    Pairs are tested from the nearest sketches outwards, and only where they are not in one family already. Of more
    than `all_pairs` models only pairs count that are among the `nearest` by either code and nearer than chance.
    Cost: about one test per model; Hamming distances of all pairs, n² / 10⁷ seconds.

    Args:
        sketches: Bits of the weight sketches, `uint8 [n, 256]`.
        related: Tests two models.
        nearest: Neighbours of each model that are looked at, by each code.
        all_pairs: See above.
        known: Groups of models that are known to be of one family.

    Returns:
        Positions of the members of each family, ascending, the family of the first model first.

    Raises:
        MisuseError: If the sketches are none.
    """
    if sketches.dtype != np.uint8 or sketches.ndim != 2 or sketches.shape[1] * 8 != 2 * CODE:
        raise MisuseError(f"sketches are uint8 [n, {CODE // 4}], got {sketches.dtype} {list(sketches.shape)}")
    n = len(sketches)
    whose = list(range(n))
    members = {i: [i] for i in range(n)}
    refused: dict[tuple[int, int], int] = {}
    for group in known:
        for i in group[1:]:
            _join(whose, members, whose[group[0]], whose[i])
    for i, j in _pairs(sketches, nearest, n <= all_pairs):
        a, b = sorted((whose[i], whose[j]))
        if a == b or (n > all_pairs and refused.get((a, b), 0) >= STRANGERS):
            continue
        if not related(i, j):
            refused[a, b] = refused.get((a, b), 0) + 1
            continue
        _join(whose, members, a, b)
    return sorted((sorted(m) for m in members.values()), key=lambda m: m[0])


def _join(whose: list[int], members: dict[int, list[int]], a: int, b: int) -> None:
    """Make two families one; the smaller one moves."""
    if a == b:
        return
    if len(members[a]) < len(members[b]):
        a, b = b, a
    for k in members.pop(b):
        whose[k] = a
        members[a].append(k)


def _pairs(sketches: np.ndarray, nearest: int, complete: bool) -> Iterator[tuple[int, int]]:
    """Pairs to test, by the nearer of the two codes."""
    n = len(sketches)
    best: dict[tuple[int, int], int] = {}
    codes = [_signs(sketches[:, half]) for half in (slice(0, CODE // 8), slice(CODE // 8, None))]
    step = max(1, (1 << 22) // max(n, 1))
    for code in codes:
        for start in range(0, n, step):
            apart = ((CODE - code[start : start + step] @ code.T) / 2).astype(np.int32)
            rows = np.arange(start, start + len(apart))
            apart[np.arange(len(apart)), rows] = CODE + 1
            count = n - 1 if complete else min(nearest, n - 1)
            near = np.argpartition(apart, max(count - 1, 0), axis=1)[:, :count] if n > 1 else np.zeros((n, 0), int)
            for i, row in zip(rows.tolist(), near.tolist(), strict=True):
                for j in row:
                    distance = int(apart[i - start, j])
                    if complete or distance < NEAR:
                        pair = (min(i, j), max(i, j))
                        best[pair] = min(best.get(pair, CODE), distance)
    yield from sorted(best, key=lambda p: (best[p], p))


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(bits), axis=1).astype(np.float32) * 2 - 1
