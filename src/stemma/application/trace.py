"""Where does this model come from? Request, answer and JSON document of `stemma trace`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.notes import notes_on
from stemma.application.parts import (
    AxisVerdict,
    FunctionPart,
    LicenceSource,
    ModelNote,
    NotTestedPart,
    PolicyPart,
    WeightsPart,
    function_part,
    not_tested_parts,
    weights_part,
)
from stemma.errors import NotAModelError
from stemma.types import ClaimLine, KnownFrom, ModelRef, RelationKind, Trace

if TYPE_CHECKING:
    from stemma.application.policies import Ruling
    from stemma.checkpoints.model import Model


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """What `stemma trace` is asked.

    Attributes:
        model: Path, registry name, digest prefix, or address on a server of the model in question.
        against: Checkpoints and folders that are searched instead of the registry.
        probes: Probe inputs; without, only weights are compared.
        null: Paths of control models.
        null_recipe: How to train control models instead.
        registry: Registry that is searched; the default one if null.
        alpha: Significance level over all models searched; the default if null.
        coverage: Share of cases in which the set of possible parents holds the parent; the default if null.
        fail_on: Relations and verdicts that are refused.
        deny_license: Licences that are refused.
        fail_on_descendant_of: Models from which the model may not descend.
        allow_untested: Whether a policy lets pass what could not be tested.
        jobs: Models that are read at once.
        cluster: Address of the cluster that reads the models; this machine if null.
        networks: How networks are built and run.
        max_queries: Inputs that may be sent to services; the default if null.
        seed: Of whatever is drawn at random.
        download: Whether a model on a server is fetched as a whole.
    """

    model: str
    against: tuple[str, ...] | None = None
    probes: str | None = None
    null: tuple[str, ...] | None = None
    null_recipe: str | None = None
    registry: str | None = None
    alpha: float | None = None
    coverage: float | None = None
    fail_on: tuple[str, ...] | None = None
    deny_license: tuple[str, ...] | None = None
    fail_on_descendant_of: tuple[str, ...] | None = None
    allow_untested: bool = False
    jobs: int = 1
    cluster: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    max_queries: int | None = None
    seed: int | None = None
    download: bool = False


@dataclass(frozen=True, slots=True)
class CopyPart:
    """A model with the same tensors.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        relation: `copy`, or `reformatted` where the tensors have other names.
        reason: Evidence, in one sentence.
        licence: Licence as read; null where none is recorded.
        licence_source: Whether the licence was stated when the model was enrolled, or is that of its card.
        claims: What its files say; no evidence.
        known_from: Other registry that tells of the model; null where this registry read it.
    """

    name: str
    digest: str
    relation: Literal["copy", "reformatted"]
    reason: str
    licence: str | None
    licence_source: LicenceSource | None
    claims: Mapping[str, str]
    known_from: KnownFrom | None = None


@dataclass(frozen=True, slots=True)
class RelativePart:
    """A related model: a parent, or another relative.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        relation: Change between the two models; who came first is in `role`.
        steps: Operations that explain the difference, in their order.
        p_value: Of the test that the two are related; null where the relation is shown without one.
        log10_p: Decimal logarithm of the p-value.
        confidence: Calibrated probability of the role; null where it has none.
        direction: `parent` where the model is shown to be the parent.
        role: What the model is to the one in question: its parent, its child, the same network in another form, a
            relative that is neither, or unknown where that could not be tested.
        share: Share of the model in question that comes from this one.
        reason: Evidence, in one sentence.
        licence: Licence as read; null where none is recorded.
        licence_source: Whether the licence was stated when the model was enrolled, or is that of its card.
        known_from: Other registry that tells of the model; null where this registry read it.
    """

    name: str
    digest: str
    relation: RelationKind | None
    steps: tuple[str, ...]
    p_value: float | None
    log10_p: float | None
    confidence: float | None
    direction: Literal["parent", "unknown"]
    role: Literal["parent", "child", "same", "relative", "unknown"]
    share: float
    reason: str
    licence: str | None
    licence_source: LicenceSource | None
    known_from: KnownFrom | None = None


@dataclass(frozen=True, slots=True)
class CandidatePart:
    """A model that was compared in detail.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        verdict: Whether the two are related, after correction for all models searched.
        relation: Relation that the pair shows; null where nothing was decided.
        steps: Operations that explain the difference, in their order.
        parameters: What was measured of the relation.
        relation_reason: Evidence for the relation, in one sentence.
        effect: Size of the finding in [0, 1].
        weights: Comparison of the weights.
        function: Comparison of the outputs on probe inputs; null where none were given.
        licence: Licence as read; null where none is recorded.
        licence_source: Whether the licence was stated when the model was enrolled, or is that of its card.
        claims: What its files say; no evidence.
        known_from: Other registry that tells of the model; null where this registry read it.
    """

    name: str
    digest: str
    verdict: AxisVerdict
    relation: RelationKind | None
    steps: tuple[str, ...]
    parameters: Mapping[str, Any]
    relation_reason: str
    effect: float
    weights: WeightsPart
    function: FunctionPart | None
    licence: str | None
    licence_source: LicenceSource | None
    claims: Mapping[str, str]
    known_from: KnownFrom | None = None


@dataclass(frozen=True, kw_only=True)
class AbstractTraceDocument(Document):
    """Where a model comes from, whoever asked.

    Attributes:
        model: Model in question.
        verdict: Answer: a copy of a known model, descended from one, related to one, without a known parent, or
            inconclusive.
        copies: Models with the same tensors.
        parents: Models that it was made from, or that may be so: see `direction`.
        relatives: Related models that are not parents, or whose role is unknown.
        candidates: Models that were compared in detail, the closest first.
        alpha: Significance level over all models searched.
        n_searched: Number of models searched.
        cannot_see: What the answer does not cover.
        not_tested: What bears on the verdict and could not be tested.
        parent_set: Smallest set of possible parents that holds the parent with the stated coverage, each an object of
            `name`, `digest` (null for an unknown common ancestor), `probability` and `or` (models that hardly differ).
        coverage: Share of cases in which such a set holds the parent; null where there is no set.
        notes: What the reader left out of the files, changed or took for granted.
        known_from: Other registries whose word alone the verdict rests on; empty where it is this registry's finding.
        own_verdict: Verdict without what other registries tell; null where none was asked.
        policy: What the policy says; only where there is one.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("policy",)

    model: ModelRef
    verdict: Literal["copy", "descends", "related", "no-known-parent", "inconclusive"]
    copies: tuple[CopyPart, ...]
    parents: tuple[RelativePart, ...]
    relatives: tuple[RelativePart, ...]
    candidates: tuple[CandidatePart, ...]
    alpha: float
    n_searched: int
    cannot_see: tuple[str, ...]
    not_tested: tuple[NotTestedPart, ...]
    parent_set: tuple[Mapping[str, Any], ...]
    coverage: float | None
    notes: tuple[ModelNote, ...]
    known_from: tuple[KnownFrom, ...] = ()
    own_verdict: Literal["copy", "descends", "related", "no-known-parent", "inconclusive"] | None = None
    policy: PolicyPart | None = None


