"""Gates: what closes them, through the command line and as an attacker would try to pass."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of
from stemma.application.policies import Policy, judge_comparison, judge_trace
from stemma.errors import MisuseError
from stemma.kinship.compare import compare
from stemma.networks.load import from_arrays
from stemma.registry import Registry
from stemma.types import Relation, RelationKind
from stemma.workspace import Workspace

pytestmark = pytest.mark.anywhere

ROOT = Path(__file__).parents[1]


def card(folder: Path, arrays: dict[str, np.ndarray], front: str = "") -> Path:
    """A checkpoint folder with a card."""
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(f"---\n{front}\n---\n" if front else "# no front matter\n")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> dict[str, np.ndarray]:
    return arrays_of(0)


@pytest.fixture
def child(tmp_path: Path, base: dict[str, np.ndarray]) -> Path:
    """A child of `base` that says it is free."""
    return card(tmp_path / "child", child_of(base, 5), "license: apache-2.0")


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    save_file(arrays_of(9), tmp_path / "alone.safetensors")
    return tmp_path / "alone.safetensors"


# The licences of parents


@pytest.mark.parametrize(
    ("front", "stated", "denied", "code", "said"),
    [
        ("license: other\nlicense_name: llama3.1\nlicense_link: LICENSE", None, "llama3.1", 3, "other: llama3.1"),
        ("license: other\nlicense_name: llama3.1", None, "LLAMA3.1-community", 3, "policy: "),
        ("license: other\nlicense_name: llama3.1", None, "other", 3, "policy: "),
        ("license: other\nlicense_name: llama3.1", None, "gpl-3.0", 0, ""),
        ("license: other\nlicense_name: acme-research", None, "gpl-3.0", 3, "'acme-research' is not a known licence"),
        ("license: other", None, "gpl-3.0", 3, "names no licence"),
        ("license: other\nlicense_link: LICENSE", None, "gpl-3.0", 3, "names no licence"),
        ("license: unknown", None, "gpl-3.0", 3, "names no licence"),
        ("license: null", None, "gpl-3.0", 3, "not recorded"),
        ("license: ''", None, "gpl-3.0", 3, "not recorded"),
        ("", None, "gpl-3.0", 3, "not recorded"),
        ("license:\n- mit\n- cc-by-nc-4.0", None, "cc-by-nc-4.0", 3, "policy: "),
        ("license: [mit,\n  cc-by-nc-4.0]", None, "cc-by-nc-4.0", 3, "policy: "),
        ("license: [mit]", None, "cc-by-nc-4.0", 0, ""),
        ("license: MIT OR GPL-3.0-only", None, "gpl-3.0", 0, "only by choosing MIT"),
        ("license: (MIT", None, "gpl-3.0", 3, "is not understood"),
        ("license: GРL-3.0", None, "gpl-3.0", 3, "characters that no licence name"),
        ("license:\n  name: gpl-3.0", None, "gpl-3.0", 3, "not a known licence"),
        ("license: 3", None, "mit", 3, "not a known licence"),
        ("license: " + "a" * 5000, None, "mit", 3, "is not understood"),
        ("license: gpl-3.0", "MIT", "gpl-3.0", 0, "the card of parent says gpl-3.0"),
        ("license: mit", "GNU GPL v3", "gpl-3.0", 3, "policy: parent is under GNU GPL v3"),
        ("", "GPL-3.0-only", "gpl-3.0", 3, "policy: "),
        ("", "GPLv3", "gpl-3.0", 3, "policy: "),
        ("", "gpl", "gpl-3.0", 3, "'gpl' may mean gpl-3.0"),
        ("", "LicenseRef-acme", "gpl-3.0", 0, ""),
        ("", "LicenseRef-acme", "LicenseRef-acme", 3, "policy: "),
        ("license: LicenseRef-acme", None, "gpl-3.0", 3, "not a known licence"),
    ],
)
@pytest.mark.first(4)
def test_a_child_is_judged_by_its_parents_licence(
    run: Run, tmp_path: Path, base: dict, child: Path, front: str, stated: str | None, denied: str, code: int, said: str
) -> None:
    run("add", card(tmp_path / "parent", base, front), *(("--license", stated) if stated else ()))
    left, out, err = run("trace", child, "--deny-license", denied, "--json")
    assert (left, json.loads(out)["policy"]["closed"]) == (code, code == 3)
    assert said in err
    assert run("trace", child)[0] == 0  # without a policy nothing is refused
    allowed = run("trace", child, "--deny-license", denied, "--allow-untested")[0]
    assert allowed == (3 if "policy: " in err else 0)  # what is refused stays refused


def test_the_models_own_card_and_its_copies_count(run: Run, tmp_path: Path, base: dict, alone: Path) -> None:
    run("add", card(tmp_path / "parent", base, "license: mit"))
    own = card(tmp_path / "own", arrays_of(9), "license: gpl-3.0")
    assert run("trace", own, "--deny-license", "gpl-3.0")[0] == 3
    assert run("trace", own, "--deny-license", "llama3")[0] == 0
    code, _, err = run("trace", alone, "--deny-license", "gpl-3.0")  # it states nothing, and no kin of it is found
    assert (code, "states no licence of its own" in err) == (0, True)
    run("add", own)
    assert run("trace", alone, "--deny-license", "gpl-3.0")[0] == 3  # a copy of an enrolled one
    assert run("trace", own, "--deny-license", "gpl-3.0")[0] == 3  # itself


def test_licences_are_followed_from_base_to_base(run: Run, tmp_path: Path, base: dict, child: Path) -> None:
    registry = ("--registry", tmp_path / "r.db")
    run("add", card(tmp_path / "parent", base, "license: mit\nbase_model: org/grand"), *registry)
    code, _, err = run("trace", child, "--deny-license", "gpl-3.0", *registry)
    assert (code, "names org/grand" in err) == (3, True)  # nobody knows the licence of that base
    run("add", card(tmp_path / "grand", arrays_of(7), "license: mit\nbase_model: [org/older]"), *registry)
    run(
        "add", card(tmp_path / "older", arrays_of(8), "license: gpl-3.0\nbase_model: org/grand"), *registry
    )  # in a ring
    code, _, err = run("trace", child, "--deny-license", "gpl-3.0", *registry)
    assert (code, "policy: older is under gpl-3.0" in err) == (3, True)
    assert run("trace", child, "--deny-license", "llama3.1", *registry)[0] == 0


def test_a_base_that_the_model_itself_names_and_nobody_knows_closes(run: Run, tmp_path: Path, base: dict) -> None:
    run("add", card(tmp_path / "parent", base, "license: mit"))
    stranger = card(tmp_path / "stranger", arrays_of(9), "license: apache-2.0\nbase_model: org/llama")
    code, _, err = run("trace", stranger, "--deny-license", "llama3.1")
    assert (code, "names org/llama" in err) == (3, True)
    assert run("trace", stranger, "--fail-on", "copy")[0] == 0  # that asks for no licence
    cut = {n: np.where(np.abs(x) > np.median(np.abs(x)), x, 0).astype(np.float32) for n, x in base.items()}
    kin = card(tmp_path / "kin", cut, "license: apache-2.0\nbase_model: org/other-name-of-the-parent")
    assert run("trace", kin, "--deny-license", "llama3.1")[0] == 0  # the weights show the parent


def test_the_receipt_of_an_edit_names_a_base(run: Run, tmp_path: Path, base: dict, child: Path) -> None:
    grand = card(tmp_path / "grand", arrays_of(7), "license: gpl-3.0")
    run("add", grand)
    digest = json.loads(run("show", "grand", "--json")[1])["digest"]
    parent = card(tmp_path / "parent", base, "license: mit")
    own = from_arrays(base, "x").digest
    for edited_to, code in (("sha256:" + "0" * 64, 0), (own, 3)):  # a receipt of other weights tells nothing
        told = {"parent": digest, "child": edited_to, "operation": "prune"}
        (parent / "receipt.json").write_text(json.dumps(told))
        run("add", parent, "--replace")
        run("remove", "parent")
        run("add", parent)
        assert run("trace", child, "--deny-license", "gpl-3.0")[0] == code


def test_the_base_of_an_adapter_counts(tmp_path: Path, models: Path) -> None:
    workspace = Workspace(Registry(tmp_path / "r.db"))
    assert all(r.error is None for r in workspace.add([models], license="mit"))
    claims = {"license": "apache-2.0", "base_model_name_or_path": "org/base", "base_model_license": "other: llama3.1"}
    adapter = from_arrays(arrays_of(9), "adapter", claims=claims)
    found = workspace.trace(adapter)
    for word, closed in (("llama3.1", True), ("gpl-3.0", False)):
        ruling = judge_trace(Policy.of(licences=[word]), found, adapter, workspace)
        assert (ruling.closed, bool(ruling.violations)) == (closed, closed)
    unnamed = replace(adapter, claims={**claims, "base_model_license": "other"})
    ruling = judge_trace(Policy.of(licences=["gpl-3.0"]), found, unnamed, workspace)
    assert (ruling.closed, "the base that adapter was merged with" in ruling.untested[0]) == (True, True)


def test_files_beside_a_registry_are_known_by_their_weights(run: Run, tmp_path: Path, base: dict, child: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    save_file(base, folder / "base.safetensors")
    code, _, err = run("trace", child, "--against", folder, "--deny-license", "gpl-3.0")
    assert (code, "not recorded" in err) == (3, True)
    run("add", folder, "--license", "gpl-3.0")
    assert run("trace", child, "--against", folder, "--deny-license", "gpl-3.0")[0] == 3
    assert run("trace", child, "--against", folder, "--deny-license", "llama3")[0] == 0
    # A name that the registry has for other weights lends its licence to nobody.
    save_file(arrays_of(6), folder / "base.safetensors")
    save_file(base, tmp_path / "other.safetensors")
    assert run("trace", child, "--against", tmp_path / "other.safetensors", "--deny-license", "gpl-3.0")[0] == 3


def test_licences_are_printed_as_read(run: Run, tmp_path: Path, base: dict, child: Path) -> None:
    run("add", card(tmp_path / "parent", base, "license: other\nlicense_name: acme"))
    assert "other: acme" in run("show", "parent")[1]
    assert json.loads(run("show", "parent", "--json")[1])["licence"] == "other: acme"
    assert "other: acme" in run("list")[1]
    code, out, _ = run("trace", child)
    (line,) = [line for line in out.splitlines() if line.startswith("  licence")]
    assert (code, "other: acme" in line, "by its own card" in line, "not clear" in out) == (0, True, True, True)


@pytest.mark.parametrize(("word", "told"), [("acme", True), ("mit", False), ("LicenseRef-acme", False), ("gpl", False)])
def test_a_licence_that_no_gate_understands_is_told_when_it_is_stated(
    run: Run, alone: Path, word: str, told: bool
) -> None:
    code, _, err = run("add", alone, "--license", word)
    assert (code, "LicenseRef-NAME" in err) == (0, told)


# What could not be tested


def test_no_registry_closes_and_is_not_made(run: Run, tmp_path: Path, alone: Path) -> None:
    nowhere = tmp_path / "no" / "such.db"
    for options, code in (((), 0), (("--fail-on", "copy"), 3), (("--deny-license", "mit"), 3)):
        left, out, err = run("trace", alone, "--registry", nowhere, *options, "--json")
        answer = json.loads(out)
        assert (left, answer["verdict"]) == (code, "inconclusive")
        assert [t["what"] for t in answer["not_tested"]] == ["nothing-searched"]
        assert f"there is no registry at {nowhere}" in err
    assert run("trace", alone, "--registry", nowhere, "--fail-on", "copy", "--allow-untested")[0] == 0
    for words, code in ((("list",), 0), (("check",), 1), (("lineage",), 1), (("show", "x"), 1), (("trace", "x"), 1),
                        (("compare", alone, alone), 0), (("explain", alone, alone), 0)):  # fmt: skip
        left, out, err = run(*words, "--registry", nowhere)
        assert left == code, words
        if words[0] not in ("compare", "explain"):
            assert f"no registry at {nowhere}" in out + err, words
    assert not nowhere.parent.exists()


def test_an_empty_registry_and_one_with_nothing_else_close(run: Run, tmp_path: Path, alone: Path) -> None:
    run("add", alone, "--license", "mit")
    code, _, err = run("trace", alone, "--fail-on", "copy")
    assert (code, "holds no other model" in err) == (3, True)
    run("remove", "alone")
    code, _, err = run("trace", alone, "--fail-on", "copy")
    assert (code, "is empty" in err) == (3, True)


def test_a_mistyped_against_is_an_error_and_an_unreadable_file_closes(run: Run, models: Path, alone: Path) -> None:
    assert run("trace", alone, "--against", models / "typo", "--fail-on", "copy")[0] == 1
    (models.parent / "empty").mkdir()
    assert run("trace", alone, "--against", models.parent / "empty", "--fail-on", "copy")[0] == 1
    assert run("trace", alone, "--against", models, "--fail-on", "copy")[0] == 0
    (models / "broken.safetensors").write_bytes(b"\xff" * 40)
    code, out, err = run("trace", alone, "--against", models, "--fail-on", "copy", "--json")
    assert (code, json.loads(out)["verdict"]) == (3, "inconclusive")
    assert "not tested: a file cannot be read: " in err
    code, out, _ = run("trace", alone, "--against", models)
    assert (code, "not tested" in out, "no-known-parent" in out) == (0, True, False)


def test_weights_that_are_gone_close(run: Run, models: Path) -> None:
    run("add", models, "--license", "mit")
    (models / "a.safetensors").unlink()
    for suspect in ("child", "alone"):  # kin shows in the sketch, but not what was done
        code, _, err = run("trace", models.parent / f"{suspect}.safetensors", "--fail-on", "quantized")
        assert (code, "not tested: a: " in err) == (3, True)
        assert run("compare", "a", models.parent / f"{suspect}.safetensors", "--fail-on", "quantized")[0] == 3
    assert run("trace", models.parent / "child.safetensors", "--fail-on", "quantized", "--allow-untested")[0] == 0


def test_models_that_cannot_be_put_side_by_side_close(run: Run, models: Path, tmp_path: Path) -> None:
    save_file({"b": np.arange(5, dtype=np.float32)}, models / "vector.safetensors")
    code, out, err = run("trace", tmp_path / "alone.safetensors", "--against", models, "--fail-on", "copy", "--json")
    answer = json.loads(out)
    assert (code, answer["verdict"]) == (3, "inconclusive")
    assert [(t["what"], t["model"]) for t in answer["not_tested"]] == [("weights", "vector")]
    assert err.splitlines()[-1].startswith("closed: ")
    code, out, err = run("compare", models / "vector.safetensors", tmp_path / "alone.safetensors", "--fail-on", "copy")
    assert (code, "not tested: " in err) == (3, True)
    assert run("compare", models / "vector.safetensors", tmp_path / "alone.safetensors")[0] == 0
    explained = json.loads(run("explain", models / "vector.safetensors", tmp_path / "alone.safetensors", "--json")[1])
    assert explained["kind"] is None
    assert {layer["status"] for layer in explained["layers"]} == {"not compared"}
    drawn = run("lineage", models)[1]
    assert "alone" not in drawn
    assert [line.split()[:3] for line in drawn.splitlines() if "vector" in line] == [["not", "tested", "vector"]]


def test_distilled_is_refused_only_by_those_who_ask_the_models(run: Run, models: Path) -> None:
    run("add", models)
    alone = models.parent / "alone.safetensors"
    code, _, err = run("trace", alone, "--fail-on", "distilled")
    assert (code, "that takes --probes" in err) == (3, True)
    assert run("compare", models / "a.safetensors", alone, "--fail-on", "distilled")[0] == 3
    assert (
        run("compare", models / "a.safetensors", models.parent / "child.safetensors", "--fail-on", "distilled")[0] == 0
    )


def test_whatever_a_comparison_could_not_look_for_closes() -> None:
    a, b = from_arrays(arrays_of(0), "a"), from_arrays(arrays_of(1), "b")
    found = compare(a, b)
    policy = Policy.of(["copy"])
    assert not judge_comparison(policy, found).closed
    entry = {"what": "units-reordered", "model": "b", "why": "its units may have been reordered"}
    ruling = judge_comparison(policy, replace(found, not_tested=(entry,)))
    assert (ruling.closed, ruling.untested) == (True, ("b: its units may have been reordered",))
    assert not judge_comparison(replace(policy, allow_untested=True), replace(found, not_tested=(entry,))).closed
    assert not judge_comparison(Policy(), replace(found, not_tested=(entry,))).closed
    kin = replace(found, verdict="related", relation=Relation(RelationKind.PRUNED), not_tested=(entry,))
    assert not judge_comparison(policy, kin).closed  # kinship is shown: the rest is answered
    assert judge_comparison(Policy.of(["Pruned, merged"]), kin).violations == ("the relation to b is pruned",)
    assert judge_comparison(Policy.of(["related"]), kin).violations == ("the verdict is related",)


@pytest.mark.parametrize("words", [[""], ["copy", ""], [" , "], []])
def test_a_policy_without_a_word_is_misuse(run: Run, alone: Path, words: list[str]) -> None:
    for option in ({"relations": words}, {"licences": words}):
        with pytest.raises(MisuseError, match="without a value"):
            Policy.of(**option)
    assert run("trace", alone, "--deny-license", "")[0] == 2
    assert run("trace", alone, "--fail-on", "")[0] == 2
    assert run("trace", alone, "--deny-license", "gpl-3.O")[0] == 2
    with pytest.raises(MisuseError, match="unknown relation 'cousin'"):
        Policy.of(["cousin"])


def test_many_things_are_counted_on_the_screen_and_told_in_the_document(run: Run, tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(20):
        (folder / f"broken{i}.safetensors").write_bytes(b"\xff" * 40)
    save_file(arrays_of(1), folder / "one.safetensors")
    code, out, err = run("trace", alone, "--against", folder, "--fail-on", "copy", "--json")
    assert (code, len(json.loads(out)["policy"]["not_tested"])) == (3, 20)
    assert (err.count("not tested: a file"), "and 8 more" in err) == (12, True)
    assert "and 14 more" in run("trace", alone, "--against", folder)[1]


# The example


def gate(folder: Path, *words: str, program: str | None = None, **environment: str) -> tuple[int, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}" if program is None else program
    done = subprocess.run(
        [ROOT / "examples" / "gate.sh", *words], cwd=folder, env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ("accepted" in done.stdout) == (done.returncode == 0)
    assert done.returncode == 0 or "refused" in done.stderr
    return done.returncode, done.stderr


def fake(folder: Path, body: str) -> str:
    """A path on which `stemma` is a script."""
    folder.mkdir()
    (folder / "stemma").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "stemma").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.slow
def test_the_example_refuses_whatever_goes_wrong(run: Run, models: Path, tmp_path: Path) -> None:
    assert gate(tmp_path, "alone.safetensors")[0] == 3  # no registry yet
    run("add", models, "--license", "mit")
    assert gate(tmp_path, "alone.safetensors")[0] == 0
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "alone.safetensors").read_bytes()[:3000])
    for words, code in ((("copy.safetensors",), 3), (("broken.safetensors",), 1), (("missing.safetensors",), 1),
                        ((), 2), (("",), 2), (("--help",), 1),
                        (("alone.safetensors", "copy.safetensors"), 2)):  # fmt: skip
        assert gate(tmp_path, *words)[0] == code, words
        if code == 3:
            assert json.loads((tmp_path / "trace.json").read_text())["verdict"] == "copy"
    assert gate(tmp_path, "alone.safetensors", STEMMA_REGISTRY=str(tmp_path))[0] == 1
    assert gate(tmp_path, "alone.safetensors", STEMMA_REGISTRY=str(tmp_path / "broken.safetensors"))[0] == 1
    assert gate(tmp_path, "alone.safetensors", STEMMA_REGISTRY=str(tmp_path / "typo.db"))[0] == 3
    assert gate(tmp_path, "alone.safetensors", program="/usr/bin:/bin")[0] == 127
    for i, (body, code) in enumerate((("exit 0", 1), ("echo '{}'", 1), ("exit 2", 2), ("kill -9 $$", 137))):
        assert gate(tmp_path, "alone.safetensors", program=fake(tmp_path / f"bin{i}", body))[0] == code, body
    run("add", tmp_path / "alone.safetensors", "--name", "unstated")
    save_file(child_of(arrays_of(9), 4), tmp_path / "kin.safetensors")
    code, err = gate(tmp_path, "kin.safetensors")
    assert (code, "licence of unstated is not recorded" in err) == (3, True)
