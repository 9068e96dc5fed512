"""Places of models on the drawing of a whole registry: no overlap, children below their parents, and nothing jumps."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.export.trees.drawing import Drawing, draw, key_of, primary_parents
from stemma.export.trees.outline import outline, packed
from stemma.types import Digest, Edge, Lineage, ModelRef

pytestmark = pytest.mark.anywhere

RELATIONS = ("finetuned", "lora", "merged", "copy")


def refs(names: list[str]) -> tuple[ModelRef, ...]:
    return tuple(ModelRef(n, Digest(f"sha256:{abs(hash(n)):064x}"[:71])) for n in names)


def lineage_of(
    families: list[list[str]], edges: list[tuple[str, str]], missing: dict[str, list[str]] | None = None
) -> Lineage:
    return Lineage(
        models=refs([n for f in families for n in f]),
        edges=tuple(Edge(parent=p, child=c, relation="finetuned") for p, c in edges),
        roots=(),
        families=tuple(tuple(f) for f in families),
        missing_ancestors=tuple({"name": n, "children": c, "parent": None} for n, c in (missing or {}).items()),
    )


def forest(seed: int, n: int) -> Lineage:
    """Families of random sizes, random trees in them, some merges."""
    r = random.Random(seed)
    families, edges, i = [], [], 0
    while i < n:
        size = min(n - i, max(1, int(r.paretovariate(0.8))))
        family = [f"m{k:05d}" for k in range(i, i + size)]
        for k in range(1, size):
            first = r.randrange(k)
            edges.append((family[first], family[k]))
            if k > 2 and r.random() < 0.2 and (second := r.randrange(k)) != first:
                edges.append((family[second], family[k]))
        families.append(family)
        i += size
    return lineage_of(families, edges)


def overlaps(drawing: Drawing) -> list[tuple[int, int]]:
    return [place for place, count in Counter(drawing.places.values()).items() if count > 1]


@given(st.integers(0, 10_000), st.integers(1, 120))
def test_every_model_has_a_cell_of_its_own_and_children_stand_right_of_and_below_their_parent(
    seed: int, n: int
) -> None:
    tree = forest(seed, n)
    drawing = draw(tree)
    assert set(drawing.places) == {m.name for m in tree.models}
    assert overlaps(drawing) == []
    for child, parent in primary_parents(tree.edges).items():
        (x0, y0), (x1, y1) = drawing.places[parent], drawing.places[child]
        assert x1 > x0
        assert y1 > y0


@given(st.integers(0, 10_000), st.integers(2, 60))
def test_areas_of_families_do_not_overlap_and_hold_their_models(seed: int, n: int) -> None:
    tree = forest(seed, n)
    drawing = draw(tree)
    cells = Counter(
        (x, y) for a in drawing.areas for x in range(a.x, a.x + a.width) for y in range(a.y, a.y + a.height)
    )
    assert set(cells.values()) <= {1}
    for family in tree.families:
        inside = {i for i, a in enumerate(drawing.areas) for m in family if a.holds(drawing.places[m])}
        assert len(inside) == (len(family) > 1)
        if len(family) == 1:
            assert drawing.places[family[0]][1] < 0


@given(st.integers(0, 10_000), st.integers(1, 80))
def test_drawn_again_nothing_moves(seed: int, n: int) -> None:
    tree = forest(seed, n)
    once = draw(tree)
    kept = Drawing.of(once.to_dict())
    assert kept == once
    assert draw(tree, kept).places == once.places


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_joins_moves_no_other_family_and_seldom_its_own(seed: int) -> None:
    tree = forest(seed, 300)
    before = draw(tree)
    r = random.Random(seed)
    moved_own = 0
    for i in range(10):
        family = r.choice(tree.families)
        parent, name = r.choice(family), f"new{i}"
        families = [[*f, name] if f == family else list(f) for f in tree.families]
        tree = lineage_of(families, [*((e.parent, e.child) for e in tree.edges), (parent, name)])
        after = draw(tree, before)
        assert overlaps(after) == []
        jumped = {m for m in before.places if after.places[m] != before.places[m]}
        assert jumped <= set(family)
        if len(family) > 8:
            moved_own += bool(jumped)
        before = after
    assert moved_own <= 1  # only where a family outgrew its area


def test_a_family_that_another_joins_moves_as_a_whole_and_leaves_the_rest() -> None:
    one, two, three = [f"a{i}" for i in range(6)], [f"b{i}" for i in range(6)], [f"c{i}" for i in range(6)]
    edges = [(f[0], m) for f in (one, two, three) for m in f[1:]]
    before = draw(lineage_of([one, two, three], edges))
    after = draw(lineage_of([one + two, three], [*edges, ("a0", "b0")]), before)
    assert overlaps(after) == []
    assert {m: after.places[m] for m in three} == {m: before.places[m] for m in three}


def test_a_missing_ancestor_keeps_its_place_when_it_is_numbered_anew() -> None:
    families = [["a", "b"], ["c", "d"]]
    first = draw(lineage_of(families, [], {"(missing 1)": ["a", "b"], "(missing 2)": ["c", "d"]}))
    again = draw(lineage_of(families, [], {"(missing 2)": ["a", "b"], "(missing 1)": ["c", "d"]}), first)
    assert again.places == first.places
    key = key_of("(missing 1)", {"(missing 1)": ["a", "b"]})
    assert first.places[key][1] < first.places["a"][1]
    nested = {"(missing 1)": ["(missing 2)", "z"], "(missing 2)": ["a", "b"]}
    assert len({key_of(n, nested) for n in nested}) == 2


def test_what_comes_below_the_larger_share_of_a_merge() -> None:
    edges = (
        Edge(parent="p", child="m", relation="merged", share=0.3),
        Edge(parent="q", child="m", relation="merged", share=0.7),
    )
    assert primary_parents(edges) == {"m": "q"}


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=30), st.integers(1, 12))
def test_packed_rectangles_do_not_overlap(sizes: list[tuple[int, int]], columns: int) -> None:
    places, width, height = packed(sizes, columns)
    cells = Counter(
        (x + i, y + j) for (x, y), (w, h) in zip(places, sizes, strict=True) for i in range(w) for j in range(h)
    )
    assert set(cells.values()) <= {1}
    assert all(x < width and y < height for x, y in cells)


def test_a_long_chain_needs_no_recursion() -> None:
    n = 3000
    places, width, height = outline(["0"], {str(i): [str(i + 1)] for i in range(n)})
    assert (len(places), width, height) == (n + 1, n + 1, n + 1)


def test_a_star_is_about_square() -> None:
    _, width, height = outline(["root"], {"root": [str(i) for i in range(500)]})
    assert 0.4 < 5 * width / height < 2.5
