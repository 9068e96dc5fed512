"""Checks of documents against their published schemas."""

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """The validator of one schema."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_document(text: str) -> dict[str, Any]:
    """A document that follows the schema that it names, has no field that the schema lacks, and no contradiction."""
    document = json.loads(text)
    checker = validator(document["schema"]["name"])
    errors = [f"{error.json_path}: {error.message}" for error in checker.iter_errors(document)]
    assert not errors, errors[:5]
    assert set(document) <= set(checker.schema["properties"])
    assert_consistent(document)
    return document


def assert_consistent(document: dict[str, Any]) -> None:
    """Fields that say the same thing twice agree."""
    verdict, name = document.get("verdict"), document["schema"]["name"]
    if name in ("stemma.trace", "stemma.demo"):
        established = [p for p in document["parents"] if p["direction"] == "parent"]
        assert (verdict == "copy") == bool(document["copies"])
        assert not established or verdict in ("copy", "descends")
        assert all(p["role"] == "parent" for p in established)
        for relative in (*document["parents"], *document["relatives"]):
            assert relative["direction"] == ("parent" if relative["role"] == "parent" else "unknown")
            assert not (relative["relation"] == "finetuned" and relative["role"] in ("relative", "unknown")), relative
        if verdict in ("no-known-parent", "inconclusive"):
            assert not document["parents"]
            assert not document["relatives"]
        assert not (verdict == "no-known-parent" and document["not_tested"])
        for row in document["candidates"]:
            assert (row["relation"] is None) <= (row["verdict"] == "inconclusive")
            assert (row["relation"] == "unrelated") <= (row["verdict"] == "independent")
    if name == "stemma.compare":
        assert (document["relation"] == "unrelated") == (verdict == "independent")
        assert (document["relation"] is None) <= (verdict == "inconclusive")
        axes = [document[axis]["verdict"] for axis in ("weights", "function") if document[axis] is not None]
        assert verdict == "related" or "related" not in axes
    if name == "stemma.explain":
        assert document["kind"] not in (None, "unrelated") or not document["steps"]
        assert document["kind"] is None or all(layer["status"] != "not compared" for layer in document["layers"])
    if document.get("policy") is not None:
        policy = document["policy"]
        refused = bool(policy["violations"]) or (bool(policy["not_tested"]) and not policy["allow_untested"])
        assert policy["closed"] == refused
