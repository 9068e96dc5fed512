"""Descendants and ancestors with their probability: against enumeration by hand, and what is left open."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of
from stemma.ancestry.trees import reachability
from stemma.ancestry.trees.kin import KinOf, kin_of
from stemma.ancestry.trees.reachability import reach
from stemma.application.policies import descent
from stemma.export.dot import lineage_dot
from stemma.types import Digest, Edge, Lineage, ModelRef

pytestmark = pytest.mark.anywhere


def edge(parent: str, child: str, confidence: float | None = None, relation: str = "finetuned", **more: Any) -> Edge:
    return Edge(parent=parent, child=child, relation=relation, confidence=confidence, **more)


def tree(*edges: Edge, alone: tuple[str, ...] = (), families: Any = None, **more: Any) -> Lineage:
    """A lineage by hand: one family unless given; every name that is no missing ancestor is a model."""
    missing = tuple({"name": n, "children": [e.child for e in edges if e.parent == n], "parent": None}
                    for n in sorted({e.parent for e in edges} | {e.child for e in edges}) if "(" in n)  # fmt: skip
    names = sorted({n for e in edges for n in (e.parent, e.child) if "(" not in n} | set(alone))
    related = tuple(n for n in names if n not in alone)
    return Lineage(
        models=tuple(ModelRef(n, Digest(f"sha256:{n}")) for n in names),
        edges=edges,
        roots=tuple(n for n in names if n not in {e.child for e in edges}),
        families=families or (related, *((n,) for n in alone)),
        missing_ancestors=missing,
        **more,
    )


def enumerated(edges: list[tuple[int, int, float]], source: int, target: int) -> float:
    """The twin: every set of edges that are right, one after the other."""
    total = 0.0
    for right in itertools.product((True, False), repeat=len(edges)):
        kept = [(a, b) for (a, b, _), keep in zip(edges, right, strict=True) if keep]
        seen = {source}
        while new := {b for a, b in kept if a in seen} - seen:
            seen |= new
        weight = math.prod(p if keep else 1 - p for (_, _, p), keep in zip(edges, right, strict=True))
        total += weight if target in seen else 0.0
    return total


chances = st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
graphs = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), chances).map(lambda e: (*sorted(e[:2]), e[2])).filter(
        lambda e: e[0] != e[1]
    ),
    max_size=9,
)  # fmt: skip


def parents_of(edges: list[tuple[int, int, float]]) -> dict[int, list[tuple[int, float | None]]]:
    out: dict[int, list[tuple[int, float | None]]] = {i: [] for i in range(6)}
    for a, b, p in edges:
        out[b].append((a, p))
    return out


@given(edges=graphs)
def test_the_probability_is_that_of_enumeration(edges: list[tuple[int, int, float]]) -> None:
    found = reach(0, parents_of(edges))
    for target in range(6):
        truth = enumerated(edges, 0, target)
        if target not in found:
            assert truth == 0
            continue
        assert found[target].probability == pytest.approx(truth, abs=1e-12)
        assert 0 <= found[target].at_least <= found[target].at_most <= 1


@given(edges=graphs)
def test_bounds_hold_where_the_sum_is_cut_short(edges: list[tuple[int, int, float]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reachability, "MAX_STATES", 1)
        found = reach(0, parents_of(edges))
    for target, bounds in found.items():
        truth = enumerated(edges, 0, target)
        assert bounds.at_least - 1e-12 <= truth <= bounds.at_most + 1e-12
        assert bounds.probability is None or bounds.probability == pytest.approx(truth, abs=1e-12)


def test_a_graph_that_is_too_wide_gets_bounds_and_an_answer_in_time() -> None:
    layers = [list(range(1 + 20 * k, 21 + 20 * k)) for k in range(6)]
    parents: dict[int, list[tuple[int, float | None]]] = {0: [], **{v: [(0, 0.5)] for v in layers[0]}}
    for above, below in itertools.pairwise(layers):
        parents |= {v: [(u, 0.3) for u in above] for v in below}
    found = reach(0, parents)[layers[-1][0]]
    assert found.probability is None
    assert 0 < found.at_least < found.at_most <= 1


def probabilities(kin: KinOf) -> dict[str, float | None]:
    return {k.name: k.reached.probability for k in kin.models}


def test_two_paths_through_a_merge_are_combined() -> None:
    found = tree(
        edge("base", "x", 0.8), edge("base", "y", 0.5), edge("x", "m", share=0.7, relation="merged"),
        edge("y", "m", share=0.3, relation="merged"), edge("m", "leaf", 0.9), alone=("other",),
    )  # fmt: skip
    kin = kin_of(found, "base", "descendants")
    assert probabilities(kin) == pytest.approx({"x": 0.8, "y": 0.5, "m": 0.9, "leaf": 0.81})
    merged = next(k for k in kin.models if k.name == "m")
    assert [(p.names_from("base"), p.probability, p.share) for p in merged.paths] == [
        (("base", "x", "m"), 0.8, 0.7), (("base", "y", "m"), 0.5, 0.3),
    ]  # fmt: skip
    assert (merged.n_paths, merged.share) == (2, 1.0)
    assert next(k for k in kin.models if k.name == "x").share is None
    assert kin.undecided == ()
    up = kin_of(found, "leaf", "ancestors")
    assert probabilities(up) == pytest.approx({"m": 0.9, "x": 0.9, "y": 0.9, "base": 0.81})
    assert next(k for k in up.models if k.name == "x").share == 0.7
    assert next(k for k in up.models if k.name == "base").paths[0].names_from("base") == ("base", "x", "m", "leaf")


def test_all_forms_of_a_network_are_affected_with_it() -> None:
    found = tree(
        edge("wide", "copy", relation="copy"), edge("wide", "turned", relation="permuted"), edge("wide", "child", 0.99),
        edge("child", "child-copy", relation="reformatted"), edge("wide", "int8", relation="quantized"),
    )  # fmt: skip
    kin = kin_of(found, "copy", "descendants")
    assert {k.name for k in kin.models if k.same} == {"wide", "turned"}
    assert probabilities(kin) == pytest.approx({"wide": 1, "turned": 1, "child": 0.99, "child-copy": 0.99, "int8": 1})
    way = next(k for k in kin.models if k.name == "child-copy").paths[0]
    assert way.names_from("copy") == ("copy", "wide", "child", "child-copy")
    assert {k.name for k in kin_of(found, "int8", "descendants").models} == set()  # rounding is not undone
    assert {k.name for k in kin_of(found, "child-copy", "ancestors").models} == {"child", "wide", "copy", "turned"}


def undecided(kin: KinOf) -> set[str]:
    return {name for name, _ in kin.undecided}


def test_what_edges_leave_open_is_not_excluded() -> None:
    sure = tree(edge("base", "a", 0.99), edge("base", "b", 0.99), edge("b", "c", 0.99), alone=("other",))
    assert undecided(kin_of(sure, "a", "descendants")) == set()
    unsure = tree(edge("base", "a", 0.99), edge("base", "b", 0.6), edge("b", "c", 0.99), alone=("other",))
    assert undecided(kin_of(unsure, "a", "descendants")) == {"b", "c"}  # b may come from a instead, and c with it
    assert undecided(kin_of(unsure, "b", "descendants")) == {"base", "a"}
    refused = tree(
        edge("base", "a", 0.99), edge("r", "s", 0.99),
        refused=({"models": ["base", "r"], "reason": "neither is shown to be the parent"},),
    )  # fmt: skip
    assert undecided(kin_of(refused, "a", "descendants")) == {"r", "s"}  # base is surely older than a
    assert undecided(kin_of(refused, "s", "ancestors")) == {"base", "a"}
    merged = tree(edge("base", "a", 0.6), edge("base", "b", 0.6), edge("a", "m"), edge("b", "m"), edge("m", "n", 0.9))
    assert undecided(kin_of(merged, "m", "descendants")) == {"base"}  # a and b are surely older than m
    assert undecided(kin_of(merged, "n", "descendants")) == {"base", "a", "b", "m"}
    parted = tree(edge("base", "a", 0.99), edge("r", "s", 0.99))
    assert undecided(kin_of(parted, "a", "descendants")) == {"r", "s"}
    lost = tree(edge("(missing 1)", "a"), edge("(missing 1)", "b"), edge("a", "c", 0.99))
    assert undecided(kin_of(lost, "a", "descendants")) == {"b"}  # no edge above is known
    below = kin_of(tree(edge("a", "(missing 1)"), edge("(missing 1)", "b"), edge("a", "c", 0.99)), "a", "descendants")
    assert (below.possible, [k.name for k in below.established]) == (("b",), ["c"])
    unread = tree(edge("base", "a", 0.99), alone=("odd",), not_tested=(
        {"what": "not-comparable", "model": "odd", "why": "it has no matrices"},
        {"what": "unreadable-file", "model": "", "why": "a file cannot be read: x"},
    ))  # fmt: skip
    assert undecided(kin_of(unread, "base", "descendants")) == {"odd", ""}
    assert undecided(kin_of(unread, "odd", "descendants")) == {"base", "a", ""}


@given(edges=graphs)
def test_descendants_and_ancestors_are_two_sides_of_one_answer(edges: list[tuple[int, int, float]]) -> None:
    found = tree(*(edge(f"m{a}", f"m{b}", p) for a, b, p in edges), edge("m0", "m6", 0.5))
    names = [m.name for m in found.models]
    down = {(n, k.name): k for n in names for k in kin_of(found, n, "descendants").models}
    up = {(k.name, n): k for n in names for k in kin_of(found, n, "ancestors").models}
    assert down.keys() == up.keys()
    for pair, k in down.items():
        assert k.reached.probability == pytest.approx(up[pair].reached.probability)
        assert k.n_paths == up[pair].n_paths
        numbers = [(int(e.parent[1:]), int(e.child[1:]), e.confidence or 0.0) for e in found.edges]
        if len(numbers) <= 7:
            truth = enumerated(numbers, int(pair[0][1:]), int(pair[1][1:]))
            assert k.reached.probability == pytest.approx(truth)


# The command


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base, its copy, two children, a grandchild, a merge of the children, and a stranger."""
    folder = tmp_path / "family"
    folder.mkdir()
    base = arrays_of(0)
    x, y = child_of(base, 5, 0.1), child_of(base, 7, 0.1)
    models = {
        "base": base, "copy": base, "x": x, "y": y, "x2": child_of(x, 6, 0.1), "stranger": arrays_of(3),
        "merge": {n: ((x[n] + y[n]) / 2).astype(np.float32) for n in base},
    }  # fmt: skip
    for name, arrays in models.items():
        save_file(arrays, folder / f"{name}.safetensors", metadata={"license": "mit"} if name == "x" else None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("enrolled", [False, True])
def test_the_command_lists_what_descends_from_a_model(run: Run, family: Path, enrolled: bool) -> None:
    words = [] if enrolled else [family]
    if enrolled:
        run("add", family)
    drawn = json.loads(run("lineage", *words, "--json")[1])
    assert "descent" not in drawn
    code, out, _ = run("lineage", *words, "--descendants-of", "base", "--json")
    answer = json.loads(out)["descent"]
    found = {m["name"]: m for m in answer["models"]}
    assert (code, set(found)) == (0, {"copy", "x", "y", "x2", "merge"})
    assert (answer["of"], answer["n_established"], answer["n_possible"], answer["undecided"]) == ("base", 5, 0, [])
    confidence = {(e["parent"], e["child"]): e["confidence"] for e in drawn["edges"]}
    assert found["copy"]["same"]
    assert found["x2"]["probability"] == pytest.approx(confidence["base", "x"] * confidence["x", "x2"], abs=1e-6)
    both = 1 - (1 - confidence["base", "x"]) * (1 - confidence["base", "y"])
    assert found["merge"]["probability"] == pytest.approx(both, abs=1e-6)
    assert {p["share"] for p in found["merge"]["paths"]} == {0.5}
    assert {m["name"]: m["licence"] for m in answer["models"] if m["licence"]} == {"x": "mit"}
    shown = run("lineage", *words, "--descendants-of", "base")[1]
    assert shown.startswith("5 models descend from base; 0 may\n")
    assert "same weights  copy" in shown
    up = json.loads(run("lineage", *words, "--ancestors-of", "merge", "--json")[1])["descent"]
    assert {m["name"] for m in up["models"]} == {"x", "y", "base", "copy"}
    assert [m["model"] for m in up["undecided"]] == ["x2"]


def test_a_name_that_leads_nowhere_is_one_error(run: Run, family: Path) -> None:
    code, out, err = run("lineage", family, "--descendants-of", "bsae")
    assert (code, out, err.count("\n"), "Did you mean 'base'" in err) == (1, "", 1, True)
    assert run("lineage", family, "--descendants-of", "base", "--ancestors-of", "x")[0] == 2
    assert run("lineage", family, "--descendants-of", "")[0] == 2
    assert run("lineage", family, "--descendants-of", family / "base.safetensors")[0] == 0
    assert run("trace", family / "x.safetensors", "--fail-on-descendant-of", "nobody")[0] == 1
    assert run("trace", family / "x.safetensors", "--fail-on-descendant-of", "")[0] == 2


@pytest.mark.slow
def test_a_descendant_closes_the_gate_however_many_steps_away(run: Run, family: Path, tmp_path: Path) -> None:
    run("add", family)
    grandchild = tmp_path / "suspect.safetensors"
    save_file(child_of(child_of(arrays_of(0), 5, 0.1), 11, 0.1), grandchild)
    code, _, err = run("trace", grandchild, "--fail-on-descendant-of", "base")
    assert (code, bool(re.search(r"policy: suspect descends from base .*\(probability ", err))) == (3, True)
    save_file(arrays_of(40), stranger := tmp_path / "fresh.safetensors")
    assert run("trace", stranger, "--fail-on-descendant-of", "base", "x")[0] == 0
    assert run("trace", family / "copy.safetensors", "--fail-on-descendant-of", "base")[0] == 3
    code, _, err = run("trace", family / "base.safetensors", "--fail-on-descendant-of", "base")
    assert (code, "base itself" in err) == (3, True)
    assert run("trace", grandchild, "--against", family, "--fail-on-descendant-of", "base")[0] == 3
    code, out, err = run("trace", stranger, "--against", family, "--fail-on-descendant-of", "base", "--json")
    assert (code, json.loads(out)["policy"]["closed"]) == (0, False)


@pytest.mark.slow
def test_of_a_large_registry_the_models_near_both_ends_are_drawn(
    run: Run, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", family)
    monkeypatch.setattr(descent, "LIMIT", 3)
    save_file(child_of(child_of(arrays_of(0), 5, 0.1), 11, 0.1), suspect := tmp_path / "suspect.safetensors")
    code, _, err = run("trace", suspect, "--fail-on-descendant-of", "base")
    assert (code, "policy: suspect descends from base" in err) == (3, True)
    assert run("trace", family / "stranger.safetensors", "--fail-on-descendant-of", "base")[0] == 0
    assert run("trace", suspect, "--fail-on-descendant-of", "stranger")[0] == 0
    monkeypatch.setattr(descent, "MAX_DRAWN", 2)  # what is not drawn is not excluded
    code, _, err = run("trace", suspect, "--fail-on-descendant-of", "stranger")
    assert (code, "was not examined" in err) == (3, True)


def test_a_trace_that_excludes_everything_draws_nothing(
    run: Run, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", family)
    save_file(arrays_of(40), fresh := tmp_path / "fresh.safetensors")
    monkeypatch.setattr(descent, "lineage", lambda *a, **k: pytest.fail("a lineage was drawn"))
    assert run("trace", fresh, "--fail-on-descendant-of", "base", "x2")[0] == 0


@pytest.mark.slow
def test_what_cannot_be_decided_closes_the_gate_too(run: Run, family: Path) -> None:
    run("add", family)
    code, out, err = run("trace", family / "y.safetensors", "--fail-on-descendant-of", "x2", "--json")
    policy = json.loads(out)["policy"]
    assert (code, policy["violations"], policy["closed"]) == (3, [], True)
    assert "whether y descends from x2 is not decided" in err
    assert run("trace", family / "y.safetensors", "--fail-on-descendant-of", "x2", "--allow-untested")[0] == 0
    (family / "base.safetensors").unlink()
    (family / "copy.safetensors").unlink()
    assert run("trace", family / "stranger.safetensors", "--fail-on-descendant-of", "base")[0] != 0


@pytest.mark.slow
def test_a_lineage_closes_the_gate(run: Run, family: Path) -> None:
    code, out, err = run("lineage", family, "--fail-on-descendant-of", "base", "--json")
    policy = json.loads(out)["policy"]
    assert (code, policy["closed"], len(policy["violations"])) == (3, True, 5)
    assert "policy: merge descends from base through" in err
    assert run("lineage", family, "--fail-on-descendant-of", "stranger")[0] == 0
    assert run("lineage", family, "--fail-on-descendant-of")[0] == 2
    # A model that is not among the files is found in the registry.
    run("add", family / "base.safetensors", "--name", "withdrawn")
    (family / "copy.safetensors").unlink()
    (family / "base.safetensors").rename(family.parent / "elsewhere.safetensors")
    run("add", family.parent / "elsewhere.safetensors", "--name", "withdrawn", "--replace")
    code, _, err = run("lineage", family, "--fail-on-descendant-of", "withdrawn")
    assert (code, "x descends from withdrawn" in err) == (3, True)


@pytest.mark.slow
def test_the_graph_is_the_lineage_and_no_name_leaves_its_quotes(run: Run, family: Path, tmp_path: Path) -> None:
    target = tmp_path / "trees.dot"
    assert run("lineage", family, "--dot", target)[0] == 0
    first = target.read_text()
    run("lineage", family, "--dot", target)
    assert target.read_text() == first
    assert first.count(" -> ") == 6
    assert "merged · share 0.50" in first
    hostile = 'a"]; evil [label="x\\\n\x1b[31m\u202e<script>' + "y" * 10_000
    drawn = tree(edge(hostile, "b", 0.5), edge("(missing 1)", hostile), edge("(missing 1)", "c"),
                 refused=({"models": ["b", "c"], "reason": "?"},))  # fmt: skip
    text = lineage_dot(drawn)
    assert len(text) < 2500
    assert text.isprintable() is False  # line ends only
    assert all(line.isprintable() for line in text.splitlines())
    assert len(re.findall('style="rounded,dashed"', text)) == 1
    assert 'style="dotted"' in text
    for line in text.splitlines():
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
        assert "evil" not in outside
        assert outside.count('"') == 0
    assert run("lineage", family, "--dot", tmp_path / "no" / "where.dot")[0] == 2
