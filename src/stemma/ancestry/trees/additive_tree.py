"""An undirected tree from distances that add up along it, with the inner nodes that are missing.

Fine-tuning adds increments that are nearly orthogonal to one another, so squared distances of weights nearly add up
along the true tree. On such distances every statement about the tree is one about right angles: `j` hangs on `i` if
and only if `w_j - w_i` is orthogonal to `w_k - w_i` for all others, and `i` and `j` are siblings if and only if
`w_i - w_j` is orthogonal to all `w_k - w_l`. How far from a right angle the increments of independent trainings lie is
measured on the family itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from stemma.ancestry.trees.recursive_grouping import family, parent, strict, together
from stemma.errors import MisuseError
from stemma.types import Spec

Pair = tuple[int, int]

Ancestry = Callable[[int, int], "float | None"]
"""Log-odds, by something else than distances, that the first of two models is an ancestor of the second; None where
nothing else is known."""

UNLIKELY, LIKELY = -3.0, -1.5
"""Log-odds of ancestry below which and above which the tolerance changes."""

Angles = Callable[[int, Sequence[int]], "np.ndarray | None"]
"""Cosines at a model between others, `[m, m]`, where more is known of them than distances tell."""


@dataclass(frozen=True)
class AdditiveTree:
    """A tree over observed nodes and the missing ones that distances call for.

    Attributes:
        observed: Nodes `0 … observed - 1` are those of the distance matrix; larger numbers are missing nodes.
        edges: Length of every edge, by its ends, the smaller number first.
        noise: Root mean square cosine between independent increments that decisions were made with.
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

    A minimum spanning tree is refined within the closed neighbourhood of each of its inner nodes: neighbours that lie
    in directions of their own stay; those that share a part of their way are grouped recursively, under one of them
    if it can be their parent, under a missing node if none can.
    Cost: one spanning tree; then for each neighbourhood of m nodes O(m²), and O(m⁴) for those m that share a way.
    Only a node's neighbourhood is looked at, so a new model touches its family only.

    Attributes:
        deviations: Mean cosines up to this many times the noise count as right angles (of few pairs, up to twice as
            much: see `strict`).
        least: But cosines below this always do: trainings on like data have a part of their way in common without
            any ancestor there. Both were chosen on the selection families of benchmarks/forest.py.
        prior: Noise where a family is too small to show its own.
        unlikely: What the tolerance is multiplied by where neighbours do not look like ancestor and descendant.
        likely: And where they do.

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
            ancestry: Of two models. Neighbours of which one is likely the other's ancestor need `likely` times the
                tolerance to be given a missing parent; where it is unlikely, `unlikely` times.
            angles: At a model between its neighbours; those of the distances where it gives none.
            skeleton: Edges of the tree, or trees, that are refined; a minimum spanning tree unless given.

        Returns:
            A tree that spans all n nodes, or as many trees as the skeleton has.

        Raises:
            MisuseError: If that is no distance matrix.
        """
        d = _checked(distances)
        spanning = spanning_tree(d)
        noise = self.noise(d, spanning)
        bars, tolerance = (self.unlikely, self.likely), max(self.least, self.deviations * noise)
        work = _Tree(d, spanning if skeleton is None else skeleton, tolerance, ancestry, angles, bars)
        for node in range(len(d)):
            if len(work.around[node]) > 1:
                work.refine(node)
        work.contract()
        return AdditiveTree(len(d), work.lengths(), noise)

    def noise(self, distances: np.ndarray, skeleton: Sequence[Pair]) -> float:
        """Root mean square cosine between increments that have no node in common.

        Args:
            distances: Squared distances `[n, n]`.
            skeleton: Edges of a spanning tree.

        Returns:
            The noise of a right angle; the prior counts as ten such pairs of increments.
        """
        e = np.array(skeleton, int).reshape(-1, 2)
        e = e[np.unique(np.linspace(0, len(e) - 1, 64).astype(int))] if len(e) > 64 else e
        i, j, k, l = *(e[:, a][:, None] for a in (0, 1)), *(e[:, a][None] for a in (0, 1))  # noqa: E741
        apart = np.triu((i != k) & (i != l) & (j != k) & (j != l))
        inner = (distances[i, l] + distances[j, k] - distances[i, k] - distances[j, l]) / 2
        size = np.sqrt(distances[i, j] * distances[k, l])
        found = (inner / np.where(size > 0, size, 1))[apart & (size > 0)]
        return float(np.sqrt((np.sum(found**2) + 10 * self.prior**2) / (len(found) + 10)))


def spanning_tree(distances: np.ndarray) -> list[Pair]:
    """A minimum spanning tree (Prim's); of equal distances the one to the smaller number is taken.

    Cost: O(n²).

    Args:
        distances: Symmetric, `[n, n]`.

    Returns:
        n - 1 edges, the smaller number first.
    """
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
        raise MisuseError(f"distances are a square matrix, one row per model; this one has the shape {d.shape}")
    if not np.isfinite(d).all() or (d < 0).any() or not np.allclose(d, d.T, rtol=1e-6, atol=0):
        raise MisuseError("distances are finite, not negative and symmetric; these are not: were weights NaN?")
    return d


@dataclass
class _Tree:
    """A tree that is being refined; missing nodes get numbers after the observed ones."""

    d: np.ndarray
    skeleton: Iterable[Pair]
    tolerance: float
    ancestry: Ancestry
    angles: Angles
    bars: tuple[float, float]
    around: dict[int, dict[int, None]] = field(default_factory=dict)
    known: dict[Pair, float] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.count = len(self.d)
        self.around = {v: {} for v in range(self.count)}
        for i, j in self.skeleton:
            self.join(i, j)

    def join(self, i: int, j: int) -> None:
        self.around[i][j] = self.around[j][i] = None

    def part(self, i: int, j: int) -> None:
        self.around[i].pop(j, None)
        self.around[j].pop(i, None)

    def lengths(self) -> dict[Pair, float]:
        return {(i, j): max(self.distance(i, j), 0.0) for i in self.around for j in sorted(self.around[i]) if i < j}

    def distance(self, i: int, j: int) -> float:
        """Observed, or what was worked out when the missing node was put in, or what adds up along the tree."""
        if i == j:
            return 0.0
        if max(i, j) < len(self.d):
            return float(self.d[i, j])
        key = (min(i, j), max(i, j))
        if key not in self.known:
            self.known[key] = self.across(*key)
        return self.known[key]

    def across(self, j: int, missing: int) -> float:
        """Distance of a missing node, over those of its neighbours that do not lie on the way."""
        after = self.toward(missing, j)
        apart = [v for v in self.around[missing] if v != after][:8] or [after]
        return float(np.mean([self.distance(v, j) - self.distance(v, missing) for v in apart]))

    def toward(self, start: int, goal: int) -> int:
        """The neighbour of a node that leads to another one."""
        for first in self.around[start]:
            seen, todo = {start, first}, [first]
            while todo:
                v = todo.pop()
                if v == goal:
                    return first
                new = [w for w in self.around[v] if w not in seen]
                seen.update(new)
                todo += new
        raise MisuseError(f"nodes {start} and {goal} are not in one tree")

    def refine(self, centre: int) -> None:
        """Look whether the neighbours of a node hang on it, or share a part of their way."""
        near = list(self.around[centre])
        x = np.array([[self.distance(i, j) for j in near] for i in near])
        own = np.array([self.distance(centre, i) for i in near])
        size = np.sqrt(np.outer(own, own))
        inner = (own[:, None] + own - x) / 2
        bar = np.array([self.bar(centre, i) for i in near])
        cosines = np.divide(inner, size, out=np.zeros_like(inner), where=size > 0)
        if centre < len(self.d):
            seen = [k for k, v in enumerate(near) if v < len(self.d)]
            told = self.angles(centre, [near[k] for k in seen]) if len(seen) > 1 else None
            if told is not None:
                cosines[np.ix_(seen, seen)] = told
        for group in together(cosines, self.tolerance, bar):
            bent = own[:, None] + own - 2 * cosines * size
            self.grouped([centre, *(near[g] for g in group)], bent[np.ix_(group, group)])

    def bar(self, parent: int, child: int) -> float:
        """What the tolerance within which one node may be the parent of another is multiplied by."""
        odds = self.ancestry(parent, child) if max(parent, child) < len(self.d) else None
        if odds is None or UNLIKELY <= odds <= LIKELY:
            return 1.0
        return self.bars[odds > LIKELY]

    def grouped(self, nodes: list[int], between: np.ndarray) -> None:
        """Recursive grouping of nodes of which the first was joined to all others.

        Args:
            nodes: The centre and the others.
            between: Squared distances between the others, as the angles at the centre make them.
        """
        centre, *others = nodes
        full = {(min(centre, v), max(centre, v)): self.distance(centre, v) for v in others}
        full |= {(min(v, w), max(v, w)): max(0.0, float(between[i, j])) for i, v in enumerate(others)
                 for j, w in enumerate(others) if i < j}  # fmt: skip
        for v in others:
            self.part(centre, v)
        active = list(nodes)
        while len(active) > 2:
            x = np.array([[full.get((min(i, j), max(i, j)), 0.0) for j in active] for i in active])
            siblings = family(x, self.tolerance)
            bars = np.array([[self.bar(i, j) if i != j else 1.0 for j in active] for i in active])
            above = parent(x, siblings, strict(self.tolerance, len(siblings) - (len(siblings) == len(x))), bars)
            members = [active[f] for f in siblings]
            node = self.hidden(members, active, x, siblings, full) if above is None else active[above]
            for m in members:
                if m != node:
                    self.join(m, node)
            active = [v for v in active if v not in members or v == node]
            active += [node] if node not in active else []
        if len(active) == 2:
            self.join(*active)

    def contract(self) -> None:
        """Make two adjacent missing nodes one, where the way between them is too short to tell them apart."""
        for h in sorted(v for v in self.around if v >= len(self.d)):
            for g in sorted(v for v in self.around.get(h, ()) if v >= len(self.d)):
                length = max(self.distance(g, h), 0.0)
                sides = [float(np.median([self.distance(v, x) for v in self.around[x] if v not in (g, h)]))
                         for x in (g, h)]  # fmt: skip
                if length <= self.tolerance * np.sqrt((length + sides[0]) * (length + sides[1])):
                    far = {v: self.distance(v, h) for v in self.around[g] if v != h}
                    self.part(g, h)
                    for v, length in far.items():
                        self.part(v, g)
                        self.join(v, h)
                        self.known[min(v, h), max(v, h)] = max(length, 0.0)
                    del self.around[g]

    def hidden(
        self, members: list[int], active: list[int], x: np.ndarray, family: list[int], full: dict[Pair, float]
    ) -> int:
        """A missing node above a family, with its distances.

        Returns:
            Its number.
        """
        node, self.count = self.count, self.count + 1
        self.around[node] = {}
        up = []
        for a in family:
            others = [(b, k) for b in family for k in range(len(active)) if b != a and k not in (a, b)]
            up.append(max(0.0, float(np.mean([(x[a, b] + x[a, k] - x[b, k]) / 2 for b, k in others]))))
        for a, m, length in zip(family, members, up, strict=True):
            full[m, node] = self.known[m, node] = min(length, float(x[a].max()))
        for k, v in enumerate(active):
            if k not in family:
                far = float(np.mean([x[a, k] - length for a, length in zip(family, up, strict=True)]))
                full[v, node] = self.known[v, node] = max(0.0, far)
        return node
