"""Groups models into families with few pairwise tests, chosen by weight sketches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stemma.errors import MisuseError

CODE_BITS = 1024
"""Bits of each of a sketch's two codes; unrelated models differ in about half of them."""

CHANCE_DISTANCE = 440
"""Hamming distance, of 1024, from which two sketches are no nearer than chance: half, less 4.5 standard deviations."""

ALL_PAIRS = 48
"""Up to this many models every pair is tested that is not in one family yet."""

MAX_FAILED_TESTS = 3
"""Failed tests after which two families are taken to be independent."""


def find_families(
    sketches: np.ndarray, related: Callable[[int, int], bool], nearest: int = 8, all_pairs: int = ALL_PAIRS,
    known_groups: Sequence[Sequence[int]] = (), new: Sequence[int] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Connected components of `related`, most of whose pairs are never tested.

    Pairs are tested from the nearest sketches outwards, and only where they are not in one family already. Of more
    than `all_pairs` models only pairs are tested that are among the `nearest` by either code and nearer than chance.
    Cost: about one test per model; Hamming distances of all pairs, n² / 10⁷ seconds.

    Args:
        sketches: Bits of the weight sketches, `uint8 [n, 256]`.
        related: Tests two models.
        nearest: Neighbours of each model that are tested, by each code.
        all_pairs: Up to this many models, all pairs are tested.
        known_groups: Groups of models that are known to be of one family.
        new: If given, only pairs with one of these models are tested: the others were before. Then of each, and of
            those that have it among their nearest, no pair is left out that a test of all would look at.

    Returns:
        Positions of the members of each family, ascending, the family of the first model first.

    Raises:
        MisuseError: If the sketches have another shape.
    """
    if sketches.dtype != np.uint8 or sketches.ndim != 2 or sketches.shape[1] * 8 != 2 * CODE_BITS:
        raise MisuseError(
            f"sketches must be uint8 [n, {CODE_BITS // 4}], but are {sketches.dtype} {list(sketches.shape)}"
        )
    n = len(sketches)
    family_of = list(range(n))
    members = {i: [i] for i in range(n)}
    failed_tests: dict[tuple[int, int], int] = {}
    for group in known_groups:
        for i in group[1:]:
            _merge_families(family_of, members, family_of[group[0]], family_of[i])
    complete = n <= all_pairs
    pairs = _candidate_pairs(sketches, nearest, complete) if new is None else _pairs_with(sketches, new, complete)
    for i, j in pairs:
        a, b = sorted((family_of[i], family_of[j]))
        if a == b or (n > all_pairs and failed_tests.get((a, b), 0) >= MAX_FAILED_TESTS):
            continue
        if not related(i, j):
            failed_tests[a, b] = failed_tests.get((a, b), 0) + 1
            continue
        _merge_families(family_of, members, a, b)
    return sorted((sorted(m) for m in members.values()), key=lambda m: m[0])


def _merge_families(family_of: list[int], members: dict[int, list[int]], a: int, b: int) -> None:
    if a == b:
        return
    if len(members[a]) < len(members[b]):
        a, b = b, a
    for k in members.pop(b):
        family_of[k] = a
        members[a].append(k)


def _candidate_pairs(sketches: np.ndarray, nearest: int, complete: bool) -> Iterator[tuple[int, int]]:
    """Pairs to test, by the nearer of the two codes."""
    n = len(sketches)
    distances: dict[tuple[int, int], int] = {}
    codes = [_signs(sketches[:, half]) for half in (slice(0, CODE_BITS // 8), slice(CODE_BITS // 8, None))]
    step = max(1, (1 << 22) // max(n, 1))
    for code in codes:
        for start in range(0, n, step):
            hamming = ((CODE_BITS - code[start : start + step] @ code.T) / 2).astype(np.int32)
            rows = np.arange(start, start + len(hamming))
            hamming[np.arange(len(hamming)), rows] = CODE_BITS + 1
            count = n - 1 if complete else min(nearest, n - 1)
            neighbours = (
                np.argpartition(hamming, max(count - 1, 0), axis=1)[:, :count] if n > 1 else np.zeros((n, 0), int)
            )
            for i, row in zip(rows.tolist(), neighbours.tolist(), strict=True):
                for j in row:
                    distance = int(hamming[i - start, j])
                    if complete or distance < CHANCE_DISTANCE:
                        pair = (min(i, j), max(i, j))
                        distances[pair] = min(distances.get(pair, CODE_BITS), distance)
    yield from sorted(distances, key=lambda p: (distances[p], p))


def _pairs_with(sketches: np.ndarray, new: Sequence[int], complete: bool) -> Iterator[tuple[int, int]]:
    """Pairs with one of the new models that are nearer than chance by one of the codes, nearest first."""
    words = np.ascontiguousarray(sketches).view(np.uint64).reshape(len(sketches), 2, -1)
    found: dict[tuple[int, int], int] = {}
    for i in new:
        ones = np.unpackbits((words ^ words[i]).view(np.uint8).reshape(len(words), 2, -1), axis=2)
        nearer = ones.sum(axis=2, dtype=np.int64).min(axis=1)
        nearer[i] = CODE_BITS + 1
        for j in np.flatnonzero(nearer <= CODE_BITS if complete else nearer < CHANCE_DISTANCE).tolist():
            found[min(i, j), max(i, j)] = int(nearer[j])
    yield from sorted(found, key=lambda p: (found[p], p))


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(bits), axis=1).astype(np.float32) * 2 - 1
