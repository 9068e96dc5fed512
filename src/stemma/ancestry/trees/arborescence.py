"""Minimum-cost arborescences and forests on sparse directed graphs."""

from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError

NONE = -1
"""No edge, no node, an empty heap."""


def minimum_arborescence(
    nodes: int, sources: np.ndarray, targets: np.ndarray, costs: np.ndarray, root: int
) -> np.ndarray:
    """The cheapest set of edges by which every node is reached from the root, each but the root by one edge.

    Edges into the root and self-loops are never used. Of equally cheap edges into one node the one given first is tried
    first, so that the result is deterministic.

    Cost: O(E log V) time and O(E + V) memory: incoming edges are sorted once per node, and a node's run of edges is one
    entry of a leftist heap, so that contracting a cycle merges heaps of runs, not of edges. No recursion.

    Args:
        nodes: Number of nodes, numbered from 0.
        sources: Start of each edge, integers `[E]`.
        targets: End of each edge, integers `[E]`.
        costs: Finite numbers of either sign, `[E]`.
        root: The node that needs no edge.

    Returns:
        For each node the index of the edge by which it is reached, -1 for the root; int64 `[nodes]`.

    Raises:
        MisuseError: If the arrays do not fit together, or some node cannot be reached from the root.

    Source: Tarjan, Networks 7 (1977), with the growth of one path at a time and the expansion of Gabow, Galil, Spencer
        and Tarjan, Combinatorica 6 (1986); runs in place of single edges are this project's.
    """
    sources, targets, costs = _checked(nodes, sources, targets, costs)
    if not 0 <= root < nodes:
        raise MisuseError(f"the root must be one of the {nodes} nodes, numbered from 0, but is {root}")
    work = _Contraction.of(nodes, sources, targets, costs, root)
    for start in range(nodes):
        work.grow(start)
    return np.array(work.expanded(), np.int64)


def minimum_forest(
    nodes: int, sources: np.ndarray, targets: np.ndarray, costs: np.ndarray, root_costs: np.ndarray | float
) -> np.ndarray:
    """The cheapest forest: a node without a parent costs its entry of `root_costs` instead of an edge.

    Args:
        nodes: Number of nodes, numbered from 0.
        sources: Start of each edge, integers `[E]`.
        targets: End of each edge, integers `[E]`.
        costs: Finite numbers of either sign, `[E]`.
        root_costs: Cost of leaving a node without a parent, a number or one per node; ties go to the edge.

    Returns:
        For each node the index of the edge by which it is reached, -1 for a root; int64 `[nodes]`.

    Raises:
        MisuseError: If the arrays do not fit together.
    """
    sources, targets, costs = _checked(nodes, sources, targets, costs)
    given = np.asarray(root_costs, np.float64)
    if given.shape not in ((), (nodes,)):
        raise MisuseError(f"root costs must be one number or {nodes}, one per node, but have shape {given.shape}")
    own = np.broadcast_to(given, (nodes,))
    chosen = minimum_arborescence(
        nodes + 1,
        np.concatenate([sources, np.full(nodes, nodes)]),
        np.concatenate([targets, np.arange(nodes)]),
        np.concatenate([costs, own]),
        nodes,
    )[:nodes]
    return np.where(chosen < len(costs), chosen, NONE)


