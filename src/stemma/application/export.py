"""Writes what was found in the formats of other tools. Request, answer and JSON document of `stemma export`."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.claims import check_claims
from stemma.application.document import Document, Progress, Schema
from stemma.application.exported_files import files_with_weights
from stemma.application.lineage import LineageRequest, lineage
from stemma.application.trace import TraceAnswer, TraceRequest, trace
from stemma.errors import MisuseError, StemmaError
from stemma.types import ClaimLine

if TYPE_CHECKING:
    from stemma.application.policies import Ruling
    from stemma.checkpoints.model import Model
    from stemma.export.standards.findings import ExportedFindings, Kin, ModelFindings
    from stemma.workspace import Workspace

SIGNED = ("cyclonedx", "spdx", "intoto")
"""Formats that an in-toto statement, and so a signature, can hold."""

MAX_TRACED = 12
"""Ancestors that are traced themselves at most."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `stemma export` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model; null for all.
        all: Whether everything that is enrolled, or in the paths, is exported.
        format: Format that is written.
        out: File that is written; null for none.
        against: Checkpoints and folders that are searched instead of the registry.
        registry: Registry; the default one if null.
        alpha: Significance level; the default if null.
        deny_license: Licences that are refused.
        allow_untested: Whether a policy lets pass what could not be tested.
        sign: File of the private key that signs; null for none.
        jobs: Models that are read at once.
    """

    model: str | None = None
    all: bool = False
    format: str
    out: str | None = None
    against: tuple[str, ...] | None = None
    registry: str | None = None
    alpha: float | None = None
    deny_license: tuple[str, ...] | None = None
    allow_untested: bool = False
    sign: str | None = None
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class ExportedModelPart:
    """What was exported of one model.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        verdict: What was found, as of a trace.
        ancestors: Names of its established parents.
        files: Number of its files whose digests are written.
        claims: What its files say, against what was found.
    """

    name: str
    digest: str
    verdict: str
    ancestors: tuple[str, ...]
    files: int
    claims: tuple[ClaimLine, ...]


@dataclass(frozen=True, kw_only=True)
class ExportDocument(Document):
    """What was exported.

    Attributes:
        format: Format that was written.
        media_type: Its media type.
        sha256: SHA-256 of what was written.
        size: Number of its bytes.
        signed_by: SHA-256 of the public key that verifies the signature; null where nothing was signed.
        models: Every model.
        content: What was written; null where it went to a file.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.export", 1)

    asked: ExportRequest
    format: str
    media_type: str
    sha256: str
    size: int
    signed_by: str | None
    models: tuple[ExportedModelPart, ...]
    content: str | None


