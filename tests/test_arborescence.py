"""Minimum arborescences: NetworkX is the oracle for the cost, the definition for the structure."""

import itertools

import networkx as nx
import numpy as np
import pytest

from processor_time import times_as_long
from stemma.ancestry.trees.arborescence import minimum_arborescence, minimum_forest
from stemma.errors import MisuseError

BONUS = 1e6


def random_graph(rng: np.random.Generator, nodes: int, edges: int, *, whole: bool) -> tuple[np.ndarray, ...]:
    sources, targets = rng.integers(0, nodes, edges), rng.integers(0, nodes, edges)
    costs = rng.integers(-9, 10, edges).astype(float) if whole else rng.normal(size=edges)
    spanning = np.arange(1, nodes)  # so that all can be reached from 0
    return (
        np.concatenate([sources, [int(rng.integers(0, v)) for v in spanning]]).astype(int),
        np.concatenate([targets, spanning]),
        np.concatenate([costs, np.full(nodes - 1, 5.0)]),
    )


def assert_spans(nodes: int, sources: np.ndarray, targets: np.ndarray, chosen: np.ndarray, roots: set[int]) -> None:
    assert {v for v in range(nodes) if chosen[v] < 0} == roots
    for v in range(nodes):
        seen = set()
        while chosen[v] >= 0:
            assert v not in seen
            assert targets[chosen[v]] == v
            seen.add(v)
            v = int(sources[chosen[v]])
        assert v in roots


def oracle(nodes: int, sources: np.ndarray, targets: np.ndarray, costs: np.ndarray, root: int) -> float:
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(nodes))
    for s, t, c in zip(sources.tolist(), targets.tolist(), costs.tolist(), strict=True):
        if t != root and s != t:
            graph.add_edge(s, t, weight=BONUS - c)  # large enough that more edges are always better
    tree = nx.maximum_branching(graph)
    assert nx.is_arborescence(tree)
    return sum(BONUS - d["weight"] for *_, d in tree.edges(data=True))


@pytest.mark.parametrize("whole", [True, False])
def test_cost_equals_that_of_networkx(whole: bool) -> None:
    rng = np.random.default_rng(int(whole))
    for _ in range(200):
        nodes = int(rng.integers(2, 16))
        graph = random_graph(rng, nodes, int(rng.integers(0, 5 * nodes)), whole=whole)
        chosen = minimum_arborescence(nodes, *graph, root=0)
        assert_spans(nodes, graph[0], graph[1], chosen, {0})
        assert graph[2][chosen[1:]].sum() == pytest.approx(oracle(nodes, *graph, root=0), abs=1e-6)


def test_nested_cycles_in_larger_graphs() -> None:
    rng = np.random.default_rng(5)
    for nodes in (60, 150):
        # cheap edges inside nested blocks make cycles of cycles
        sources, targets = rng.integers(0, nodes, 6 * nodes), rng.integers(0, nodes, 6 * nodes)
        apart = np.floor(np.log2((sources ^ targets) + 1))
        costs = apart * 10 + rng.random(len(apart))
        sources, targets = np.append(sources, [0] * (nodes - 1)), np.append(targets, range(1, nodes))
        costs = np.append(costs, np.full(nodes - 1, 500.0))
        chosen = minimum_arborescence(nodes, sources, targets, costs, root=0)
        assert_spans(nodes, sources, targets, chosen, {0})
        assert costs[chosen[1:]].sum() == pytest.approx(oracle(nodes, sources, targets, costs, root=0))


def test_forest_equals_the_best_of_all_forests() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        nodes = 4
        sources, targets = map(np.array, zip(*itertools.permutations(range(nodes), 2), strict=True))
        costs, own = rng.normal(size=len(sources)), rng.normal(size=nodes)
        chosen = minimum_forest(nodes, sources, targets, costs, own)
        assert_spans(nodes, sources, targets, chosen, {v for v in range(nodes) if chosen[v] < 0})
        best = np.inf
        for parents in itertools.product(range(-1, nodes), repeat=nodes):
            total = 0.0
            for v, p in enumerate(parents):
                if p == v:
                    total = np.inf
                    break
                total += own[v] if p < 0 else costs[(sources == p) & (targets == v)][0]
            if total < best and acyclic(parents):
                best = total
        taken = sum(own[v] if e < 0 else costs[e] for v, e in enumerate(chosen))
        assert taken == pytest.approx(best)


def acyclic(parents: tuple[int, ...]) -> bool:
    for v in range(len(parents)):
        steps = 0
        while v >= 0:
            v, steps = parents[v], steps + 1
            if steps > len(parents):
                return False
    return True