def _checked(
    nodes: int, sources: np.ndarray, targets: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sources, targets, costs = np.asarray(sources), np.asarray(targets), np.asarray(costs, np.float64)
    if not (sources.ndim == 1 and sources.shape == targets.shape == costs.shape):
        raise MisuseError(
            "sources, targets and costs must be lists of one length, one entry per edge, but have shapes "
            f"{sources.shape}, {targets.shape} and {costs.shape}"
        )
    sources, targets = sources.astype(np.int64, casting="unsafe"), targets.astype(np.int64, casting="unsafe")
    if len(costs) and (min(sources.min(), targets.min()) < 0 or max(sources.max(), targets.max()) >= nodes):
        raise MisuseError(f"edges must join nodes 0 … {nodes - 1}, and some edge names another one")
    if not np.isfinite(costs).all():
        raise MisuseError(f"costs must be finite, and {int((~np.isfinite(costs)).sum())} of {len(costs)} are not")
    return sources, targets, costs


@dataclass
class _Contraction:
    """Nodes and contracted cycles (both "cells"), each with a heap of runs of incoming edges.

    Run `v` is the sorted list of edges into node `v`; its key is the cost of its next edge plus all that was taken off.
    Plain lists: single entries of NumPy arrays are slow.
    """

    source: list[int]
    target: list[int]
    cost: list[float]
    order: list[int]
    stop: list[int]
    at: list[int]
    key: list[float]
    shift: list[float]
    lazy: list[float]
    left: list[int]
    right: list[int]
    rank: list[int]
    heap: list[int]
    within: list[int]
    parent: list[int]
    enter: list[int]
    done: list[bool]
    root: int

    @classmethod
    def of(cls, nodes: int, sources: np.ndarray, targets: np.ndarray, costs: np.ndarray, root: int) -> "_Contraction":
        keep = np.flatnonzero((sources != targets) & (targets != root))
        order = keep[np.lexsort((keep, costs[keep], targets[keep]))]
        bounds = np.searchsorted(targets[order], np.arange(nodes + 1))
        most = 2 * nodes
        full = bounds[1:] > bounds[:-1]
        first = costs[order[np.minimum(bounds[:-1], max(len(order) - 1, 0))]] if len(order) else np.zeros(nodes)
        done = [False] * most
        done[root] = True
        heap = [v if some else NONE for v, some in enumerate(full.tolist())]
        return cls(
            sources.tolist(), targets.tolist(), costs.tolist(), order.tolist(), bounds[1:].tolist(),
            bounds[:-1].tolist(), first.tolist(), [0.0] * nodes, [0.0] * nodes, [NONE] * nodes, [NONE] * nodes,
            [1] * nodes + [0], heap, list(range(most)), [NONE] * most, [NONE] * most, done, root,
        )  # fmt: skip

    def grow(self, start: int) -> None:
        """Follow cheapest incoming edges backwards from a node, contracting cycles, until something done is reached."""
        cell = self.find(start)
        if self.done[cell]:
            return
        path, position = [cell], {cell: 0}
        while True:
            edge = self.take(path[-1])
            self.enter[path[-1]] = edge
            before = self.find(self.source[edge])
            if self.done[before]:
                break
            if before in position:
                cycle = path[position[before] :]
                del path[position[before] :]
                before = self.contract(cycle)
            position[before] = len(path)
            path.append(before)
        for cell in path:
            self.done[cell] = True

    def find(self, cell: int) -> int:
        """The outermost cell that contains a cell."""
        within = self.within
        while within[cell] != cell:
            within[cell] = within[within[cell]]
            cell = within[cell]
        return cell

    def take(self, cell: int) -> int:
        """Index of the cheapest edge from outside a cell; its cost is subtracted from all others into the cell."""
        heap = self.heap[cell]
        while heap != NONE:
            edge = self.order[self.at[heap]]
            if self.find(self.source[edge]) != cell:
                self.add(heap, -self.key[heap])
                self.heap[cell] = heap
                return edge
            heap = self.advanced(heap, cell)
        inside = next(v for v in range(len(self.heap)) if self.find(v) == cell)
        raise MisuseError(f"node {inside} cannot be reached from the root {self.root}: add an edge into its component")

    def advanced(self, run: int, cell: int) -> int:
        """The heap after its first run has moved past edges from inside the cell, which stay inside."""
        self.push(run)
        rest = self.merge(self.left[run], self.right[run])
        at, stop = self.at[run] + 1, self.stop[run]
        while at < stop and self.find(self.source[self.order[at]]) == cell:
            at += 1
        if at == stop:
            return rest
        self.at[run], self.key[run] = at, self.cost[self.order[at]] + self.shift[run]
        self.left[run], self.right[run], self.rank[run] = NONE, NONE, 1
        return self.merge(run, rest)

    def contract(self, cycle: list[int]) -> int:
        """Make a cycle one cell."""
        cell = len(self.heap)
        heap = NONE
        for inner in cycle:
            self.parent[inner] = self.within[inner] = cell
            heap = self.merge(heap, self.heap[inner])
        self.heap.append(heap)
        return cell

    def add(self, heap: int, amount: float) -> None:
        """Change all keys of a heap."""
        if heap != NONE:
            self.key[heap] += amount
            self.shift[heap] += amount
            self.lazy[heap] += amount

    def push(self, heap: int) -> None:
        if self.lazy[heap]:
            self.add(self.left[heap], self.lazy[heap])
            self.add(self.right[heap], self.lazy[heap])
            self.lazy[heap] = 0.0

    def merge(self, a: int, b: int) -> int:
        """Merge two leftist heaps along their right spines, whose length is logarithmic."""
        key, left, right, rank = self.key, self.left, self.right, self.rank
        spine = []
        while a != NONE and b != NONE:
            if (key[b], self.order[self.at[b]]) < (key[a], self.order[self.at[a]]):
                a, b = b, a
            self.push(a)
            spine.append(a)
            a = right[a]
        tail = b if a == NONE else a
        for x in reversed(spine):
            right[x] = tail
            if rank[left[x]] < rank[tail]:
                left[x], right[x] = tail, left[x]
            rank[x] = rank[right[x]] + 1
            tail = x
        return tail

    def expanded(self) -> list[int]:
        """Undo the contractions, outermost first: the edge into a cycle replaces the one that it makes superfluous.

        Every cell between the edge's own target and the cell that it enters is entered by it too, so that each cell is
        visited once.

        Returns:
            For each node its edge.
        """
        nodes = len(self.at)
        open_ = [True] * len(self.heap)
        for cell in range(len(self.heap) - 1, nodes - 1, -1):
            if not open_[cell]:
                continue
            edge = self.enter[cell]
            inner = self.target[edge]
            while inner != cell:
                self.enter[inner] = edge
                open_[inner] = False
                inner = self.parent[inner]
        return self.enter[:nodes]
