"""SPDX 3.0.1: models as `ai_AIPackage`, ancestors by `descendantOf`, the evidence as annotations of that relationship.

Written by `spdx-python-model`, whose classes are made from the SHACL model of the specification and check every value.
The documents conform to the profiles core, software and simple licensing. The AI profile asks for a supplier, a place
of download and a time of release, which weights do not tell, so conformance with it is not claimed.
"""

import io
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from stemma.export.standards.findings import NO_ANCESTOR, TOOL, ExportedFindings, Kin, ModelFindings, ancestry, clean

MEDIA_TYPE = "application/spdx+json"

PROFILES = ("core", "simpleLicensing", "software")


def spdx(findings: ExportedFindings) -> bytes:
    """An SPDX 3.0.1 document, as JSON-LD.

    Args:
        findings: What was found.

    Returns:
        UTF-8 text; the same findings give the same bytes.
    """
    from spdx_python_model import v3_0_1 as model

    writer = _Document(model, findings)
    roots = [writer.add_model(m) for m in findings.models]
    objects = model.SHACLObjectSet(writer.finished(roots))
    out = io.BytesIO()
    model.JSONLDSerializer().write(objects, out)
    text = json.dumps(json.loads(out.getvalue()), indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


class _Document:
    """The elements of one document, each made once."""

    def __init__(self, model: Any, findings: ExportedFindings) -> None:
        self._model, self._findings = model, findings
        self._elements: dict[str, Any] = {}
        self._packages: dict[tuple[str, str], Any] = {}
        self._counts: dict[str, int] = {}
        self._descents: set[tuple[str, str]] = set()
        self._licensed: set[str] = set()
        self._creation = model.CreationInfo(specVersion="3.0.1", created=datetime.fromisoformat(findings.created))
        agent = self._add("SoftwareAgent", name=f"{TOOL} {findings.version}")
        tool = self._add("Tool", name=f"{TOOL} {findings.version}")
        for field, value in {"createdBy": [agent._id], "createdUsing": [tool._id]}.items():
            setattr(self._creation, field, value)

    def finished(self, roots: Iterable[Any]) -> list[Any]:
        """Everything, with the document itself."""
        names = ", ".join(clean(m.name) for m in self._findings.models[:3])
        inside = list(self._elements.values())
        profiles = [getattr(self._model.ProfileIdentifierType, name) for name in PROFILES]
        self._add("SpdxDocument", name=f"Provenance of {clean(names)}", profileConformance=profiles,
                  rootElement=list(roots), element=inside)  # fmt: skip
        return [self._creation, *self._elements.values()]

    def _add(self, kind: str, *about: Any, **fields: Any) -> Any:
        """A new element; its identifier is made from what the document is about, its kind and its place."""
        place = self._counts[kind] = self._counts.get(kind, 0) + 1
        name = f"urn:uuid:{self._findings.identifier('spdx', kind, place, *about)}"
        element = getattr(self._model, kind)(
            _id=name, creationInfo=self._creation, **{k: v for k, v in fields.items() if v is not None}
        )  # fmt: skip
        self._elements[element._id] = element
        return element

    def add_model(self, model: ModelFindings) -> Any:
        """A model with its files, licence and ancestors."""
        package = self._package(model.name, model.digest)
        if model.untested:
            setattr(package, "ai_limitation", "\n".join(model.untested))  # noqa: B010
        self._files(package, model)
        self._licence(package, model.licence)
        known = {(): package}
        for path, kin, _ in ancestry(self._findings, model):
            parent = self._package(kin.name, kin.digest)
            self._descends(known[path[:-1]], parent, kin)
            known[path] = parent
        for statement in _statements(model):
            self._annotate(package, statement)
        for line in model.claims:
            self._annotate(package, {"claim": line.about, "verdict": line.verdict, "sentence": clean(line.sentence)})
        return package

    def _package(self, name: str, digest: str) -> Any:
        known = self._packages.get((name, digest))
        if known is None:
            known = self._add(
                "ai_AIPackage", digest, name=clean(name), software_packageVersion=digest or None,
                software_primaryPurpose=self._model.software_SoftwarePurpose.model,
            )  # fmt: skip
            self._packages[name, digest] = known
        return known

    def _files(self, package: Any, model: ModelFindings) -> None:
        kind, sha256 = self._model.software_FileKindType.file, self._model.HashAlgorithm.sha256
        files = [
            self._add("software_File", f.name, name=clean(f.name), software_fileKind=kind,
                      verifiedUsing=[self._model.Hash(algorithm=sha256, hashValue=f.sha256)])
            for f in model.files
        ]  # fmt: skip
        if files:
            self._relate(package, self._model.RelationshipType.contains, files)

    def _relate(self, start: Any, kind: str, ends: list[Any], **more: Any) -> Any:
        return self._add("Relationship", start._id, kind, relationshipType=kind, from_=start, to=ends, **more)

    def _licence(self, package: Any, text: str | None) -> None:
        """The licence as it is stated: an expression where SPDX knows it, else its text."""
        if not text or package._id in self._licensed:
            return
        self._licensed.add(package._id)
        if expression := _expression(text):
            fields = {"simplelicensing_licenseExpression": expression}
            licence = self._add("simplelicensing_LicenseExpression", text, **fields)
        else:
            fields = {"simplelicensing_licenseText": clean(text)}
            licence = self._add("simplelicensing_SimpleLicensingText", text, **fields)
        self._relate(package, self._model.RelationshipType.hasDeclaredLicense, [licence])

    def _descends(self, child: Any, parent: Any, kin: Kin) -> None:
        """One `descendantOf`, once for each pair, with its evidence."""
        kind = self._model.RelationshipType.descendantOf
        if (child._id, parent._id) in self._descents:
            return
        self._descents.add((child._id, parent._id))
        relationship = self._relate(
            child, kind, [parent], description=clean(f"{kin.relation}: {kin.reason}"),
            completeness=self._model.RelationshipCompleteness.noAssertion,
        )  # fmt: skip
        self._annotate(relationship, kin.evidence(self._findings.version))
        self._licence(parent, kin.licence)

    def _annotate(self, subject: Any, statement: dict[str, Any]) -> None:
        self._add(
            "Annotation", subject._id, annotationType=self._model.AnnotationType.other, contentType="application/json",
            subject=subject, statement=json.dumps(statement, sort_keys=True, ensure_ascii=False),
        )  # fmt: skip


def _statements(model: ModelFindings) -> Iterator[dict[str, Any]]:
    """What was found that is no ancestor: the verdict, relatives, possible parents, and what was not tested."""
    verdict: dict[str, Any] = {
        "verdict": model.verdict, "alpha": model.alpha, "searched": model.n_searched,
        "not_tested": list(model.untested), "policy_violations": [clean(v) for v in model.violations],
    }  # fmt: skip
    note = "" if model.parents else NO_ANCESTOR.get(model.verdict, "")
    yield verdict | ({"note": note} if note else {})
    for kin in model.others:
        yield {"related": clean(kin.name), "digest": kin.digest, "relation": kin.relation, "role": kin.role,
               "p_value": kin.p_value, "log10_p": kin.log10_p, "reason": clean(kin.reason)}  # fmt: skip
    if model.possible:
        possible = [
            {"name": clean(p["name"]), "digest": p["digest"], "probability": p["probability"],
             "or": [clean(n) for n in p["or"]]} for p in model.possible
        ]  # fmt: skip
        yield {"possible_parents": possible, "coverage": model.coverage}


def _expression(text: str) -> str:
    """The licence as an SPDX expression; empty where a name in it is not on the SPDX list."""
    from license_expression import ExpressionError, get_spdx_licensing

    try:
        parsed = get_spdx_licensing().parse(text, validate=True)
    except (ExpressionError, ValueError, TypeError, RecursionError):
        return ""
    return "" if parsed is None else str(parsed)
