"""Reconstructs an undirected tree, with missing inner nodes, from distances that add up along it.

Fine-tuning adds increments that are nearly orthogonal to one another, so that squared distances of weights nearly add
up along the true tree. On such distances every statement about the tree is one about right angles: `j` is adjacent to
`i` if and only if `w_j - w_i` is orthogonal to `w_k - w_i` for all others, and `i` and `j` are siblings if and only if
`w_i - w_j` is orthogonal to all `w_k - w_l`. How far increments of independent training runs are from a right angle is
measured on the family itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from stemma.ancestry.trees.recursive_grouping import find_parent, find_siblings, group_by_cosine, group_tolerance
from stemma.errors import MisuseError
from stemma.types import Spec

Pair = tuple[int, int]

Ancestry = Callable[[int, int], "float | None"]
"""Log-odds that the first of two models is an ancestor of the second; None where only distances are known."""

UNLIKELY, LIKELY = -3.0, -1.5
"""Log-odds of ancestry below which and above which the tolerance changes."""

Angles = Callable[[int, Sequence[int]], "np.ndarray | None"]
"""Cosines at a model between others, `[m, m]`, where more than distances is known."""


@dataclass(frozen=True)
class AdditiveTree:
    """A tree over observed nodes and the missing ones that distances call for.

    Attributes:
        observed: Nodes `0 … observed - 1` are those of the distance matrix; larger numbers are missing nodes.
        edges: Length of every edge, by its ends, the smaller number first.
        noise: Root mean square cosine between independent increments, as used for decisions.
    """

    observed: int
    edges: Mapping[Pair, float]
    noise: float

    @property
    def missing(self) -> tuple[int, ...]:
        """The missing nodes."""
        return tuple(sorted({v for e in self.edges for v in e if v >= self.observed}))

    def neighbours(self) -> dict[int, list[int]]:
        """Adjacent nodes of every node that has any, ascending."""
        out: dict[int, list[int]] = {}
        for i, j in sorted(self.edges):
            out.setdefault(i, []).append(j)
            out.setdefault(j, []).append(i)
        return out


@dataclass(frozen=True)
class RecursiveGrouping:
    """Chow and Liu's tree first, then missing nodes where no observed node can be the parent of its neighbours.

    A minimum spanning tree is refined around each of its inner nodes: neighbours in independent directions stay; those
    that share a part of their path are grouped recursively, under one of them if it can be their parent, under a
    missing node if none can.
    Cost: one spanning tree; then for each neighbourhood of m nodes O(m²), and O(m⁴) for those m that share a path. Only
    a node's neighbourhood is used, so that a new model affects its family only.

    Attributes:
        deviations: Mean cosines up to this many times the noise count as right angles (of few pairs, up to twice as
            much: see `group_tolerance`).
        least: Cosines below this always count as right angles: training runs on similar data share a part of their path
            without a common ancestor there. Both were chosen on the selection families of benchmarks/forest.py.
        prior: Noise where a family is too small to estimate it.
        unlikely: Factor on the tolerance where neighbours do not look like ancestor and descendant.
        likely: Factor where they do.

    Source: Choi, Tan, Anandkumar and Willsky, JMLR 12 (2011), sections 4 and 5 (RG, CLGrouping). Departures:
        information distances are squared weight distances; equality of differences of distances is tested as a right
        angle, on the scale of the family's own noise, instead of by a fixed threshold.
    """

    deviations: float = 2.5
    least: float = 0.2
    prior: float = 0.07
    unlikely: float = 0.7
    likely: float = 1.6

    name = "recursive-grouping"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(
        self, distances: np.ndarray, ancestry: Ancestry = lambda a, b: None, angles: Angles = lambda a, others: None,
        skeleton: Sequence[Pair] | None = None,
    ) -> AdditiveTree:  # fmt: skip
        """Reconstruct the tree.

        Args:
            distances: Squared distances, finite and not negative, symmetric, `[n, n]`.
            ancestry: Of two models. Neighbours of which one is probably the other's ancestor need `likely` times the
                tolerance to be given a missing parent; where it is improbable, `unlikely` times.
            angles: At a model between its neighbours; computed from the distances where it gives none.
            skeleton: Edges of the tree, or trees, that are refined; a minimum spanning tree unless given.

        Returns:
            A tree that spans all n nodes, or as many trees as the skeleton has.

        Raises:
            MisuseError: If `distances` is no distance matrix.
        """
        d = _checked(distances)
        spanning = spanning_tree(d)
        noise = self.noise(d, spanning)
        tolerance_factors, tolerance = (self.unlikely, self.likely), max(self.least, self.deviations * noise)
        work = _Tree(d, spanning if skeleton is None else skeleton, tolerance, ancestry, angles, tolerance_factors)
        for node in range(len(d)):
            if len(work.adjacency[node]) > 1:
                work.refine(node)
        work.merge_close_missing_nodes()
        return AdditiveTree(len(d), work.lengths(), noise)

    def noise(self, distances: np.ndarray, skeleton: Sequence[Pair]) -> float:
        """Root mean square cosine between increments without a common node; the prior counts as ten pairs."""
        e = np.array(skeleton, int).reshape(-1, 2)
        e = e[np.unique(np.linspace(0, len(e) - 1, 64).astype(int))] if len(e) > 64 else e
        i, j, k, l = *(e[:, a][:, None] for a in (0, 1)), *(e[:, a][None] for a in (0, 1))  # noqa: E741
        disjoint = np.triu((i != k) & (i != l) & (j != k) & (j != l))
        inner = (distances[i, l] + distances[j, k] - distances[i, k] - distances[j, l]) / 2
        size = np.sqrt(distances[i, j] * distances[k, l])
        cosines = (inner / np.where(size > 0, size, 1))[disjoint & (size > 0)]
        return float(np.sqrt((np.sum(cosines**2) + 10 * self.prior**2) / (len(cosines) + 10)))


def spanning_tree(distances: np.ndarray) -> list[Pair]:
    """Edges of a minimum spanning tree (Prim's, O(n²)), the smaller number first; ties go to the smaller number."""
    n = len(distances)
    if n < 2:
        return []
    near, nearest = distances[0].astype(np.float64).copy(), np.zeros(n, int)
    near[0] = np.inf
    out = []
    for _ in range(n - 1):
        new = int(np.argmin(near))
        out.append((min(new, int(nearest[new])), max(new, int(nearest[new]))))
        closer = (distances[new] < near) & np.isfinite(near)
        nearest[closer], near[closer] = new, distances[new][closer]
        near[new] = np.inf
    return out


def _checked(distances: np.ndarray) -> np.ndarray:
    d = np.asarray(distances, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise MisuseError(f"distances must be a square matrix with one row per model, but have shape {d.shape}")
    if not np.isfinite(d).all() or (d < 0).any() or not np.allclose(d, d.T, rtol=1e-6, atol=0):
        raise MisuseError("distances must be finite, non-negative and symmetric: are any weights NaN?")
    return d


@dataclass
class _Tree:
    """A tree that is being refined; missing nodes have numbers after the observed ones."""

    d: np.ndarray
    skeleton: Iterable[Pair]
    tolerance: float
    ancestry: Ancestry
    angles: Angles
    tolerance_factors: tuple[float, float]
    adjacency: dict[int, dict[int, None]] = field(default_factory=dict)
    derived: dict[Pair, float] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.count = len(self.d)
        self.adjacency = {v: {} for v in range(self.count)}
        for i, j in self.skeleton:
            self.add_edge(i, j)

    def add_edge(self, i: int, j: int) -> None:
        self.adjacency[i][j] = self.adjacency[j][i] = None

    def remove_edge(self, i: int, j: int) -> None:
        self.adjacency[i].pop(j, None)
        self.adjacency[j].pop(i, None)

    def lengths(self) -> dict[Pair, float]:
        return {
            (i, j): max(self.distance(i, j), 0.0) for i in self.adjacency for j in sorted(self.adjacency[i]) if i < j
        }

    def distance(self, i: int, j: int) -> float:
        """Observed, or computed when the missing node was added, or the sum along the tree."""
        if i == j:
            return 0.0
        if max(i, j) < len(self.d):
            return float(self.d[i, j])
        key = (min(i, j), max(i, j))
        if key not in self.derived:
            self.derived[key] = self.extrapolated(*key)
        return self.derived[key]

    def extrapolated(self, j: int, missing: int) -> float:
        """Distance of a missing node, from those of its neighbours that are not on the path."""
        after = self.next_towards(missing, j)
        others = [v for v in self.adjacency[missing] if v != after][:8] or [after]
        return float(np.mean([self.distance(v, j) - self.distance(v, missing) for v in others]))

    def next_towards(self, start: int, goal: int) -> int:
        """The neighbour of a node on the path to another one."""
        for neighbour in self.adjacency[start]:
            seen, pending = {start, neighbour}, [neighbour]
            while pending:
                node = pending.pop()
                if node == goal:
                    return neighbour
                new = [adjacent for adjacent in self.adjacency[node] if adjacent not in seen]
                seen.update(new)
                pending += new
        raise MisuseError(f"nodes {start} and {goal} are not connected")

    def refine(self, centre: int) -> None:
        """Group the neighbours of a node that share a part of their path."""
        neighbours = list(self.adjacency[centre])
        x = np.array([[self.distance(i, j) for j in neighbours] for i in neighbours])
        lengths = np.array([self.distance(centre, i) for i in neighbours])
        size = np.sqrt(np.outer(lengths, lengths))
        inner = (lengths[:, None] + lengths - x) / 2
        tolerance_factor = np.array([self.tolerance_factor(centre, i) for i in neighbours])
        cosines = np.divide(inner, size, out=np.zeros_like(inner), where=size > 0)
        if centre < len(self.d):
            observed = [k for k, v in enumerate(neighbours) if v < len(self.d)]
            known_cosines = self.angles(centre, [neighbours[k] for k in observed]) if len(observed) > 1 else None
            if known_cosines is not None:
                cosines[np.ix_(observed, observed)] = known_cosines
        for group in group_by_cosine(cosines, self.tolerance, tolerance_factor):
            between = lengths[:, None] + lengths - 2 * cosines * size
            self.group_recursively([centre, *(neighbours[g] for g in group)], between[np.ix_(group, group)])

    def tolerance_factor(self, parent: int, child: int) -> float:
        """Factor on the tolerance within which one node may be the parent of another."""
        odds = self.ancestry(parent, child) if max(parent, child) < len(self.d) else None
        if odds is None or UNLIKELY <= odds <= LIKELY:
            return 1.0
        return self.tolerance_factors[odds > LIKELY]

    def group_recursively(self, nodes: list[int], between: np.ndarray) -> None:
        """Group nodes whose first is adjacent to all others, given squared distances between the others."""
        centre, *others = nodes
        full = {(min(centre, v), max(centre, v)): self.distance(centre, v) for v in others}
        full |= {(min(v, w), max(v, w)): max(0.0, float(between[i, j])) for i, v in enumerate(others)
                 for j, w in enumerate(others) if i < j}  # fmt: skip
        for v in others:
            self.remove_edge(centre, v)
        active = list(nodes)
        while len(active) > 2:
            x = np.array([[full.get((min(i, j), max(i, j)), 0.0) for j in active] for i in active])
            siblings = find_siblings(x, self.tolerance)
            tolerance_factors = np.array(
                [[self.tolerance_factor(i, j) if i != j else 1.0 for j in active] for i in active]
            )
            above = find_parent(
                x,
                siblings,
                group_tolerance(self.tolerance, len(siblings) - (len(siblings) == len(x))),
                tolerance_factors,
            )
            members = [active[f] for f in siblings]
            node = self.add_missing_node(members, active, x, siblings, full) if above is None else active[above]
            for m in members:
                if m != node:
                    self.add_edge(m, node)
            active = [v for v in active if v not in members or v == node]
            active += [node] if node not in active else []
        if len(active) == 2:
            self.add_edge(*active)

    def merge_close_missing_nodes(self) -> None:
        """Merge adjacent missing nodes whose distance is too short to tell them apart."""
        for h in sorted(v for v in self.adjacency if v >= len(self.d)):
            for g in sorted(v for v in self.adjacency.get(h, ()) if v >= len(self.d)):
                length = max(self.distance(g, h), 0.0)
                sides = [float(np.median([self.distance(v, x) for v in self.adjacency[x] if v not in (g, h)]))
                         for x in (g, h)]  # fmt: skip
                if length <= self.tolerance * np.sqrt((length + sides[0]) * (length + sides[1])):
                    far = {v: self.distance(v, h) for v in self.adjacency[g] if v != h}
                    self.remove_edge(g, h)
                    for v, length in far.items():
                        self.remove_edge(v, g)
                        self.add_edge(v, h)
                        self.derived[min(v, h), max(v, h)] = max(length, 0.0)
                    del self.adjacency[g]

    def add_missing_node(
        self, members: list[int], active: list[int], x: np.ndarray, siblings: list[int], full: dict[Pair, float]
    ) -> int:
        """Add a missing node above a family, with its distances, and return its number."""
        node, self.count = self.count, self.count + 1
        self.adjacency[node] = {}
        up = []
        for a in siblings:
            others = [(b, k) for b in siblings for k in range(len(active)) if b != a and k not in (a, b)]
            up.append(max(0.0, float(np.mean([(x[a, b] + x[a, k] - x[b, k]) / 2 for b, k in others]))))
        for a, m, length in zip(siblings, members, up, strict=True):
            full[m, node] = self.derived[m, node] = min(length, float(x[a].max()))
        for k, v in enumerate(active):
            if k not in siblings:
                far = float(np.mean([x[a, k] - length for a, length in zip(siblings, up, strict=True)]))
                full[v, node] = self.derived[v, node] = max(0.0, far)
        return node
