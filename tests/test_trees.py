"""Pictures of family trees: every model once, no two boxes on one another, edges that end at their boxes."""

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import pytest

from page_documents import HOSTILE, edge, lineage_document, lineages
from stemma.export.markup import columns, cut, lines_within
from stemma.export.trees import tree_file, tree_svg
from stemma.export.trees.layout import MOST, layout
from stemma.export.trees.picture import BOX, GROUPS, LETTERS, Box, boxes_of, edge_path
from stemma.types import RelationKind

pytestmark = pytest.mark.anywhere

SVG = "{http://www.w3.org/2000/svg}"


def _random_forest(seed: int, n: int, families: int = 3, merges: int = 6) -> dict[str, Any]:
    """Families with generations of any depth, merges across them, and models without a relative."""
    draw = random.Random(seed)
    kinds = [kind.value for kind in RelationKind]
    edges, groups = [], []
    for f in range(families):
        names = [f"f{f}-m{i}" + "x" * draw.randrange(0, 60) for i in range(n)]
        for i in range(1, n):
            parent = names[draw.randrange(max(0, i - draw.choice([2, 5, n])), i)]
            edges.append(edge(parent, names[i], draw.choice(kinds), confidence=draw.random()))
        for _ in range(merges):
            i = draw.randrange(1, n)
            edges.append(edge(names[draw.randrange(i)], names[i], "merged", share=draw.random()))
        groups.append(names)
    return lineage_document(edges, [*groups, *([f"alone {i}"] for i in range(5))])


FORESTS = {
    **{f"random {seed}": _random_forest(seed, n) for seed, n in enumerate((1 + 1, 5, 12, 30, 60))},
    **{what: document for what, document in lineages("models/a") if what != "nothing"},
    "chain": lineage_document([edge(f"m{i}", f"m{i + 1}") for i in range(40)], [[f"m{i}" for i in range(41)]]),
    "star": lineage_document([edge("m", f"m{i}") for i in range(90)], [["m", *(f"m{i}" for i in range(90))]]),
    "circle": lineage_document([edge("a", "b"), edge("b", "c"), edge("c", "a")], [["a", "b", "c"]]),
    "many parents": lineage_document([edge(f"p{i}", "m", "merged", share=0.1) for i in range(9)],
                                     [["m", *(f"p{i}" for i in range(9))]]),
}  # fmt: skip


def _families(document: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Box]]]:
    top = 40.0
    for family in layout(document).families:
        boxes, bottom = boxes_of(family, top)
        yield family, boxes
        top = bottom + 80


@pytest.mark.parametrize("what", FORESTS)
def test_every_model_is_drawn_once(what: str) -> None:
    document = FORESTS[what]
    drawn = [place.name for family in layout(document).families for place in family.places]
    wanted = {model["name"] for model in document["models"]} | {m["name"] for m in document["missing_ancestors"]}
    assert sorted(drawn) == sorted(wanted)
    assert layout(document).left_out == 0


@pytest.mark.parametrize("what", FORESTS)
def test_no_two_boxes_overlap(what: str) -> None:
    boxes = [box for _, found in _families(FORESTS[what]) for box in found.values()]
    for a, b in itertools.combinations(boxes, 2):
        apart = a.x + BOX < b.x or b.x + BOX < a.x or a.y + a.height < b.y or b.y + b.height < a.y
        assert apart, (a.place, b.place)


@pytest.mark.parametrize("what", [what for what in FORESTS if what != "circle"])
def test_children_stand_to_the_right_of_their_parents_and_edges_end_at_their_boxes(what: str) -> None:
    for family, boxes in _families(FORESTS[what]):
        for i, one in enumerate(family.edges):
            parent, child = boxes[one["parent"]], boxes[one["child"]]
            path = edge_path(parent, child, 0, i in family.first)
            assert parent.place.column < child.place.column
            assert path[0] == (parent.x + BOX, parent.middle)
            assert path[-1] == (child.x, child.middle)
            for (x, y), (x2, y2) in itertools.pairwise(path):
                assert x == x2 or y == y2
                for box in boxes.values():
                    inside = (min(x, x2) < box.x + BOX - 0.1 and max(x, x2) > box.x + 0.1
                              and min(y, y2) < box.y + box.height and max(y, y2) > box.y)  # fmt: skip
                    assert not inside, (one["parent"], one["child"], box.place)