@dataclass(frozen=True, kw_only=True)
class TraceDocument(AbstractTraceDocument):
    """Where a model comes from.

    Attributes:
        claims: What the files of the model say, set against what was found.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.trace", 1)

    asked: TraceRequest
    claims: tuple[ClaimLine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TraceAnswer:
    """A trace, with what a policy says to it.

    Attributes:
        request: What was asked.
        model: The model in question.
        result: The trace.
        ruling: What the policy says; an empty ruling where there is none.
        stated_licence: Licence that was stated when the model was enrolled; None if it is not, or none was.
        warnings: What must not go unnoticed: a search of nothing, records of the model itself that were left out.
    """

    request: TraceRequest
    model: "Model"
    result: Trace
    ruling: "Ruling"
    stated_licence: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def claims(self) -> tuple[ClaimLine, ...]:
        """What the files of the model say, set against what was found here; the word of others decides no claim."""
        from stemma.application.claims import check_claims
        from stemma.workspace.known import own_part

        return check_claims(self.model.claims, own_part(self.result).to_dict(), self.stated_licence)

    def document(self) -> dict[str, Any]:
        """The document that `stemma trace --json` prints."""
        policy = self.ruling.part if _refuses(self.request) else None
        fields = trace_fields(self.result)
        notes = notes_on(self.model)
        return TraceDocument.of(self.request, **fields, claims=self.claims, notes=notes, policy=policy).to_dict()


def trace_fields(result: Trace) -> dict[str, Any]:
    """A trace as fields of a document, every part typed."""
    return {
        "model": result.model,
        "verdict": result.verdict,
        "copies": tuple(CopyPart(**copy) for copy in result.copies),
        "parents": tuple(RelativePart(**parent) for parent in result.parents),
        "relatives": tuple(RelativePart(**relative) for relative in result.relatives),
        "candidates": tuple(map(_candidate, result.candidates)),
        "alpha": result.alpha,
        "n_searched": result.n_searched,
        "cannot_see": result.cannot_see,
        "not_tested": not_tested_parts(result.not_tested),
        "parent_set": result.parent_set,
        "coverage": result.coverage,
        "known_from": result.known_from,
        "own_verdict": result.own_verdict,
    }


def trace(
    request: TraceRequest, progress: Progress | None = None, tell: "Callable[[str], None] | None" = None
) -> TraceAnswer:
    """Search a registry, or some files, for the models that a model comes from.

    Args:
        request: The model and where to search.
        progress: Told what is being done.
        tell: Told what asking services will cost, before it begins; without, no service is asked.

    Returns:
        The trace and what the policy says to it.
    """
    from stemma.application.black_boxes import BlackBoxes
    from stemma.application.modalities import ModalitiesJoined, join_modalities, join_reference_models
    from stemma.application.opening import open_workspace
    from stemma.application.policies import Policy, judge_trace
    from stemma.checkpoints.remote.names import whole
    from stemma.workspace.known import find_known

    refused = (request.fail_on, request.deny_license, request.fail_on_descendant_of)
    policy = Policy.of(*refused, allow_untested=request.allow_untested)
    given = {"alpha": request.alpha, "coverage": request.coverage, "against": request.against or None}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    networks, jobs = request.networks, request.jobs
    workspace = open_workspace(request.registry, jobs, progress, networks.with_network)
    boxes = BlackBoxes(networks, request.max_queries, progress, tell)
    model = boxes.resolve(workspace, whole(request.model) if request.download else request.model)
    for name in policy.ancestors if not request.against else ():
        if not Path(name).exists() and find_known(workspace.registry, name) is None:
            workspace.show(name)  # a mistyped name is told before the search
    options |= boxes.options(
        request.probes, request.null, request.null_recipe, [model], request.seed, workspace, request.against
    )
    probes = options.get("probes")
    model = join_modalities(boxes.answered(model, probes), probes)
    workspace = open_workspace(
        request.registry, jobs, progress, ModalitiesJoined(networks.with_network, probes), request.cluster
    )
    result = workspace.trace(model, **join_reference_models(options))
    warnings = _nothing_searched(request, result)
    own = () if request.against else workspace.own_records(model)
    if policy.refuses_anything:
        warnings += tuple(f"this model is enrolled as '{r.name}', which was not compared with itself" for r in own)
    ruling = judge_trace(policy, result, model, workspace, request.against or None)
    stated = next((record.license for record in own if record.license), None)
    return TraceAnswer(
        request=request, model=model, result=result, ruling=ruling, stated_licence=stated, warnings=warnings
    )


def _nothing_searched(request: TraceRequest, result: Trace) -> tuple[str, ...]:
    """A search of nothing must not read like a clean answer; a policy says so itself."""
    if result.n_searched == 0 and request.against:
        unread = [t["why"] for t in result.not_tested if t["what"] == "unreadable-file"]
        more = f": {unread[0]}{f' (and {len(unread) - 1:,} more)' if len(unread) > 1 else ''}" if unread else ""
        raise NotAModelError(f"there is no other checkpoint in {', '.join(request.against)} to search{more}")
    why = next((t["why"] for t in result.not_tested if t["what"] == "nothing-searched"), "")
    if result.known_from:
        told = ", ".join(k.sentence.removeprefix("known from ") for k in result.known_from)
        return (f"the verdict rests on the word of {told}: this registry read none of the models",)
    return (f"{why}. Enrol some models with: stemma add PATH",) if why and not _refuses(request) else ()


def _refuses(request: TraceRequest) -> bool:
    return any(x is not None for x in (request.fail_on, request.deny_license, request.fail_on_descendant_of))


def _candidate(row: Mapping[str, Any]) -> CandidatePart:
    weights, function = weights_part(row["weights"]), function_part(row["function"])
    values: dict[str, Any] = {**row, "weights": weights, "function": function}
    return CandidatePart(**values)
