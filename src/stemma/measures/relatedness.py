"""Task relatedness from a distance matrix: agreement with measured transfer, and a similarity tree."""

from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError

SMALLEST = 1e-12
"""Similarities are raised to this before their logarithm: a distance may be 1 or more."""


def transfer_agreement(distance: np.ndarray, affinity: np.ndarray, *, diagonal: bool = True) -> np.ndarray:
    """Per target task, whether near sources are the ones that transfer well.

    For target j: minus the Spearman correlation of `distance[:, j]` and `affinity[:, j]` over the sources. 1 is the
    perfect order; an uninformative measure has 0 on average without the diagonal, and more with it, because every task
    is nearest to itself.

    Args:
        distance: `[n, n]`, source by target.
        affinity: `[n, n]`, larger where the source helps the target more; only the order within a column matters.
        diagonal: Whether a task counts as a source of itself, as in the publication.

    Returns:
        `[n]`, one value per target.

    Raises:
        MisuseError: If the matrices differ in shape, or a column is constant.

    Source: Song et al., ICCV 2023 (official code, task-relatedness testbed); affinities by Zamir et al., CVPR 2018.
    """
    from scipy.stats import rankdata

    distance, affinity = np.asarray(distance, float), np.asarray(affinity, float)
    n = len(distance)
    if distance.shape != (n, n) or affinity.shape != (n, n) or n < 4:
        raise MisuseError(
            f"distances {list(distance.shape)} and affinities {list(affinity.shape)} must be two square matrices over "
            "the same four or more tasks, with one row per source and one column per target"
        )
    if not (np.isfinite(distance).all() and np.isfinite(affinity).all()):
        raise MisuseError("distances or affinities contain NaN or infinite values. Remove these tasks")
    kept = np.ones((n, n), bool) if diagonal else ~np.eye(n, dtype=bool)
    out = np.empty(n)
    for j in range(n):
        x, y = (rankdata(m[kept[:, j], j]) for m in (distance, affinity))
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            raise MisuseError(f"column {j} has only one value, so it does not rank the sources")
        out[j] = -np.corrcoef(x, y)[0, 1]
    return out


@dataclass(frozen=True, eq=False)
class SimilarityTree:
    """A hierarchy of models.

    Attributes:
        linkage: `[n - 1, 4]`, in scipy's format: the two clusters joined, the height, the number of models.
        order: Models in the order of the tree's leaves, similar ones next to each other.
    """

    linkage: np.ndarray
    order: np.ndarray

    def clusters(self, count: int) -> np.ndarray:
        """Cluster number of each model `[n]` when the tree is cut into `count` clusters."""
        from scipy.cluster.hierarchy import fcluster

        found = fcluster(self.linkage, count, "maxclust")
        names = {c: i for i, c in enumerate(dict.fromkeys(found[self.order].tolist()))}
        return np.array([names[c] for c in found.tolist()])


def similarity_tree(distance: np.ndarray) -> SimilarityTree:
    """Ward's tree of the rows of log(1 - distance), with optimal leaf order.

    Two models are similar if their distances to all models are similar; the logarithm spreads distances near 1.

    Args:
        distance: `[n, n]`, symmetric; values of 1 and more count as no similarity.

    Returns:
        The tree.

    Raises:
        MisuseError: If it is not a finite symmetric matrix.

    Source: Song et al., ICCV 2023 (official code, similarity tree).
    """
    from scipy.cluster.hierarchy import linkage

    d = np.asarray(distance, float)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) < 2 or not np.allclose(d, d.T, atol=1e-5):
        raise MisuseError(
            f"a similarity tree needs a finite symmetric distance matrix, not one of shape {list(d.shape)}"
        )
    return _tree(linkage(np.log(np.maximum(1 - d, SMALLEST)), "ward", optimal_ordering=True))


def _tree(joined: np.ndarray) -> SimilarityTree:
    from scipy.cluster.hierarchy import leaves_list

    return SimilarityTree(joined, leaves_list(joined))
