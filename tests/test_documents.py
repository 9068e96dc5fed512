"""Every document follows its published schema, says what was asked, and does not contradict itself."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma
from checkpoints import Run, arrays_of, child_of
from documents import SCHEMAS, check_document
from edited_networks import trained
from stemma.application.document import Document
from stemma.checkpoints.save import save

pytestmark = pytest.mark.anywhere

spec = importlib.util.spec_from_file_location("schemas", SCHEMAS.with_suffix(".py"))
assert spec is not None
assert spec.loader is not None
GENERATOR = importlib.util.module_from_spec(spec)
spec.loader.exec_module(GENERATOR)

DOCUMENTS: list[type[Document]] = GENERATOR.documents()


def test_every_document_has_a_schema_of_its_own() -> None:
    names = [kind.SCHEMA.name for kind in DOCUMENTS]
    assert len(set(names)) == len(names)
    assert {f"{name}.schema.json" for name in names} == {file.name for file in SCHEMAS.iterdir()}


@pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.SCHEMA.name)
def test_published_schemas_are_those_of_the_dataclasses(kind: type[Document]) -> None:
    text = (SCHEMAS / f"{kind.SCHEMA.name}.schema.json").read_text()
    assert text == GENERATOR.text_of(kind), "run: make schemas"
    schema = json.loads(text)
    for part in (schema, *(part for name, part in schema["$defs"].items() if name != "ModelRef")):
        missing = [name for name, field in part.get("properties", {}).items() if not field.get("description")]
        assert not missing, (part["title"], missing)
    assert {"schema", "stemma_version", "created", "asked"} <= set(schema["required"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, a child, a copy and a stranger; a trained network and probe inputs for it."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "models").mkdir()
    save_file(arrays_of(0), folder / "models" / "a.safetensors", metadata={"license": "gpl-3.0"})
    save_file(arrays_of(1), folder / "models" / "stranger.safetensors")
    save_file(child_of(arrays_of(0), 5), folder / "child.safetensors")
    save_file(arrays_of(0), folder / "copy.safetensors")
    save_file({"w": np.ones((3, 3), np.float32)}, folder / "tiny.safetensors")
    save(trained("mlp"), folder / "net")
    return folder


SHORT = (
    "add models child.safetensors missing.safetensors",
    "scan models",
    "list",
    "show a",
    "check",
    "trace copy.safetensors --registry r.db",
    "trace child.safetensors --against models",
    "trace child.safetensors --against models --fail-on related --deny-license gpl-3.0",
    "trace tiny.safetensors --against models",
    "trace net --against net models --probes noise:n=16,seed=0",
    "compare models/a.safetensors child.safetensors",
    "compare models/a.safetensors models/stranger.safetensors --fail-on related --allow-untested",
    "compare models/a.safetensors tiny.safetensors",
    "compare net net --probes noise:n=16,seed=0",
    "explain models/a.safetensors child.safetensors",
    "explain models/a.safetensors models/stranger.safetensors",
    "explain models/a.safetensors tiny.safetensors",
    "explain models/a.safetensors copy.safetensors",
    "lineage models child.safetensors copy.safetensors",
    "distance net net --probes noise:n=16,seed=0",
    "fingerprint child.safetensors",
    "fingerprint net --method outputs --probes noise:n=16,seed=0 --out values.npz",
    "fidelity net --probes noise:n=64,seed=0 --level .9",
    "prune net --ratio .3 --dry-run",
    "prune net --ratio .3 --probes noise:n=64 --out smaller",
    "verify edit smaller --probes noise:n=64",
    "export child.safetensors --against models --format sarif",
    "export --all --format sarif --out all.sarif",
    "zoo list",
    "zoo show mlp/copy",
    "zoo show tree:mlp",
    "remove a",
)


def test_commands_print_documents_of_their_schemas(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    seen: set[str] = set()
    for line in SHORT:
        words = line.split()
        _, out, err = run(*words, "--json")
        assert out, (line, err)
        document = check_document(out)
        assert document["stemma_version"] == stemma.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["created"])
        given = json.dumps(document["asked"])
        assert all(json.dumps(word) in given for word in words if "." in word and not word.startswith(".")), line
        seen.add(document["schema"]["name"])
    assert len(seen) >= 16


def test_what_a_document_says_was_asked_is_what_was_asked(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    document = json.loads(run("compare", "models/a.safetensors", "child.safetensors", "--alpha", ".05", "--json")[1])
    asked = {name: value for name, value in document["asked"].items() if value}
    assert asked.pop("networks") == {"network": None, "allow_code": False, "device": None, "data": None}
    asked.pop("registry")
    assert asked == {"a": "models/a.safetensors", "b": "child.safetensors", "alpha": 0.05}
    assert document["schema"] == {"name": "stemma.compare", "version": 1}
    assert list(document)[:4] == ["schema", "stemma_version", "created", "asked"]


def test_the_same_question_at_the_same_time_gives_the_same_bytes(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    words = ("trace", "child.safetensors", "--against", "models", "--json")
    first, second = run(*words)[1], run(*words)[1]
    assert first == second
    assert json.loads(first)["created"] == "2023-11-14T22:13:20Z"


def test_a_document_holds_no_password() -> None:
    from stemma.application.lineage import LineageDocument, LineageRequest

    empty: dict[str, Any] = {name: () for name in ("models", "edges", "roots", "families", "refused", "receipts")}
    empty |= {name: () for name in ("missing_ancestors", "evidence", "cannot_see", "not_tested")}
    for url, shown in (
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se/cr@t@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://host:5432/db", "postgresql+psycopg://host:5432/db"),
        ("C:/me@home/registry.db", "C:/me@home/registry.db"),
    ):
        document = LineageDocument.of(LineageRequest(registry=url), **empty).to_dict()
        assert document["asked"]["registry"] == shown


def test_an_error_holds_no_password(run: Run) -> None:
    code, _, err = run("list", "--registry", "postgresql://me:secret@host/db")
    assert code == 1
    assert "me:***@host" in err


@pytest.mark.parametrize("epoch", ["9" * 20, "²", "soon", ""])
def test_a_time_that_is_none_is_not_taken(run: Run, epoch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    code, out, _ = run("list", "--json")
    assert code == 0
    assert json.loads(out)["created"].startswith("20")


def test_the_check_sees_documents_that_are_wrong(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    document = json.loads(run("compare", "models/a.safetensors", "child.safetensors", "--json")[1])
    for change in ({"verdict": "cousin"}, {"extra": 1}, {"relation": "unrelated"}, {"a": {"name": "a"}}):
        with pytest.raises(AssertionError):
            check_document(json.dumps(document | change))
