"""Which of some nodes are siblings, or parent and children: the right angles of recursive grouping."""

import numpy as np


def together(cosines: np.ndarray, tolerance: float, bars: np.ndarray) -> list[list[int]]:
    """Groups whose mean cosine, over all pairs, lies above the tolerance (average linkage).

    Args:
        cosines: Between the ways to some nodes, `[m, m]`.
        tolerance: Of a cosine.
        bars: What the tolerance is multiplied by for each node, `[m]`.

    Returns:
        Positions of the members of each group.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(cosines) < 2:
        return []
    apart = 1 - np.clip(cosines, -1, 1)
    cut = 1 - tolerance * float(bars.min())
    label = fcluster(linkage(apart[np.triu_indices(len(apart), 1)], "average"), cut, "distance")
    groups = [np.flatnonzero(label == c) for c in np.unique(label)]
    return [
        g.tolist() for g in groups
        if len(g) > 1 and _mean(cosines[np.ix_(g, g)]) > strict(tolerance * float(bars[g].mean()), len(g))
    ]  # fmt: skip


def _mean(cosines: np.ndarray) -> float:
    """Over all pairs."""
    return float(cosines[np.triu_indices(len(cosines), 1)].mean())


def strict(tolerance: float, children: int) -> float:
    """What two children need to be given a missing ancestor is more than what many need.

    Two trainings on like data may go the same way by chance; that all of several do is another matter.

    Returns:
        The tolerance for the mean of all pairs of so many children.
    """
    pairs = max(1, children * (children - 1) // 2)
    return min(tolerance * (1 + 1 / pairs), 0.9)


def cosines(x: np.ndarray, a: int, b: int) -> np.ndarray:
    """Cosine of `w_a - w_b` with the difference of every two other nodes.

    Returns:
        `[m, m]`, zero where a or b take part or a difference is null.
    """
    r = (x[b] - x[a]) / 2
    size = np.sqrt(x[a, b] * x)
    out = np.divide(r[:, None] - r, size, out=np.zeros_like(x), where=size > 0)
    out[[a, b]] = out[:, [a, b]] = 0
    return out


def family(x: np.ndarray, tolerance: float) -> list[int]:
    """The nodes that look most like siblings, or parent and children.

    Every two of them are at right angles to all differences of the others; at least the best pair is a family.

    Returns:
        Positions, ascending.
    """
    m = len(x)
    if m == 3:
        return [0, 1, 2]
    bent = np.full((m, m), np.inf)
    for a in range(m):
        for b in range(a + 1, m):
            bent[a, b] = bent[b, a] = np.abs(cosines(x, a, b)).max()
    a, b = divmod(int(np.argmin(np.where(np.isfinite(bent), bent + 1e-9 * x / max(x.max(), 1e-300), np.inf))), m)
    family = [a, b]
    for c in np.argsort(bent[a] + bent[b], kind="stable").tolist():
        if c not in family and all(bent[c, f] <= tolerance for f in family):
            family.append(c)
    return sorted(family)


def parent(x: np.ndarray, family: list[int], tolerance: float, bars: np.ndarray) -> int | None:
    """The member of a family on which all others hang at right angles, if there is one.

    Returns:
        Its position, None where no member can be the parent.
    """
    best, least = None, tolerance
    for a in family:
        inner = (x[a][:, None] + x[a] - x) / 2
        size = np.sqrt(np.outer(x[a], x[a]))
        cosine = np.abs(np.divide(inner, size, out=np.zeros_like(inner), where=size > 0))
        rows = [f for f in family if f != a]
        cosine[rows, rows] = 0
        worst = float((cosine[rows] / bars[a][rows][:, None]).max())
        if worst <= least:
            best, least = a, worst
    return best
