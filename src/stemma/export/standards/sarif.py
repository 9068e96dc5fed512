"""SARIF 2.1.0: findings as results, for code scanning and review tools; written without any package."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from stemma.export.standards.findings import NO_ANCESTOR, TOOL, ExportedFindings, Kin, ModelFindings, clean

MEDIA_TYPE = "application/sarif+json"

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of result.

    Attributes:
        id: Its name; it stays.
        level: How grave such results are.
        short: What was found, in a few words.
        full: What it means.
        help: What to do.
    """

    id: str
    level: Literal["error", "warning", "note"]
    short: str
    full: str
    help: str


RULES = (
    Rule("claim-contradicted", "error", "A claim is contradicted by the weights",
         "The files of the model claim something that the comparison of weights contradicts.",
         "Ask where the model comes from before it is used, and correct its card."),
    Rule("licence-denied", "error", "A refused licence applies",
         "A policy refuses a licence or a relation that was found.",
         "Do not use the model, or change the policy on purpose."),
    Rule("licence-inherited", "warning", "The licence of a parent may apply",
         "The weights were made from those of a model whose licence is recorded; its terms may apply.",
         "Read the licence of the parent and state it in the card."),
    Rule("inconclusive", "warning", "Provenance is inconclusive",
         "Not everything could be tested: no parent is found, and none is excluded.",
         "See what was not tested; give the missing files, or probe inputs, and trace again."),
    Rule("no-known-parent", "note", "No known parent",
         "Every model searched was tested and excluded. A parent that was not searched cannot be found.",
         "Enrol further models and trace again."),
    Rule("descends", "note", "The model descends from a known model",
         "The weights were made from those of another model.",
         "Name the parent in the card as base model."),
    Rule("copy", "note", "The model is a copy of a known model",
         "The same weights are known under another name. Which of the two came first is not shown.",
         "Use the licence and the name of the original."),
    Rule("related", "note", "The model is related to a known model",
         "The two models share weights or behaviour; which of them came first is not established.",
         "Enrol further models of the family and trace again."),
)  # fmt: skip
"""All rules; results name them by id and by place."""

_PLACE = {rule.id: i for i, rule in enumerate(RULES)}


def sarif(findings: ExportedFindings) -> bytes:
    """A SARIF 2.1.0 log with one run.

    Args:
        findings: What was found.

    Returns:
        JSON in UTF-8; the same findings give the same bytes.
    """
    artifacts, places = _artifacts(findings)
    uris = {i: (place, artifacts[place]["location"]["uri"]) for i, place in places.items()}
    results = [
        _result(rule, clean(text), model, uris.get(i))
        for i, model in enumerate(findings.models)
        for rule, text in dict.fromkeys(_results(model))
    ]
    run = {
        "tool": {"driver": {"name": TOOL, "version": findings.version, "rules": [_rule(r) for r in RULES]}},
        "automationDetails": {"id": "stemma/provenance/", "guid": str(findings.identifier("sarif"))},
        "invocations": [{"executionSuccessful": True, "endTimeUtc": findings.created}],
        "artifacts": artifacts,
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return (json.dumps(log, indent=2, ensure_ascii=False) + "\n").encode()


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": f"stemma/{rule.id}", "name": "".join(w.capitalize() for w in rule.id.split("-")),
        "shortDescription": {"text": f"{rule.short}."}, "fullDescription": {"text": rule.full},
        "help": {"text": rule.help}, "defaultConfiguration": {"level": rule.level},
    }  # fmt: skip


def _artifacts(findings: ExportedFindings) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """All files, and the place of each model's first weight file among them."""
    artifacts: list[dict[str, Any]] = []
    places: dict[int, int] = {}
    several = len(findings.models) > 1
    for i, model in enumerate(findings.models):
        for f in sorted(model.files, key=lambda f: -f.size):
            places.setdefault(i, len(artifacts))
            name = f"{model.name}/{f.name}" if several else f.name
            location = {"uri": quote(name.encode("utf-8", "backslashreplace"))}
            artifacts.append({"location": location, "length": f.size, "hashes": {"sha-256": f.sha256}})
    return artifacts, places


def _result(rule: str, text: str, model: ModelFindings, artifact: tuple[int, str] | None) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"name": clean(model.name), "fullyQualifiedName": model.digest, "kind": "model"}]
    }  # fmt: skip
    if artifact is not None:
        location["physicalLocation"] = {"artifactLocation": {"index": artifact[0], "uri": artifact[1]}}
    what = hashlib.sha256(f"{model.digest} {rule} {text}".encode()).hexdigest()
    return {
        "ruleId": f"stemma/{rule}", "ruleIndex": _PLACE[rule], "level": RULES[_PLACE[rule]].level,
        "message": {"text": text}, "locations": [location],
        "partialFingerprints": {"stemma/v1": what},
        "properties": {
            "verdict": model.verdict, "notTested": list(model.untested), "alpha": model.alpha,
            "searched": model.n_searched,
            "possibleParents": [{"name": clean(p["name"]), "probability": p["probability"]} for p in model.possible],
        },
    }  # fmt: skip


def _results(model: ModelFindings) -> Iterator[tuple[str, str]]:
    """Rule and message of each result; there is always one that says the verdict."""
    name = clean(model.name)
    for line in model.claims:
        if line.verdict == "contradicted":
            yield "claim-contradicted", f"{name}: {line.sentence}"
    yield from (("licence-denied", f"{name}: {violation}.") for violation in model.violations)
    sources = [k for k in model.kin if k.established or k.role in ("copy", "same")]
    for kin in sources:
        if kin.licence:
            tie = "descends from" if kin.established else "has the weights of"
            by = f"; {clean(kin.known_from)}" if kin.known_from else ""
            yield "licence-inherited", f"{name} {tie} {clean(kin.name)}, which is under {clean(kin.licence)}{by}."
    if model.parents:
        yield from (("descends", _descends(name, kin)) for kin in model.parents)
    for kin in model.others:
        if kin.role == "copy":
            yield "copy", f"{name} has the same weights as {clean(kin.name)} ({kin.relation}: {clean(kin.reason)})."
        elif not model.parents:
            by = f"; {clean(kin.known_from)}" if kin.known_from else ""
            yield "related", f"{name} is related to {clean(kin.name)} ({kin.relation}{_chance(kin)}{by})."
    if model.verdict in ("inconclusive", "no-known-parent"):
        why = "; ".join(model.untested) if model.verdict == "inconclusive" else ""
        yield model.verdict, f"{name}: {NO_ANCESTOR[model.verdict]}{f' {why}' if why else ''}"


def _descends(name: str, kin: Kin) -> str:
    share = f", share {kin.share:.3g}" if kin.relation == "merged" and kin.share is not None else ""
    sure = "" if kin.confidence is None else f", probability {kin.confidence:.3g}"
    return f"{name} was made from {clean(kin.name)} ({kin.relation}{_chance(kin)}{sure}{share}): {clean(kin.reason)}."


def _chance(kin: Kin) -> str:
    if kin.p_value is None:
        return ""
    small = kin.log10_p is not None and kin.log10_p < -300
    return ", p < 1e-300" if small else f", p = {kin.p_value:.2g}"