@pytest.mark.parametrize("what", FORESTS)
def test_the_file_is_well_formed_and_texts_do_not_overlap(what: str) -> None:
    root = ElementTree.fromstring(tree_file(FORESTS[what]))
    assert root.tag == f"{SVG}svg"
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    texts = []
    for text in root.iter(f"{SVG}text"):
        x, y, words = float(text.attrib["x"]), float(text.attrib["y"]), text.text or ""
        wide = columns(words) * (7.6 if text.attrib["class"] == "tree-name" else 6.6)
        left = x - wide if text.attrib.get("text-anchor") == "end" else x
        texts.append((left, left + wide, y - 10, y + 2, words))
        assert left >= -1
        assert left + wide <= width + 1, words
        assert y - 10 >= 0
        assert y + 2 <= height
    for a, b in itertools.combinations(texts, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert apart, (a, b)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert all(titles)


def test_the_words_of_an_edge_are_at_the_edge() -> None:
    merged = [edge("a", "m", "merged", share=0.75, confidence=None), edge("b", "m", "merged", share=0.25)]
    svg = tree_svg(lineage_document([*merged, edge("m", "k", "lora", confidence=0.88)], [["a", "b", "m", "k"]]))
    labels = re.findall(r'class="tree-label"[^>]*>([^<]*)<', svg)
    assert sorted(labels) == ["lora · 88 %", "merged 0.25 · 90 %", "merged 0.75"]
    assert svg.count("is-mixed") == 3  # two edges and the legend
    assert "several parents or parts" in svg
    assert "m → k: lora · 88 %. why k" in svg


def test_missing_ancestors_are_dashed_and_every_relation_has_a_colour() -> None:
    (document,) = (d for what, d in lineages("x") if what == "every relation")
    svg = tree_svg(document)
    assert svg.count('class="tree-model is-missing"') == 1
    assert {kind.value for kind in RelationKind} == {kind for _, kinds in GROUPS.values() for kind in kinds}


def test_related_roots_without_a_direction_are_bracketed() -> None:
    from stemma.ancestry.trees.forest import NO_DIRECTION

    refused = [{"models": ["a", "b"], "reason": NO_DIRECTION}, {"models": ["b", "c"], "reason": NO_DIRECTION},
               {"models": ["d", "e"], "reason": "the pairwise comparison finds no relation"}]  # fmt: skip
    document = lineage_document([edge("a", "k")], [["a", "b", "c", "d", "e", "k"]], refused=refused)
    (family,) = layout(document).families
    assert family.undirected == (("a", "b", "c"),)
    svg = tree_svg(document)
    assert svg.count("<title>a, b, c: related, no direction known</title>") == 1
    assert svg.count("is-unknown") == 2  # the bracket and the legend


def test_too_many_models_are_left_out_and_said() -> None:
    document = _random_forest(1, 280, families=2)
    found = layout(document)
    assert sum(len(family.places) for family in found.families) == MOST
    assert found.left_out == len(document["models"]) - MOST
    for family in found.families:  # whoever is shown is shown with its parents
        names = {place.name for place in family.places}
        assert all(e["parent"] in names and e["child"] in names for e in family.edges)
    words = f"{found.left_out:,} more models are left out: stemma serve shows all of them in the atlas."
    assert words in tree_file(document).decode()
    assert layout(document, 10).left_out == len(document["models"]) - 10


def test_hostile_names_are_cut_and_harmless() -> None:
    document = lineage_document([edge(HOSTILE, "b")], [[HOSTILE, "b"], ["模型" * 50]])
    page = tree_file(document)
    root = ElementTree.fromstring(page)
    assert not list(root.iter(f"{SVG}script"))
    assert not {"\u202e", "\x1b"} & set(page.decode())
    names = [t.text or "" for t in root.iter(f"{SVG}text") if t.attrib["class"] == "tree-name"]
    assert max(map(columns, names)) <= LETTERS
    assert max(len(t.text or "") for t in root.iter(f"{SVG}title")) < 1_000


def test_the_same_lineage_gives_the_same_picture_in_any_order() -> None:
    document = _random_forest(3, 20)
    assert tree_file(document) == tree_file(document)
    shuffled = {**document, "models": document["models"][::-1]}
    assert tree_file(shuffled) == tree_file(document)


@pytest.mark.parametrize(
    "name", ["short", "a-long-name-of-a-model/with-parts.v2-that-goes-on-and-on", "x" * 99, "模型" * 40]
)
def test_names_are_broken_within_their_box(name: str) -> None:
    lines = lines_within(name, 25)
    assert len(lines) <= 2
    assert all(columns(line) <= 25 for line in lines)
    joined = "".join(lines)
    head, _, tail = joined.partition("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert (joined == name) == ("…" not in joined)
    assert columns(cut(name, 10)) <= 10


def test_the_key_explains_only_what_the_picture_shows() -> None:
    sure = tree_svg(lineage_document([edge("a", "b")], [["a", "b"]]))
    shown = tree_svg(lineage_document([edge("a", "b", "quantized", confidence=None)], [["a", "b"]]))
    assert "A percentage is the probability" in sure
    assert "A percentage is the probability" not in shown
    assert "number at a merge" not in sure + shown
    assert "Parents stand on the left" in shown
