"""Groups nodes of a tree into siblings, or parent and children, by right angles (recursive grouping)."""

import numpy as np


def group_by_cosine(cosines: np.ndarray, tolerance: float, factors: np.ndarray) -> list[list[int]]:
    """Groups of positions whose mean cosine exceeds the tolerance times their factors (average linkage)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(cosines) < 2:
        return []
    dissimilarity = 1 - np.clip(cosines, -1, 1)
    cut = 1 - tolerance * float(factors.min())
    label = fcluster(linkage(dissimilarity[np.triu_indices(len(dissimilarity), 1)], "average"), cut, "distance")
    groups = [np.flatnonzero(label == c) for c in np.unique(label)]
    return [
        g.tolist() for g in groups
        if len(g) > 1 and _mean(cosines[np.ix_(g, g)]) > group_tolerance(tolerance * float(factors[g].mean()), len(g))
    ]  # fmt: skip


def _mean(cosines: np.ndarray) -> float:
    return float(cosines[np.triu_indices(len(cosines), 1)].mean())


def group_tolerance(tolerance: float, children: int) -> float:
    """Tolerance of the mean cosine of so many children; higher for few of them.

    Two training runs on similar data may move in the same direction by chance; several rarely all do.

    Returns:
        The tolerance.
    """
    pairs = max(1, children * (children - 1) // 2)
    return min(tolerance * (1 + 1 / pairs), 0.9)


def difference_cosines(x: np.ndarray, a: int, b: int) -> np.ndarray:
    """Cosine of `w_a - w_b` with the difference of every two other nodes, `[m, m]`; 0 where undefined."""
    halves = (x[b] - x[a]) / 2
    size = np.sqrt(x[a, b] * x)
    out = np.divide(halves[:, None] - halves, size, out=np.zeros_like(x), where=size > 0)
    out[[a, b]] = out[:, [a, b]] = 0
    return out


def find_siblings(x: np.ndarray, tolerance: float) -> list[int]:
    """Positions of the nodes that are most likely siblings, or parent and children; at least two."""
    m = len(x)
    if m == 3:
        return [0, 1, 2]
    largest_cosine = np.full((m, m), np.inf)
    for a in range(m):
        for b in range(a + 1, m):
            largest_cosine[a, b] = largest_cosine[b, a] = np.abs(difference_cosines(x, a, b)).max()
    a, b = divmod(
        int(np.argmin(np.where(np.isfinite(largest_cosine), largest_cosine + 1e-9 * x / max(x.max(), 1e-300), np.inf))),
        m,
    )
    siblings = [a, b]
    for c in np.argsort(largest_cosine[a] + largest_cosine[b], kind="stable").tolist():
        if c not in siblings and all(largest_cosine[c, f] <= tolerance for f in siblings):
            siblings.append(c)
    return sorted(siblings)


def find_parent(x: np.ndarray, siblings: list[int], tolerance: float, factors: np.ndarray) -> int | None:
    """The member of a family at which all others meet at right angles, None if there is none."""
    best, smallest = None, tolerance
    for a in siblings:
        inner = (x[a][:, None] + x[a] - x) / 2
        size = np.sqrt(np.outer(x[a], x[a]))
        cosine = np.abs(np.divide(inner, size, out=np.zeros_like(inner), where=size > 0))
        rows = [f for f in siblings if f != a]
        cosine[rows, rows] = 0
        largest = float((cosine[rows] / factors[a][rows][:, None]).max())
        if largest <= smallest:
            best, smallest = a, largest
    return best
