"""An in-toto statement (v1): the files by their digests, and what was found about the model that they hold."""

import json
from collections.abc import Mapping
from typing import Any

from stemma.checkpoints.digest import is_partial
from stemma.errors import StatementError
from stemma.export.standards.findings import NO_ANCESTOR, TOOL, ExportedFindings, ModelFindings, ancestry, clean

MEDIA_TYPE = "application/vnd.in-toto+json"

PREDICATE = "urn:stemma:provenance:v1"
"""Type of Stemma's own predicate; a name, and no address."""

PREDICATES = {"intoto": PREDICATE, "cyclonedx": "https://cyclonedx.org/bom", "spdx": "https://spdx.dev/Document"}
"""By format: the type of the predicate that holds it, as in-toto names them."""


def intoto(findings: ExportedFindings) -> bytes:
    """A statement with Stemma's own predicate, not signed.

    Args:
        findings: What was found; the files must be at hand.

    Returns:
        JSON; the same findings give the same bytes.
    """
    return statement(findings, PREDICATE, _predicate(findings))


def statement(findings: ExportedFindings, predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """A statement about the files of the models.

    The names of files are relative to the model's folder; where there are several models, its name stands before.

    Args:
        findings: Which models and files.
        predicate_type: Type of what is stated.
        predicate: What is stated.

    Returns:
        JSON with sorted keys.

    Raises:
        StatementError: If a model's files are not at hand: nothing else says what the statement is about.
    """
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import STATEMENT_TYPE_URI, Statement

    if part := next((m for m in findings.models if not m.files and is_partial(m.digest)), None):
        raise StatementError(
            f"only a sample of {clean(part.name)[:100]} was read, and a statement is about whole files: fetch it "
            "and give its path"
        )
    if gone := next((m for m in findings.models if not m.files), None):
        raise StatementError(
            f"the files of {clean(gone.name)[:100]} are not at hand, or hold other weights by now, so a statement "
            "would be about nothing. Give the path of its checkpoint"
        )
    several = len(findings.models) > 1
    files = [(f"{m.name}/{f.name}" if several else f.name, f.sha256) for m in findings.models for f in m.files]
    subjects = [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in files]
    descriptors = [ResourceDescriptor(name=clean(name), digest={"sha256": sha256}).pb for name, sha256 in files]
    Statement(descriptors, predicate_type, dict(predicate)).validate()
    made = {"_type": STATEMENT_TYPE_URI, "subject": subjects, "predicateType": predicate_type, "predicate": predicate}
    return json.dumps(made, sort_keys=True, indent=2).encode() + b"\n"  # names are exact: in ASCII they are harmless


def _predicate(findings: ExportedFindings) -> dict[str, Any]:
    return {
        "tool": {"name": TOOL, "version": findings.version},
        "created": findings.created,
        "models": [_of_model(findings, model) for model in findings.models],
    }


def _of_model(findings: ExportedFindings, model: ModelFindings) -> dict[str, Any]:
    note = "" if model.parents else NO_ANCESTOR.get(model.verdict, "")
    ancestors = [
        {"path": list(path), "name": clean(kin.name), "digest": {"stemma": kin.digest}, "licence": _text(kin.licence),
         **kin.evidence(findings.version)}
        for path, kin, _ in ancestry(findings, model)
    ]  # fmt: skip
    related = [
        {"name": clean(k.name), "digest": {"stemma": k.digest}, "licence": _text(k.licence),
         **k.evidence(findings.version)}
        for k in model.others
    ]  # fmt: skip
    possible = [
        {"name": clean(p["name"]), "digest": {"stemma": p["digest"]} if p["digest"] else None,
         "probability": p["probability"], "or": [clean(n) for n in p["or"]]}
        for p in model.possible
    ]  # fmt: skip
    return {
        "name": clean(model.name), "digest": {"stemma": model.digest}, "verdict": model.verdict, "note": note or None,
        "alpha": model.alpha, "searched": model.n_searched, "ancestors": ancestors, "related": related,
        "possible_parents": possible, "coverage": model.coverage, "not_tested": list(model.untested),
        "policy_violations": [clean(v) for v in model.violations], "licence_as_stated": _text(model.licence),
        "claims": [
            {"about": c.about, "stated": clean(c.stated), "verdict": c.verdict, "sentence": clean(c.sentence)}
            for c in model.claims
        ],
    }  # fmt: skip


def _text(text: str | None) -> str | None:
    return clean(text) if text else None
