"""What files say of a model against what its weights show: only findings contradict, and silence is no claim."""

from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints import arrays_of
from stemma.application.claimed_licences import includes, is_permissive
from stemma.application.claims import check_claims
from stemma.checkpoints import cards
from stemma.types import ClaimLine, RelationKind
from traces import EXACT, digest, of_relation, relative, trace

pytestmark = pytest.mark.anywhere

DESCENT = (
    RelationKind.FINETUNED, RelationKind.LORA, RelationKind.QUANTIZED, RelationKind.PRUNED, RelationKind.UNLEARNED,
    RelationKind.HEAD_REPLACED, RelationKind.PART_INHERITED, RelationKind.MERGED,
)  # fmt: skip
SCRATCH = {cards.FROM_SCRATCH: "It was trained from scratch."}


def about(subject: str, lines: tuple[ClaimLine, ...]) -> list[str]:
    return [line.verdict for line in lines if line.about == subject]


@pytest.mark.parametrize("kind", list(RelationKind))
def test_from_scratch_is_contradicted_by_an_established_parent_and_by_nothing_else(kind: RelationKind) -> None:
    (line,) = [x for x in check_claims(SCRATCH, of_relation(kind)) if x.about == "origin"]
    assert line.verdict == ("contradicted" if kind in DESCENT else "not checked")
    assert line.sentence.endswith("claim contradicted." if kind in DESCENT else "not checked.")
    if kind in DESCENT:
        assert "made from those of base" in line.sentence
        assert "p < 1e-300" in line.sentence


def test_a_parent_by_outputs_alone_is_no_parent_of_the_weights() -> None:
    found = of_relation(RelationKind.FINETUNED)
    found["candidates"][0]["weights"]["verdict"] = "independent"
    assert about("origin", check_claims(SCRATCH, found)) == ["not checked"]


def test_nothing_found_confirms_nothing() -> None:
    for found in (
        trace("no-known-parent", strangers=["a", "b"]),
        trace("inconclusive", undecided=["a"]),
        trace("inconclusive", not_tested=({"what": "nothing-searched", "model": "", "why": "nothing"},)),
    ):
        lines = check_claims({**SCRATCH, "license": "mit", "base_model": "c"}, found)
        assert {line.verdict for line in lines} == {"not checked"}
        assert {line.about for line in lines} == {"origin", "base model", "licence"}
        assert check_claims({}, found) == ()


@pytest.mark.parametrize(
    ("claimed", "found", "verdict"),
    [
        ("base", of_relation(RelationKind.FINETUNED), "agrees"),
        ("org/BASE", of_relation(RelationKind.FINETUNED), "agrees"),
        (digest("base"), of_relation(RelationKind.FINETUNED), "agrees"),
        ("base", of_relation(RelationKind.COPY), "agrees"),
        ("base", of_relation(RelationKind.SIBLINGS), "not checked"),
        ("base", of_relation(RelationKind.PERMUTED), "not checked"),
        ("base", of_relation(RelationKind.UNRELATED), "contradicted"),
        ("org/base", of_relation(RelationKind.UNRELATED), "not checked"),  # perhaps another model of that name
        ("one/base", trace("no-known-parent", strangers=["two/base"]), "not checked"),
        ("base", trace("inconclusive", undecided=["base"]), "not checked"),
        ("elsewhere", of_relation(RelationKind.FINETUNED), "not checked"),
        ("base", trace("related", relatives=[relative("base", RelationKind.RELATED, "child")]), "contradicted"),
    ],
)
def test_a_base_model(claimed: str, found: dict, verdict: str) -> None:
    lines = check_claims({"base_model": claimed}, found)
    assert about("base model", lines)[0] == verdict
    assert lines[0].stated == claimed


def _child(kind: RelationKind = RelationKind.FINETUNED, sure: float | None = None) -> dict:
    return trace("related", relatives=[relative("foo", kind, "child", confidence=sure)])


def _by_outputs() -> dict:
    found = _child()
    found["candidates"][0]["weights"]["verdict"] = "independent"
    return found


