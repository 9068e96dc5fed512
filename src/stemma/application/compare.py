"""How are two models related? Request, answer and JSON document of `stemma compare`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.notes import notes_on
from stemma.application.parts import (
    EvidencePart,
    FunctionPart,
    ModelNote,
    NotTestedPart,
    PolicyPart,
    WeightsPart,
    comparison_fields,
)
from stemma.types import Comparison, KnownFrom, ModelRef, RelationKind

if TYPE_CHECKING:
    from stemma.application.policies import Ruling
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What `stemma compare` is asked.

    Attributes:
        a: Path, registry name or digest prefix of the first model.
        b: Path, registry name or digest prefix of the second model.
        probes: Probe inputs for both; without, only weights are compared.
        null: Paths of control models.
        null_recipe: How to train control models instead.
        registry: Registry in which names are looked up; the default one if null.
        alpha: Significance level of each axis; the default if null.
        fail_on: Relations and verdicts that are refused.
        allow_untested: Whether a policy lets pass what could not be tested.
        html: File for a page; with probes it shows where the two differ.
        networks: How networks are built and run.
        max_queries: Inputs that may be sent to services; the default if null.
        seed: Of whatever is drawn at random.
    """

    a: str
    b: str
    probes: str | None = None
    null: tuple[str, ...] | None = None
    null_recipe: str | None = None
    registry: str | None = None
    alpha: float | None = None
    fail_on: tuple[str, ...] | None = None
    allow_untested: bool = False
    html: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    max_queries: int | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class CompareDocument(Document):
    """What one model is to another.

    Attributes:
        a: First model.
        b: Second model.
        verdict: Whether the two are related; `related` if either axis says so.
        relation: What b is to a, as far as the evidence names it; null where nothing was decided.
        steps: Operations that explain the difference, in their order.
        relation_parameters: What was measured of the relation, for example bits, ratio, rank, relative change.
        relation_reason: Evidence for the relation, in one sentence.
        direction: Which of the two came first.
        direction_confidence: Calibrated probability of the direction; null where the change itself shows it or it is
            unknown.
        weights: Comparison of the weights.
        function: Comparison of the outputs on probe inputs; null where none were given.
        evidence: Every test that was run, the deciding one first.
        cannot_see: What this comparison did not look at.
        not_tested: What bears on the verdict and could not be tested.
        notes: What the reader left out of the files, changed or took for granted.
        a_known_from: Other registry that tells of the first model; null where this registry read it.
        b_known_from: Other registry that tells of the second model; null where this registry read it.
        policy: What the policy says; only where there is one.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.compare", 1)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("policy",)

    asked: CompareRequest
    a: ModelRef
    b: ModelRef
    verdict: Literal["related", "independent", "inconclusive"]
    relation: RelationKind | None
    steps: tuple[str, ...]
    relation_parameters: Mapping[str, Any]
    relation_reason: str
    direction: Literal["a->b", "b->a", "unknown"]
    direction_confidence: float | None
    weights: WeightsPart
    function: FunctionPart | None
    evidence: tuple[EvidencePart, ...]
    cannot_see: tuple[str, ...]
    not_tested: tuple[NotTestedPart, ...]
    notes: tuple[ModelNote, ...]
    a_known_from: KnownFrom | None = None
    b_known_from: KnownFrom | None = None
    policy: PolicyPart | None = None


@dataclass(frozen=True, kw_only=True)
class CompareAnswer:
    """A comparison, with what a policy says to it.

    Attributes:
        request: What was asked.
        models: The two models.
        result: The comparison.
        ruling: What the policy says; an empty ruling where there is none.
        pictures: Sections of a page that show where in the inputs the two differ, where a page is asked for.
    """

    request: CompareRequest
    models: "tuple[Model, Model]"
    result: Comparison
    ruling: "Ruling"
    pictures: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The document that `stemma compare --json` prints."""
        from stemma.workspace.comparison_cache import told_by

        policy = self.ruling.part if self.request.fail_on is not None else None
        fields = comparison_fields(self.result)
        a, b = map(told_by, self.models)
        return CompareDocument.of(
            self.request, **fields, notes=notes_on(*self.models), a_known_from=a, b_known_from=b, policy=policy
        ).to_dict()


def compare(
    request: CompareRequest, progress: Progress | None = None, tell: "Callable[[str], None] | None" = None
) -> CompareAnswer:
    """Compare two models by their weights, and by their outputs if probe inputs are given.

    Args:
        request: The two models and how to compare them.
        progress: Told what is being done.
        tell: Told what asking services will cost, before it begins; without, no service is asked.

    Returns:
        The comparison and what the policy says to it.
    """
    from stemma.application.black_boxes import BlackBoxes
    from stemma.application.modalities import ModalitiesJoined, join_modalities, join_reference_models
    from stemma.application.opening import open_workspace
    from stemma.application.policies import Policy, judge_comparison

    policy = Policy.of(request.fail_on, allow_untested=request.allow_untested)
    level = {} if request.alpha is None else {"alpha": request.alpha}
    networks = request.networks
    workspace = open_workspace(request.registry, progress=progress, prepare=networks.with_network)
    boxes = BlackBoxes(networks, request.max_queries, progress, tell)
    found = [boxes.resolve(workspace, text) for text in (request.a, request.b)]
    options = boxes.options(request.probes, request.null, request.null_recipe, found, request.seed, workspace)
    probes = options.get("probes")
    a, b = (join_modalities(boxes.answered(model, probes), probes) for model in found)
    models = a, b
    prepare = ModalitiesJoined(networks.with_network, probes)
    workspace = open_workspace(request.registry, progress=progress, prepare=prepare)
    result = workspace.compare(*models, **join_reference_models(options), **level)
    pictures = () if request.html is None or probes is None else _pictures(models, probes, result, progress)
    ruling = judge_comparison(policy, result, **level)
    return CompareAnswer(request=request, models=models, result=result, ruling=ruling, pictures=pictures)


def _pictures(
    models: "tuple[Model, Model]", probes: "Probes", result: Comparison, progress: Progress | None
) -> tuple[str, ...]:
    """Where the two models differ, by the method that decided the function axis."""
    from dataclasses import replace

    from stemma.export.difference import Difference, difference_sections
    from stemma.kinship.function.combined import METHODS

    details = {} if result.function is None else result.function.details
    used = {(entry["fingerprint"], entry["measure"]) for entry in details.get("measures", ())}
    fitting = ((f, m) for f, m in METHODS if (f.name, m.name) in used and m.probewise)
    difference = Difference.of(*models, probes, *next(fitting, METHODS[0]))
    return tuple(difference_sections(replace(difference, comparison=result), progress))
