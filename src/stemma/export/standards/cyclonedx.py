"""CycloneDX 1.7: models as components, established ancestors in their pedigree, the evidence beside each.

The package `cyclonedx-python-lib` writes everything but model cards and annotations, which it does not know: those are
added to its JSON in `_with_cards`, and nowhere else.

Properties, in Stemma's own namespace, by name:

- `stemma:digest`: of the weights, whatever the file format; `stemma:verdict`: of the trace.
- `stemma:relation`, `stemma:steps`: what the model is to this ancestor.
- `stemma:share`: share of the model that comes from this ancestor.
- `stemma:p-value`, `stemma:log10-p`: of the test that the two are related; `stemma:test`: its statistic;
  `stemma:method`: Stemma and its version.
- `stemma:confidence`: calibrated probability that it is an ancestor, or `not calibrated`.
- `stemma:related`: a relative that is no established ancestor; `stemma:possible-parent`: with its probability.
- `stemma:not-tested`: something that bears on the verdict, or that the verdict does not cover.
"""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from stemma.export.standards.findings import NO_ANCESTOR, TOOL, ExportedFindings, Kin, ModelFindings, ancestry, clean

MEDIA_TYPE = "application/vnd.cyclonedx+json; version=1.7"


def cyclonedx(findings: ExportedFindings) -> bytes:
    """A bill of materials in CycloneDX 1.7, as JSON.

    Args:
        findings: What was found.

    Returns:
        UTF-8 text; the same findings give the same bytes.
    """
    from datetime import datetime

    lib = _library()
    tool = lib.Component(type=lib.ComponentType.APPLICATION, name=TOOL, version=findings.version, bom_ref="stemma")
    components = [_model(lib, findings, model, f"model-{i}") for i, model in enumerate(findings.models)]
    alone = components[0] if len(components) == 1 else None
    metadata = lib.BomMetaData(timestamp=datetime.fromisoformat(findings.created), component=alone)
    metadata.tools.components.add(tool)
    bom = lib.Bom(
        components=() if alone else components, metadata=metadata, serial_number=findings.identifier("cyclonedx")
    )  # fmt: skip
    written = lib.make_outputter(bom, lib.OutputFormat.JSON, lib.SchemaVersion.V1_7).output_as_string()
    document = _with_cards(json.loads(written), findings)
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _library() -> Any:
    """The classes of the package that are used; its decorators hide their types from type checkers."""
    from cyclonedx import model, output, schema
    from cyclonedx.contrib.license import factories
    from cyclonedx.model import bom, bom_ref, component, component_evidence

    parts = {
        model: ("HashAlgorithm", "HashType", "Property"),
        component: ("Component", "ComponentType", "Pedigree"),
        component_evidence: ("AnalysisTechnique", "ComponentEvidence", "Identity", "IdentityField", "Method"),
        bom: ("Bom", "BomMetaData"), bom_ref: ("BomRef",), factories: ("LicenseFactory",),
        output: ("make_outputter",), schema: ("OutputFormat", "SchemaVersion"),
    }  # fmt: skip
    return SimpleNamespace(**{name: getattr(module, name) for module, names in parts.items() for name in names})


def _model(lib: Any, findings: ExportedFindings, model: ModelFindings, ref: str) -> Any:
    """A model as a component, with its files, evidence and ancestors."""
    hashes = [[lib.HashType(alg=lib.HashAlgorithm.SHA_256, content=f.sha256)] for f in model.files]
    files = [
        lib.Component(type=lib.ComponentType.FILE, name=clean(f.name), bom_ref=f"{ref}/file-{i}", hashes=hashes[i])
        for i, f in enumerate(model.files)
    ]
    ancestors = _ancestors(lib, findings, model, ref)
    notes = "" if ancestors else NO_ANCESTOR.get(model.verdict, "")
    return lib.Component(
        type=lib.ComponentType.MACHINE_LEARNING_MODEL, name=clean(model.name), bom_ref=ref,
        hashes=hashes[0] if len(hashes) == 1 else (), licenses=_licences(lib, model.licence), components=files,
        properties=_properties(lib, _of_model(model)), evidence=_copies(lib, model),
        pedigree=lib.Pedigree(ancestors=ancestors, notes=notes or None),
    )  # fmt: skip


def _ancestors(lib: Any, findings: ExportedFindings, model: ModelFindings, ref: str) -> list[Any]:
    """The established parents of a model, each with its own in its pedigree."""
    made: dict[tuple[int, ...], Any] = {}
    below: dict[tuple[int, ...], list[Any]] = {}
    for path, kin, _ in ancestry(findings, model):
        made[path] = lib.Component(
            type=lib.ComponentType.MACHINE_LEARNING_MODEL, name=clean(kin.name),
            bom_ref=f"{ref}/ancestor-{'.'.join(map(str, path))}", licenses=_licences(lib, kin.licence),
            evidence=_evidence(lib, kin, findings.version), properties=_properties(lib, _of_kin(kin, findings.version)),
        )  # fmt: skip
        below.setdefault(path[:-1], []).append(made[path])
    for path, parents in below.items():
        if path:
            made[path].pedigree = lib.Pedigree(ancestors=parents)
    return below.get((), [])