@pytest.mark.parametrize(
    ("claimed", "found", "verdict"),
    [
        ("foo", _child(), "contradicted"),
        (digest("foo"), _child(), "contradicted"),
        ("foo", _child(sure=0.97), "contradicted"),
        ("foo", _child(sure=0.6), "not checked"),
        ("meta/foo", _child(), "not checked"),  # the model of that name may be another one
        ("foo", _child(RelationKind.DISTILLED), "not checked"),
        ("foo", _by_outputs(), "not checked"),
    ],
)
def test_only_a_sure_child_of_that_very_name_contradicts_a_base(claimed: str, found: dict, verdict: str) -> None:
    assert about("base model", check_claims({"base_model": claimed}, found)) == [verdict]


def test_a_model_that_is_enrolled_under_the_last_part_of_its_base_s_name_is_not_accused() -> None:
    files = {"base_model": "org/base", "base_model_relation": "finetune"}
    assert about("relation", check_claims(files, of_relation(RelationKind.COPY))) == ["not checked"]
    assert about("relation", check_claims({**files, "base_model": "base"}, of_relation(RelationKind.COPY))) == [
        "contradicted"
    ]


def test_a_parent_that_the_files_do_not_name_is_said_to_be_so() -> None:
    merge = of_relation(RelationKind.MERGED)
    named, silent = [x for x in check_claims({"base_model": "base"}, merge) if x.about == "base model"]
    assert (named.verdict, silent.verdict) == ("agrees", "not checked")
    assert silent.models == ("second",)
    assert about("base model", check_claims({"base_model": "base, second"}, merge)) == ["agrees", "agrees"]


def test_a_receipt_of_other_weights_names_no_base() -> None:
    found = of_relation(RelationKind.PRUNED)
    own, other = found["model"]["digest"], digest("others")
    receipt = {"edited_from": digest("base"), "edited_to": own, "edit": "prune"}
    assert about("base model", check_claims(receipt, found)) == ["agrees"]
    assert about("base model", check_claims({**receipt, "edited_to": other}, found)) == ["not checked"]


@pytest.mark.parametrize(
    ("said", "kind", "verdict"),
    [
        ("finetune", RelationKind.FINETUNED, "agrees"),
        ("finetune", RelationKind.LORA, "agrees"),
        ("adapter", RelationKind.LORA, "agrees"),
        ("merge", RelationKind.MERGED, "agrees"),
        ("Quantized", RelationKind.QUANTIZED, "agrees"),
        ("quantized", RelationKind.FINETUNED, "not checked"),
        ("finetune", RelationKind.COPY, "contradicted"),
        ("anything", RelationKind.COPY, "not checked"),
        ("finetune", RelationKind.SIBLINGS, "not checked"),
    ],
)
def test_a_relation(said: str, kind: RelationKind, verdict: str) -> None:
    lines = check_claims({"base_model": "base", "base_model_relation": said}, of_relation(kind))
    assert about("relation", lines) == [verdict]


@pytest.mark.parametrize(
    ("own", "theirs", "verdict"),
    [
        ("apache-2.0", "llama2", "contradicted"),
        ("mit", "GPL-3.0-only", "contradicted"),
        ("gplv3", "GPL-3.0-only", "agrees"),
        ("apache-2.0", "mit", "not checked"),
        ("apache-2.0", None, "not checked"),
        ("other: mine", "llama2", "not checked"),
        ("mit", "other: theirs", "not checked"),
        ("mit OR llama2", "llama2", "contradicted"),  # whoever takes MIT is not told of the other licence
        ("mit AND llama2", "llama2", "agrees"),
        ("", "llama2", "not checked"),
        ("mit", "bsd", "not checked"),  # which of them?
        ("mit", "cc-by", "not checked"),
        ("mit", "cc-by-nc", "contradicted"),
        ("cc-by-nc", "cc-by-nc-4.0", "not checked"),
        ("cc-by-nc-4.0", "cc-by-nc", "agrees"),
        ("gpl-3.0", "gpl-2.0-or-later", "agrees"),
        ("mit", "apache-2.0 AND llama2", "contradicted"),
        ("mit", "apache-2.0 OR gpl-3.0", "not checked"),
    ],
)
def test_a_licence(own: str, theirs: str | None, verdict: str) -> None:
    claims = {"license": own} if own else {}
    for kind in (RelationKind.FINETUNED, RelationKind.COPY, *EXACT):
        lines = check_claims(claims, of_relation(kind, theirs))
        assert about("licence", lines) == [verdict], kind
    assert about("licence", check_claims({"license": "mit"}, of_relation(RelationKind.FINETUNED, theirs), own)) == (
        [verdict] if own else about("licence", check_claims({"license": "mit"}, of_relation(kind, theirs)))
    )