def test_refusal_is_cheaper_than_a_dear_edge_and_dearer_than_a_cheap_one() -> None:
    edges = np.array([0]), np.array([1])
    assert minimum_forest(2, *edges, np.array([0.9]), 1.0).tolist() == [-1, 0]
    assert minimum_forest(2, *edges, np.array([1.0]), 1.0).tolist() == [-1, 0]
    assert minimum_forest(2, *edges, np.array([1.1]), 1.0).tolist() == [-1, -1]


def test_parallel_edges_loops_and_edges_into_the_root() -> None:
    sources, targets = np.array([0, 0, 1, 1, 0]), np.array([1, 1, 1, 0, 0])
    chosen = minimum_arborescence(2, sources, targets, np.array([3.0, 2.0, -9.0, -9.0, -9.0]), root=0)
    assert chosen.tolist() == [-1, 1]


def test_ties_go_to_the_edge_given_first() -> None:
    sources, targets = np.array([0, 0, 1, 2]), np.array([1, 1, 2, 1])
    assert minimum_arborescence(3, sources, targets, np.ones(4), root=0).tolist() == [-1, 0, 2]
    assert minimum_arborescence(3, sources, targets, np.ones(4), root=0).tolist() == [-1, 0, 2]


def test_a_node_out_of_reach_is_named() -> None:
    with pytest.raises(MisuseError, match="node 2 cannot be reached from the root 0"):
        minimum_arborescence(3, np.array([0]), np.array([1]), np.array([1.0]), root=0)
    with pytest.raises(MisuseError, match=r"node [12] cannot be reached"):
        minimum_arborescence(3, np.array([1, 2]), np.array([2, 1]), np.array([1.0, 1.0]), root=0)


def test_wrong_input_is_one_clear_error() -> None:
    one = np.array([0])
    with pytest.raises(MisuseError, match="one entry per edge"):
        minimum_arborescence(2, one, one, np.array([1.0, 2.0]), root=0)
    with pytest.raises(MisuseError, match="names another one"):
        minimum_arborescence(2, one, np.array([2]), np.array([1.0]), root=0)
    with pytest.raises(MisuseError, match="finite"):
        minimum_arborescence(2, one, np.array([1]), np.array([np.nan]), root=0)
    with pytest.raises(MisuseError, match="but is 2"):
        minimum_arborescence(2, one, np.array([1]), np.array([1.0]), root=2)
    with pytest.raises(MisuseError, match="2, one per node"):
        minimum_forest(2, one, np.array([1]), np.array([1.0]), np.zeros(3))


def test_nothing_and_one_node() -> None:
    none = np.zeros(0, int)
    assert minimum_forest(0, none, none, np.zeros(0), 1.0).tolist() == []
    assert minimum_forest(1, none, none, np.zeros(0), 1.0).tolist() == [-1]
    assert minimum_arborescence(1, none, none, np.zeros(0), root=0).tolist() == [-1]


@pytest.mark.slow
def test_ten_thousand_nodes_do_not_cost_the_square_of_their_number() -> None:
    def drawn(nodes: int, degree: int = 20) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        targets = np.repeat(np.arange(nodes), degree)
        return nodes, rng.integers(0, nodes, nodes * degree), targets, rng.normal(size=nodes * degree)

    (nodes, sources, targets, costs), quarter = drawn(10_000), drawn(2_500)
    found = []
    cost = times_as_long(
        lambda: found.append(minimum_forest(nodes, sources, targets, costs, 4.0)),
        lambda: minimum_forest(*quarter, 4.0),
        11,
    )
    assert cost <= 11  # measured: 6.0 to 7.4; in proportion to the square it would be 16
    chosen = found[0]
    assert_spans(nodes, sources, targets, chosen, {v for v in range(nodes) if chosen[v] < 0})
    cheapest = costs.reshape(nodes, -1).min(axis=1)
    taken = np.where(chosen < 0, 4.0, costs[chosen]).sum()
    assert cheapest.sum() <= taken <= cheapest.sum() + 0.2 * nodes


def test_a_long_chain_of_cycles_needs_no_recursion() -> None:
    nodes = 5_000
    there, back = np.arange(nodes - 1), np.arange(1, nodes)
    sources, targets = np.concatenate([there, back]), np.concatenate([back, there])
    costs = np.concatenate([np.full(nodes - 1, 2.0), np.linspace(0, 1, nodes - 1)])
    chosen = minimum_arborescence(nodes, sources, targets, costs, root=0)
    assert chosen[1:].tolist() == list(range(nodes - 1))
