"""Does a model behave as if it had never been trained on a forget set?

Request, answer and JSON document of `stemma verify unlearning`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.parts import NullPart, SpecPart
from stemma.types import Evidence, ModelRef, jsonable

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model


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
    retained = None if request.retained is None else networks.read_probes(request.retained, original, seed)
    unlearned = tuple(networks.open_models(workspace, request.unlearned))
    retrained = list(networks.open_models(workspace, request.retrained or ()))
    result = test(original, list(unlearned), forget, retrained, retained, progress)
    return VerifyUnlearningAnswer(request=request, original=original, unlearned=unlearned, result=result)