def _licences(lib: Any, text: str | None) -> list[Any]:
    return [lib.LicenseFactory().make_from_string(clean(text))] if text else []


def _evidence(lib: Any, kin: Kin, version: str) -> Any:
    """How sure it is that this is an ancestor; without a calibrated probability none is written."""
    sure = None if kin.confidence is None else Decimal(str(kin.confidence))
    told = f"{TOOL} {version}, {kin.test or 'no test'}: {_chance(kin)}; {clean(kin.reason)}"
    method = [] if sure is None else [lib.Method(technique=lib.AnalysisTechnique.OTHER, confidence=sure, value=told)]
    identity = lib.Identity(
        field=lib.IdentityField.NAME, confidence=sure, concluded_value=clean(kin.name), methods=method,
        tools=[lib.BomRef("stemma")],
    )  # fmt: skip
    return lib.ComponentEvidence(identity=[identity])


def _copies(lib: Any, model: ModelFindings) -> Any:
    """The names under which the same weights are known."""
    same, one = lib.AnalysisTechnique.HASH_COMPARISON, Decimal(1)
    found = [
        lib.Identity(
            field=lib.IdentityField.NAME, confidence=one, concluded_value=clean(k.name),
            methods=[lib.Method(technique=same, confidence=one, value=clean(k.reason))],
        )
        for k in model.others if k.test == "digest"
    ]  # fmt: skip
    return lib.ComponentEvidence(identity=found) if found else None


def _chance(kin: Kin) -> str:
    if kin.p_value is None:
        return "shown without a p-value"
    return f"p-value {_p(kin)}" + ("" if kin.log10_p is None else f", log10 p {kin.log10_p:.6g}")


def _p(kin: Kin) -> str:
    """The p-value; below the smallest normal number its logarithm says more."""
    return "< 1e-300" if kin.log10_p is not None and kin.log10_p < -300 else f"{kin.p_value:g}"


def _of_model(model: ModelFindings) -> Iterator[tuple[str, str]]:
    """Name and value of the properties of a model."""
    yield from (("digest", model.digest), ("verdict", model.verdict))
    yield from (("related", f"{k.name}: {k.relation} ({k.role}; {_chance(k)})") for k in model.others)
    yield from (("possible-parent", f"{p['name']}: probability {p['probability']:g}") for p in model.possible)
    yield from (("not-tested", text) for text in model.untested)
    yield from (("policy-violation", text) for text in model.violations)
    figures = {"coverage": model.coverage, "alpha": model.alpha, "searched": model.n_searched}
    yield from ((name, f"{value:g}") for name, value in figures.items() if value is not None)
    yield "licence-source", model.licence_source or ""


def _of_kin(kin: Kin, version: str) -> Iterator[tuple[str, str]]:
    """Name and value of the properties of an ancestor."""
    yield from (("digest", kin.digest), ("relation", kin.relation), ("steps", ", ".join(kin.steps)))
    yield from (("reason", kin.reason), ("method", f"{TOOL} {version}"), ("test", kin.test))
    yield "confidence", "not calibrated" if kin.confidence is None else f"{kin.confidence:g}"
    yield "share", "" if kin.share is None else f"{kin.share:.6g}"
    yield "p-value", "" if kin.p_value is None else _p(kin)
    yield "log10-p", "" if kin.log10_p is None else f"{kin.log10_p:.6f}"
    yield from (("licence-source", kin.licence_source or ""), ("known-from", kin.known_from))


def _properties(lib: Any, words: Iterable[tuple[str, str]]) -> list[Any]:
    return [lib.Property(name=f"stemma:{name}", value=clean(value)) for name, value in words if value]


def _with_cards(document: dict[str, Any], findings: ExportedFindings) -> dict[str, Any]:
    """The document with what the package cannot write: a model card per model, and an annotation per checked claim."""
    main = document["metadata"].get("component")
    written = {c["bom-ref"]: c for c in (*document.get("components", ()), *([main] if main else ()))}
    annotations = []
    for i, model in enumerate(findings.models):
        card: dict[str, Any] = {}
        if model.architecture:
            card["modelParameters"] = {"modelArchitecture": clean(model.architecture)}
        if model.untested:
            card["considerations"] = {"technicalLimitations": list(model.untested)}
        if model.parameters is not None:
            card["properties"] = [{"name": "stemma:parameters", "value": str(model.parameters)}]
        if card:
            written[f"model-{i}"]["modelCard"] = card
        annotations += list(_annotations(model, f"model-{i}", findings))
    return {**document, "annotations": annotations} if annotations else document


def _annotations(model: ModelFindings, ref: str, findings: ExportedFindings) -> Iterator[dict[str, Any]]:
    who = {"component": {"type": "application", "name": TOOL, "version": findings.version}}
    for i, line in enumerate(model.claims):
        yield {
            "bom-ref": f"{ref}/claim-{i}", "subjects": [ref], "annotator": who, "timestamp": findings.created,
            "text": clean(f"Claim about the {line.about}, {line.verdict}: {line.sentence}"),
        }  # fmt: skip