@dataclass(frozen=True, kw_only=True)
class ExportAnswer:
    """What was found, in the format that was asked for.

    Attributes:
        request: What was asked.
        result: What was found about every model.
        content: The bytes to write.
        media_type: Their type.
        signed_by: Identity of the public key; None where nothing was signed.
        ruling: What a policy says; None where there is none.
        warnings: What must not go unnoticed: a search of nothing, claims that findings contradict.
    """

    request: ExportRequest
    result: "ExportedFindings"
    content: bytes
    media_type: str
    signed_by: str | None = None
    ruling: "Ruling | None" = None
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The document that `stemma export --json` prints."""
        models = tuple(
            ExportedModelPart(m.name, m.digest, m.verdict, tuple(p.name for p in m.parents), len(m.files), m.claims)
            for m in self.result.models
        )
        return ExportDocument.of(
            self.request,
            format=self.request.format,
            media_type=self.media_type,
            sha256=hashlib.sha256(self.content).hexdigest(),
            size=len(self.content),
            signed_by=self.signed_by,
            models=models,
            content=None if self.request.out else self.content.decode(),
        ).to_dict()


def export(request: ExportRequest, progress: Progress | None = None) -> ExportAnswer:
    """Trace a model, or draw the lineage of all, and write what was found in another tool's format.

    Args:
        request: Models, format and key.
        progress: Told what is being done.

    Returns:
        The bytes, and what they say.

    Raises:
        MisuseError: If the arguments contradict each other.
    """
    from stemma.export.standards import FORMATS

    _check(request)
    key = _private_key(request.sign)
    answer = None if request.all else trace(_trace_request(request), progress)
    found = _of_all(request, progress) if answer is None else _of_one(request, answer, progress)
    content, media_type = FORMATS[request.format].write(found), FORMATS[request.format].media_type
    if key is not None:
        from stemma.verification.signatures.dsse import envelope

        content = envelope(_statement(found, request.format, content), key)
        media_type = "application/vnd.dsse.envelope.v1+json"
    contradicted = (
        f"{m.name}: {line.sentence}" for m in found.models for line in m.claims if line.verdict == "contradicted"
    )
    return ExportAnswer(
        request=request, result=found, content=content, media_type=media_type,
        signed_by=None if key is None else key.public.identity,
        ruling=answer.ruling if answer is not None and request.deny_license else None,
        warnings=(*(answer.warnings if answer is not None else ()), *contradicted),
    )  # fmt: skip


def _check(request: ExportRequest) -> None:
    from stemma.export.standards import FORMATS

    if request.format not in FORMATS:
        given = f"--format {request.format[:60]}" if request.format else "--format is missing"
        raise MisuseError(f"{given}: choose one of {', '.join(FORMATS)}")
    if (request.model is None) != request.all:
        raise MisuseError("give one MODEL, or --all for every model that is enrolled, and not both")
    if request.all and request.format == "model-card":
        raise MisuseError("a model card is about one model: give MODEL instead of --all")
    if request.all and request.deny_license:
        raise MisuseError("--deny-license judges one MODEL and not --all")
    if request.sign and request.format not in SIGNED:
        raise MisuseError(f"--sign goes with --format {', '.join(SIGNED[:-1])} or {SIGNED[-1]}, not {request.format}")
    needed = (FORMATS[request.format].module, "in_toto_attestation" if request.sign else "")
    for module in filter(None, needed):  # before anything is read that takes long
        import_module(module)


def _private_key(path: str | None) -> Any:
    if path is None:
        return None
    from stemma.verification.signatures.keys import read_private_key

    return read_private_key(path)


def _statement(found: "ExportedFindings", name: str, content: bytes) -> bytes:
    """The in-toto statement that is signed: about the files, with the format as its predicate."""
    from stemma.export.standards.intoto import PREDICATES, statement

    return content if name == "intoto" else statement(found, PREDICATES[name], json.loads(content))


def _trace_request(request: ExportRequest) -> TraceRequest:
    return TraceRequest(
        model=str(request.model), against=request.against, registry=request.registry, alpha=request.alpha,
        deny_license=request.deny_license, allow_untested=request.allow_untested, jobs=request.jobs,
    )  # fmt: skip


def _of_one(request: ExportRequest, answer: TraceAnswer, progress: Progress | None) -> "ExportedFindings":
    """The trace of one model, and those of its parents."""
    from stemma.application.opening import open_workspace
    from stemma.export.standards.findings import ExportedFindings, of_trace
    from stemma.types import jsonable
    from stemma.workspace.known import own_part

    document = answer.document()
    workspace = open_workspace(request.registry, request.jobs, progress)
    stated = next((r.license for r in workspace.own_records(answer.model) if r.license), None)
    own = {**document, **jsonable(own_part(answer.result))}  # the word of others decides no claim
    model = _described(of_trace(document), answer.model, stated, own, request.out, progress)
    ancestors, left = _further(model, replace(answer.request, deny_license=None), workspace, progress)
    return ExportedFindings(
        models=(replace(model, not_tested=(*model.not_tested, *left)),), ancestors=ancestors,
        created=document["created"], version=document["stemma_version"],
    )  # fmt: skip


def _further(
    model: "ModelFindings", asked: TraceRequest, workspace: "Workspace", progress: Progress | None
) -> "tuple[tuple[ModelFindings, ...], tuple[Mapping[str, str], ...]]":
    """What is found about the ancestors of a model, by tracing each that is at hand; and which were not traced."""
    from stemma.export.standards.findings import of_trace

    places = _places(asked, workspace)
    waiting, seen = list(model.parents), {model.digest}
    out, left = list["ModelFindings"](), dict[str, str]()
    for kin in waiting:
        if kin.digest in seen:
            continue
        if len(out) >= MAX_TRACED:
            left[kin.name] = f"no more than {MAX_TRACED} ancestors are traced themselves"
            continue
        seen.add(kin.digest)
        place = places.get(kin.key)
        answer = None if place is None else _traced(replace(asked, model=place), progress)
        if answer is None or answer.model.digest != kin.digest:
            left[kin.name] = "its weights are not at hand"
            continue
        found = replace(of_trace(answer.document()), name=kin.name)
        waiting += found.parents
        out.append(found)
    return tuple(out), tuple(
        {"what": "ancestors", "model": name, "why": f"where it comes from itself was not looked at: {why}"}
        for name, why in left.items()
    )


def _traced(asked: TraceRequest, progress: Progress | None) -> TraceAnswer | None:
    try:
        return trace(asked, progress)
    except (StemmaError, OSError):  # its weights are gone: it is named, and nothing is known of its parents
        return None


def _places(asked: TraceRequest, workspace: "Workspace") -> dict[tuple[str, str], str]:
    """What to type for each model that was searched, by name and digest."""
    if asked.against is None:
        return {(r.name, str(r.digest)): r.name for r in workspace.list()}
    from stemma.workspace.candidates import candidates_from_files

    candidates, _ = candidates_from_files([Path(p) for p in asked.against])
    return {(c.ref.name, str(c.ref.digest)): c.load().source for c in candidates}


def _of_all(request: ExportRequest, progress: Progress | None) -> "ExportedFindings":
    """The lineage of all models."""
    from stemma.application.opening import open_workspace
    from stemma.export.standards.findings import ExportedFindings, of_lineage

    asked = LineageRequest(
        paths=request.against, registry=request.registry, alpha=request.alpha, jobs=request.jobs
    )  # fmt: skip
    document = lineage(asked, progress).document()
    workspace = open_workspace(request.registry, request.jobs, progress)
    models = {m.name: (m, stated) for m, stated in _opened(request, workspace)}
    licences = {name: _licence(m, stated) for name, (m, stated) in models.items()}
    found = []
    for findings in of_lineage(document):
        kin = tuple(replace(k, licence=(of := licences.get(k.name, (None, None)))[0], licence_source=of[1])
                    for k in findings.kin)  # fmt: skip
        whole = replace(findings, kin=kin)
        model, stated = models[findings.name]
        found.append(_described(whole, model, stated, as_trace(whole), request.out, progress))
    return ExportedFindings(models=tuple(found), created=document["created"], version=document["stemma_version"])


def _opened(request: ExportRequest, workspace: "Workspace") -> "Iterator[tuple[Model, str | None]]":
    """Every model under the name that the lineage has, and its licence as a person stated it."""
    if request.against is None:
        yield from ((workspace.reopen(record), record.license) for record in workspace.list())
        return
    from stemma.workspace.candidates import candidates_from_files

    candidates, _ = candidates_from_files([Path(p) for p in request.against])
    yield from ((replace(c.load(), name=c.ref.name), None) for c in candidates)


def _licence(model: "Model", stated: str | None) -> tuple[str | None, str | None]:
    """A licence and who states it."""
    from stemma.checkpoints import cards

    card = cards.licence(model.claims)
    return (stated, "stated") if stated else (card, "card") if card else (None, None)


def _described(
    findings: "ModelFindings", model: "Model", stated: str | None, document: Mapping[str, Any], out: str | None,
    progress: Progress | None,
) -> "ModelFindings":  # fmt: skip
    """The findings with what is known of the model itself: licence, claims and files, but for the one to be written."""
    licence, source = _licence(model, stated)
    files, gone = files_with_weights(model.source, findings.digest, out, progress)
    architectures = (model.config or {}).get("architectures")
    return replace(
        findings, licence=licence, licence_source=source, files=files,
        notes=(*findings.notes, gone) if gone else findings.notes,
        claims=check_claims(model.claims, document, stated), parameters=model.parameters,
        architecture=", ".join(map(str, architectures)) if isinstance(architectures, list) else "",
    )  # fmt: skip


def as_trace(findings: "ModelFindings") -> dict[str, Any]:
    """The findings of a lineage about one model in the fields of a trace, as far as claims need them.

    An edge that is likely and not sure is no established parent here: a claim is not contradicted by it.

    Args:
        findings: What the lineage says of the model.

    Returns:
        Fields of a trace document.
    """
    sure = findings.parents
    copies = [k for k in findings.others if k.role == "copy"]
    rest = [k for k in findings.kin if k not in sure and k not in copies]
    return {
        "model": {"name": findings.name, "digest": findings.digest}, "verdict": findings.verdict,
        "copies": [_row(k, "unknown") for k in copies], "parents": [_row(k, "parent") for k in sure],
        "relatives": [_row(k, "unknown") for k in rest], "candidates": [], "n_searched": findings.n_searched,
    }  # fmt: skip


def _row(kin: "Kin", direction: str) -> dict[str, Any]:
    return {
        "name": kin.name, "digest": kin.digest, "relation": kin.relation, "steps": kin.steps, "p_value": kin.p_value,
        "log10_p": kin.log10_p, "confidence": kin.confidence, "direction": direction,
        "role": "parent" if direction == "parent" else "unknown",
        "licence": kin.licence, "licence_source": kin.licence_source,
    }  # fmt: skip