def test_licences_of_models_are_not_taken_for_permissive_ones() -> None:
    assert all(map(is_permissive, ("MIT", "apache 2.0", "BSD-3-Clause", "cc-by-4.0", "cc0-1.0", "mit or gpl-3.0")))
    strict = ("llama2", "llama3.1", "gemma", "openrail", "cc-by-nc-4.0", "cc-by-sa-4.0", "gpl-3.0", "agpl", "nothing")
    assert [is_permissive(text) for text in (*strict, "mit and gpl-3.0", "", "x" * 10_000)].count(True) == 0
    assert [is_permissive(text) for text in ("bsd", "cc-by", "bsd and mit", "bsd or gpl-3.0")] == [None] * 4
    assert includes("mit", "mit or gpl-3.0") is False


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("This model was trained\nfrom scratch on 1 GB of text. More.", True),
        ("---\nlicense: mit\n---\n# A\n- Pretrained entirely from scratch", True),
        ("It was not trained from scratch.", False),
        ("It wasn't trained from scratch.", False),
        ("Fine-tuned instead of training from scratch.", False),
        ("Unlike models that are trained from scratch, this one is small.", False),
        ("---\nlicense: trained from scratch\n---\n", False),
        ("Trained on data. From scratch pads we learnt.", False),
        ("**Pre-trained from scratch** on text.", True),
        ("Our small language model has been fully trained from scratch.", True),
        ("We trained this model from scratch on our own data.", True),
        ("This is a fine-tune of X, which was trained from scratch.", False),
        ("X was trained from scratch.", False),  # which may be another model
        ("Base: X (trained from scratch by its authors)", False),
        ("The model was trained from scratch by others, then we changed it.", False),
        ("It was first trained from scratch and fine-tuned afterwards.", False),
        ("We compared it with a model trained from scratch.", False),
        ("The base model was trained from scratch.", False),
        ("To train from scratch, run train.py.", False),
        ("The model can be trained from scratch.", False),
        ("```\nTrained from scratch\n```", False),
        ("~~~\nTrained from scratch", False),
        ("The " + "a " * 300_000 + "model was trained from scratch", False),
        ("```" * 200_000, False),
        ("train " * 200_000, False),
    ],
)
def test_a_card_says_from_scratch_only_in_a_plain_sentence(tmp_path: Path, text: str, claims: bool) -> None:
    (tmp_path / "README.md").write_text(text)
    assert (cards.FROM_SCRATCH in cards.read(tmp_path)[1]) is claims


def test_hostile_names_and_values_stay_harmless_and_short() -> None:
    evil = "<script>\x1b[2J\u202e\n" + "x" * 10_000
    found = of_relation(RelationKind.FINETUNED)
    for row in (*found["parents"], *found["candidates"]):
        row["name"], row["licence"] = evil, evil
    lines = check_claims({**SCRATCH, "license": evil, "base_model": evil, "base_model_relation": evil}, found)
    assert {line.about for line in lines} == {"origin", "base model", "relation", "licence"}
    for line in lines:
        assert line.sentence.isprintable()
        assert len(line.sentence) < 1000


def test_claims_of_a_real_folder_against_its_own_trace(tmp_path: Path) -> None:
    from checkpoints import child_of
    from stemma.networks.load import from_arrays
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    base = from_arrays(arrays_of(0), "base", claims={"license": "llama2"})
    copy = from_arrays(arrays_of(0), "taken", claims={"license": "mit", "base_model": "stranger", **SCRATCH})
    child = from_arrays(child_of(arrays_of(0), 5), "child", claims=SCRATCH)
    workspace = Workspace(Registry(str(tmp_path / "r.db")))
    against = [base, from_arrays(arrays_of(1), "stranger")]
    found = workspace.trace(copy, against).to_dict()
    verdicts = {line.about: line.verdict for line in check_claims(copy.claims, found)}
    assert verdicts == {"origin": "not checked", "base model": "contradicted", "licence": "contradicted"}
    found = workspace.trace(replace(child, name="child"), against).to_dict()
    assert about("origin", check_claims(child.claims, found)) == (
        ["contradicted"] if found["verdict"] == "descends" else ["not checked"]
    )
