"""Does a model behave as if it had never been trained on a forget set?

Request, answer and JSON document of `stemma verify unlearning`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.parts import NullPart, SpecPart
from stemma.errors import MisuseError
from stemma.types import Evidence, ModelRef, Verdict, jsonable

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes

RETRAIN_COUNT = 3
"""Models that a recipe trains unless a number is given: the first at which the assumption can be checked."""


@dataclass(frozen=True, kw_only=True)
class VerifyUnlearningRequest:
    """What `stemma verify unlearning` is asked.

    Attributes:
        original: The original model.
        unlearned: The unlearned model, or several runs of one method.
        forget: Inputs of what is to be forgotten.
        retrained: Models trained in the same way without the forget set, or folders of them.
        retained: Inputs of what is to be kept.
        alpha: Probability that a model that did forget is refuted; the default if null.
        margin: Largest excess distance that counts as none; the default if null.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        seed: Of whatever is drawn at random.
        unseen: Inputs of the same kind as the forget set that no model was trained on.
        retrain_recipe: `MODULE:FUNCTION` that trains retrained models; called as `f(dataset, seed)`.
        retrain_data: What the recipe trains on; the inputs to be kept if null.
        retrain_count: Number of models that the recipe trains; the default if null.
        strict: Whether an answer that supports nothing closes the gate.
    """

    original: str
    unlearned: tuple[str, ...]
    forget: str
    retrained: tuple[str, ...] | None = None
    retained: str | None = None
    alpha: float | None = None
    margin: float | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None
    unseen: str | None = None
    retrain_recipe: str | None = None
    retrain_data: str | None = None
    retrain_count: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.retrain_recipe is None and (self.retrain_data is not None or self.retrain_count is not None):
            raise MisuseError("--retrain-data and --retrain-count take --retrain-recipe MODULE:FUNCTION")


@dataclass(frozen=True, kw_only=True)
class VerifyUnlearningDocument(Document):
    """Whether a model behaves as if it had never been trained on a forget set.

    Attributes:
        claim: Claim that was tested.
        axis: Axis that the test looks at.
        statistic: Name of the statistic.
        value: Value of the statistic.
        null: What retrained models look like.
        p_value: Of the test that the model is one of the retrained ones; null where nothing could be tested.
        log10_p: Decimal logarithm of the p-value.
        effect: 1 where the model is like a retrained one in every view.
        verdict: Whether unlearning is supported, refuted, or neither.
        reason: Finding in one sentence.
        spec: Method.
        inputs: Digests of the models.
        original: The model before.
        unlearned: The unlearned model, or several.
        details: Further figures: views, accuracies, the control, the number of retrained models that are missing.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.verify-unlearning", 1)

    asked: VerifyUnlearningRequest
    claim: str
    axis: Literal["function"]
    statistic: str
    value: float
    null: NullPart
    p_value: float | None
    log10_p: float | None
    effect: float
    verdict: Literal["supported", "refuted", "inconclusive"]
    reason: str
    spec: SpecPart
    inputs: tuple[str, ...]
    original: ModelRef
    unlearned: tuple[ModelRef, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class VerifyUnlearningAnswer:
    """What the test says.

    Attributes:
        request: What was asked.
        original: The original model.
        unlearned: The unlearned model, or several.
        result: The evidence.
    """

    request: VerifyUnlearningRequest
    original: "Model"
    unlearned: "tuple[Model, ...]"
    result: Evidence

    @property
    def untested(self) -> tuple[str, ...]:
        """What closes the gate of a strict request: why neither answer is proved."""
        undecided = self.request.strict and self.result.verdict == Verdict.INCONCLUSIVE
        return (self.result.reason,) if undecided else ()

    def document(self) -> dict[str, Any]:
        """The document that `stemma verify unlearning --json` prints."""
        fields = {name: value for name, value in self.result.to_dict().items() if name not in ("null", "spec")}
        null, spec = NullPart(**self.result.to_dict()["null"]), SpecPart(**jsonable(self.result.spec))
        models: dict[str, Any] = {"original": self.original.ref, "unlearned": tuple(m.ref for m in self.unlearned)}
        return VerifyUnlearningDocument.of(self.request, **fields, **models, null=null, spec=spec).to_dict()


def verify_unlearning(request: VerifyUnlearningRequest, progress: Progress | None = None) -> VerifyUnlearningAnswer:
    """Test whether a model behaves as if it had never been trained on a forget set.

    Args:
        request: The models before and after, retrained ones, and the inputs.
        progress: Told what is being done.

    Returns:
        The evidence.
    """
    from stemma.application.opening import open_workspace
    from stemma.verification.unlearning import UnlearningTest

    networks, seed = request.networks, request.seed
    given: dict[str, Any] = {"alpha": request.alpha, "margin": request.margin, "seed": seed}
    test = UnlearningTest(**{name: value for name, value in given.items() if value is not None})
    workspace = open_workspace(request.registry, progress=progress)
    original = networks.open_model(workspace, request.original)
    forget = networks.read_probes(request.forget, original, seed)
    retained, unseen = (
        None if text is None else networks.read_probes(text, original, seed)
        for text in (request.retained, request.unseen)
    )
    unlearned = tuple(networks.open_models(workspace, request.unlearned))
    retrained = list(networks.open_models(workspace, request.retrained or ()))
    retrained += _retrained(request, original, retained, progress)
    result = test(original, list(unlearned), forget, retrained, retained, progress, unseen)
    return VerifyUnlearningAnswer(request=request, original=original, unlearned=unlearned, result=result)


def _retrained(
    request: VerifyUnlearningRequest, original: "Model", retained: "Probes | None", progress: Progress | None
) -> "list[Model]":
    """Models of the recipe, if one is given."""
    from stemma.application.retrain import RetrainRecipe

    if request.retrain_recipe is None:
        return []
    networks, text = request.networks, request.retrain_data
    dataset = retained if text is None else networks.read_probes(text, original, request.seed)
    if dataset is None:
        raise MisuseError(
            "--retrain-recipe needs what is to be learnt: add --retrain-data P, or --retained-probes P with all of it"
        )
    recipe = RetrainRecipe(request.retrain_recipe, dataset, original, networks.allow_code)
    first, count = request.seed or 0, RETRAIN_COUNT if request.retrain_count is None else request.retrain_count
    return recipe.train(range(first, first + count), progress or (lambda what, done, total: None))
