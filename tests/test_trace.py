"""The answer about one suspect: pure logic on made-up comparisons, then the documented history of real checkpoints."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import Run
from stemma.ancestry.trace import Candidate, trace
from stemma.architectures.unit_groups import permute, structure
from stemma.checkpoints.model import Model
from stemma.cli.trace import described
from stemma.export import answers
from stemma.kinship.compare import compare
from stemma.networks.load import from_arrays, load
from stemma.types import (
    WEIGHTS_GONE,
    Axis,
    Comparison,
    Digest,
    Evidence,
    ModelRef,
    Null,
    Relation,
    RelationKind,
    Spec,
    Verdict,
)

SUSPECT = from_arrays({"w": np.arange(12, dtype=np.float32).reshape(3, 4)}, "suspect")


def candidate(name: str) -> Candidate:
    return Candidate(ModelRef(name, Digest(f"sha256:{name}")), Digest(f"sha256:c{name}"), {}, lambda: SUSPECT)


def comparison(
    name: str, p: float | None, effect: float, verdict: Verdict, kind: RelationKind = RelationKind.RELATED
) -> Comparison:
    log10_p = None if p is None else math.log10(p)
    weights = Evidence(
        claim="",
        axis=Axis.WEIGHTS,
        statistic="t",
        value=0.0,
        null=Null("n"),
        p_value=p,
        log10_p=log10_p,
        effect=effect,
        verdict=verdict,
        reason="because",
        spec=Spec("t"),
    )
    word = {Verdict.SUPPORTED: "related", Verdict.REFUTED: "independent", Verdict.INCONCLUSIVE: "inconclusive"}
    return Comparison(
        a=ModelRef(name, Digest(name)),
        b=SUSPECT.ref,
        verdict=word[verdict],
        relation=Relation(kind),
        direction="unknown",
        weights=weights,
    )


def traced(rows: dict[str, tuple[Any, ...]], searched: int | None = None) -> dict[str, Any]:
    return trace(
        SUSPECT, [candidate(n) for n in rows], lambda c: comparison(c.ref.name, *rows[c.ref.name]), n_searched=searched
    ).to_dict()


YES, NO, OPEN = Verdict.SUPPORTED, Verdict.REFUTED, Verdict.INCONCLUSIVE


def test_the_largest_effect_is_the_parent_and_ties_share_the_place() -> None:
    found = traced({"a": (1e-9, 0.7, YES), "b": (1e-30, 0.901, YES), "c": (1e-20, 0.9, YES), "d": (0.4, 0.0, NO)})
    assert found["verdict"] == "related"
    assert {p["name"] for p in found["parents"]} == {"b", "c"}
    assert [p["name"] for p in found["relatives"]] == ["a"]
    assert found["candidates"][-1]["name"] == "d"
    assert all(p["direction"] == "unknown" for p in found["parents"])


def test_a_small_p_is_corrected_for_every_model_searched() -> None:
    rows = {"a": (0.004, 0.5, YES), "b": (0.5, 0.0, NO)}
    assert traced(rows)["parents"]
    crowded = traced(rows, searched=1000)
    assert not crowded["parents"]
    assert crowded["n_searched"] == 1000
    assert crowded["candidates"][0]["verdict"] == "inconclusive"


def test_an_exhibited_map_is_not_corrected() -> None:
    found = traced({"a": (0.001, 1.0, YES, RelationKind.PERMUTED)}, searched=100_000)
    assert [p["name"] for p in found["parents"]] == ["a"]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ({"a": (0.5, 0.0, NO)}, "no-known-parent"),
        ({"a": (0.5, 0.0, NO), "b": (0.7, 0.0, NO)}, "no-known-parent"),
        ({}, "inconclusive"),
        ({"a": (0.5, 0.0, NO), "b": (None, 0.0, OPEN)}, "inconclusive"),
        ({"a": (None, 0.0, OPEN)}, "inconclusive"),
        ({"a": (0.2, 0.1, OPEN)}, "inconclusive"),
    ],
)
def test_no_known_parent_is_said_only_where_every_candidate_is_excluded(
    rows: dict[str, tuple[Any, ...]], verdict: str
) -> None:
    found = traced(rows)
    assert found["verdict"] == verdict
    assert found["parents"] == []
    assert [t["model"] for t in found["not_tested"]] == [name for name, row in rows.items() if row[2] is OPEN]


def test_kin_in_function_only_is_not_said_to_share_weights_and_gives_no_set_of_parents() -> None:
    from stemma.ancestry.roles import PossibleParent, RelativeRole, RelativeRoles, Role
    from stemma.application.policies import Ruling
    from stemma.application.trace import TraceAnswer, TraceRequest
    from stemma.export.answers import trace_answer, trace_closing

    weights, kin = (comparison("a", p, 0.1, verdict, RelationKind.DISTILLED) for p, verdict in ((0.5, NO), (1e-9, YES)))
    function = replace(kin.weights, axis=Axis.FUNCTION, reason="closer than others")
    roles = RelativeRoles([RelativeRole(Role.UNKNOWN)], (PossibleParent((), 1.0),))
    for found, where, shared in ((replace(weights, function=function), " in function only", False), (kin, "; ", True)):
        result = trace(SUSPECT, [candidate("a")], lambda c, f=found: f, assign_roles=lambda pairs: roles)
        assert result.verdict == "related"
        assert f"related to a{where}" in str(trace_answer(result.to_dict())).replace(" (distilled)", "")
        answer = TraceAnswer(request=TraceRequest(model="m"), model=SUSPECT, result=result, ruling=Ruling())
        assert trace_closing(answer.document())[0].startswith("they share weights") == shared
        assert (bool(result.parent_set), result.coverage is not None) == (shared, shared)


def test_what_could_not_be_searched_leaves_the_answer_open() -> None:
    left = [{"what": "unreadable-file", "model": "", "why": "a file cannot be read"}]
    rows = {"a": (0.5, 0.0, NO)}
    found = trace(SUSPECT, [candidate("a")], lambda c: comparison("a", *rows["a"]), not_tested=left)
    assert found.verdict == "inconclusive"
    assert found.not_tested == tuple(left)
    kin = trace(SUSPECT, [candidate("a")], lambda c: comparison("a", 1e-30, 0.9, YES), not_tested=left)
    assert (kin.verdict, kin.not_tested) == ("related", tuple(left))


def test_models_that_only_their_sketches_were_seen_of_are_told() -> None:
    past = traced({"a": (1e-30, 0.9, YES), "b": (0.5, 0.0, NO)}, searched=60)
    assert past["not_tested"] == []  # the search reached past the kin
    assert any("58 of 60 models, which were compared by weight sketch only" in said for said in past["cannot_see"])
    within = traced({"a": (1e-30, 0.9, YES), "b": (1e-30, 0.8, YES)}, searched=60)
    assert [t["what"] for t in within["not_tested"]] == ["not-looked-at"]
    assert "58 of 60 models were compared by weight sketch only" in within["not_tested"][0]["why"]
    assert traced({"a": (0.5, 0.0, NO)}, searched=60)["verdict"] == "no-known-parent"


def test_what_a_comparison_could_not_test_is_handed_on_unless_kinship_is_shown() -> None:
    entry = {"what": "units-reordered", "model": "", "why": "the units may have been reordered"}
    for verdict, told in ((NO, True), (OPEN, True), (YES, False)):
        pair = replace(comparison("a", 0.5 if verdict is not YES else 1e-30, 0.9, verdict), not_tested=(entry,))
        found = trace(SUSPECT, [candidate("a")], lambda c, pair=pair: pair)
        assert ([t["model"] for t in found.not_tested] == ["a"]) == told
        assert pair.to_dict()["not_tested"] == ([entry] if told else [])
        assert found.verdict == ("inconclusive" if told else "related")
    gone = {"what": WEIGHTS_GONE, "model": "", "why": "only sketches are left"}
    kin = replace(comparison("a", 1e-30, 0.9, YES), not_tested=(gone,))
    assert [t["what"] for t in trace(SUSPECT, [candidate("a")], lambda c: kin).not_tested] == [WEIGHTS_GONE]


def test_no_relation_is_named_where_nothing_was_decided() -> None:
    for p, verdict, relation in ((0.5, NO, "unrelated"), (None, OPEN, None), (0.2, OPEN, None)):
        found = comparison("a", p, 0.0, verdict, RelationKind.UNRELATED)
        assert found.to_dict()["relation"] == relation
    assert traced({"a": (None, 0.0, OPEN, RelationKind.UNRELATED)})["candidates"][0]["relation"] is None


def test_copies_are_set_aside_and_never_tested() -> None:
    copy = Candidate(SUSPECT.ref, SUSPECT.names_free_digest, {}, lambda: SUSPECT)
    renamed = Candidate(ModelRef("r", Digest("sha256:x")), SUSPECT.names_free_digest, {}, lambda: SUSPECT)
    found = trace(SUSPECT, [copy, renamed], lambda c: pytest.fail("a copy was compared")).to_dict()
    assert found["verdict"] == "copy"
    assert [c["relation"] for c in found["copies"]] == ["copy", "reformatted"]


@pytest.fixture(scope="module")
def zoo_folder() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "zoo"
    if not folder.is_dir():
        pytest.skip("no folder 'shared/zoo' with real checkpoints beside the checkout")
    return folder


@pytest.mark.anywhere
@pytest.mark.slow
def test_documented_relations_of_real_checkpoints_are_found(zoo_folder: Path) -> None:
    truth = json.loads((zoo_folder / "truth.json").read_text())
    models: dict[str, Model] = {}

    def model(name: str) -> Model:
        return models.setdefault(name, load(zoo_folder / f"{name}.safetensors"))

    for r in truth["relations"]:
        if "/noise1_" in r["child"] or "/noise2_" in r["child"]:
            continue  # the least and the most noise are enough
        found = compare(model(r["parent"]), model(r["child"]))
        assert found.verdict == "related", r
        assert (found.weights.log10_p or 0) < -6, r


@pytest.mark.slow
def test_separate_trainings_of_one_architecture_are_not_related(zoo_folder: Path) -> None:
    truth = json.loads((zoo_folder / "truth.json").read_text())
    pairs = [p for r in truth["not_related"] for p in itertools.combinations(r["models"], 2)]
    assert len(pairs) == 10
    for a, b in pairs:
        found = compare(*(load(zoo_folder / f"{n}.safetensors") for n in (a, b)), alpha=0.01 / len(pairs))
        assert found.verdict != "related", (a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["waifu2x_upconv7_photo/scale2.0x", "fsrcnn/fsrcnn_x2", "mlperf_tiny/vww96_float", "mlperf_tiny/resnet8_float"],
)
def test_permuted_and_renamed_real_checkpoints_are_exhibited(zoo_folder: Path, name: str) -> None:
    model = load(zoo_folder / f"{name}.safetensors")
    known, generator = structure(model), np.random.default_rng(0)
    orders = {g.name: generator.permutation(g.size) for g in known.groups if g.exchangeable}
    moved = permute({n: t.array() for n, t in model.weights.items()}, known, orders)
    clone = from_arrays({f"t{i:04d}": x for i, x in enumerate(moved.values())}, "clone")
    found = compare(model, clone)
    assert found.relation.kind is RelationKind.PERMUTED
    assert found.weights.effect == pytest.approx(1)
    largest = max(moved, key=lambda n: moved[n].size)
    moved[largest] = generator.permutation(moved[largest].reshape(-1)).reshape(moved[largest].shape)
    assert compare(model, from_arrays(moved, "altered")).relation.kind is not RelationKind.PERMUTED


@pytest.mark.anywhere
@pytest.mark.slow
def test_a_relative_without_a_known_direction_is_not_called_finetuned(shared: Path, run: Run) -> None:
    folder = shared / "zoo" / "mlperf_tiny"  # the Keras file is another form of the float network that was quantised
    out = run("trace", folder / "vww96_int8.safetensors", "--against", folder, "--json")[1]
    found = json.loads(out)
    assert [p["name"] for p in found["parents"]] == ["vww96_float"]
    assert [(r["name"], r["relation"]) for r in found["relatives"]] == [("vww96_keras", "related")]


def test_a_sketch_that_is_alike_is_named_with_the_way_to_decide() -> None:
    told = {"registry": "hub", "identity": "0" * 32, "signed_by": None}
    near = {
        "name": "base@hub",
        "digest": "d",
        "verdict": "inconclusive",
        "known_from": told,
        "weights": {"effect": 0.9},
    }
    document = {
        "model": {"name": "suspect"}, "verdict": "inconclusive", "copies": [], "parents": [], "relatives": [],
        "candidates": [{**near, "name": "far@hub", "weights": {"effect": 0.1}}, near], "n_searched": 2,
        "asked": {"model": "suspect", "against": None, "registry": "r.db"},
    }  # fmt: skip
    assert "is like base@hub, whose weights are not here" in answers.trace_answer(document).after
    assert "stemma show --registry r.db base@hub" in answers.trace_closing(document)[1]
    document["candidates"] = document["candidates"][:1]
    assert "no relative of suspect was found" in answers.trace_answer(document).after


def test_a_relation_that_the_verdict_names_leaves_no_colon_behind() -> None:
    finding = {"name": "a", "relation": "related", "reason": "units are alike"}
    candidate = {"name": "a", "relation": "finetuned", "weights": {"reason": "units are alike"}}
    assert described(finding, candidate) == ""
