"""What was done to a parent to get a child, layer by layer? Request, answer and JSON document of `stemma explain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.notes import notes_on
from stemma.application.parts import NotTestedPart, not_tested_parts
from stemma.types import ModelRef, RelationKind

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.workspace.explain import Explained


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """What `stemma explain` is asked.

    Attributes:
        parent: Path, registry name or digest prefix of the parent.
        child: Path, registry name or digest prefix of the child.
        registry: Registry in which names are looked up; the default one if null.
        alpha: Significance level of the decision that the two are related; the default if null.
    """

    parent: str
    child: str
    registry: str | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class StepPart:
    """One operation with the parameters that were fitted.

    Attributes:
        name: Name of the operation.
        kind: Relation that it makes.
        sentence: What it did, in one sentence.
        parameters: What was fitted: bits, ratio, rank, kept units.
        bits: Description length of the operation, in bits.
        place: When it was taken relative to training: 0 before, 1 training itself, 2 after.
    """

    name: str
    kind: RelationKind
    sentence: str
    parameters: Mapping[str, Any]
    bits: float
    place: float


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What became of one tensor.

    Attributes:
        name: Name of the tensor in the child, or in the parent where the child has none.
        parent: Name in the parent; empty for a new tensor.
        status: What became of it.
        size: Number of entries.
        relative: Norm of the difference as a share of the parent's norm; null without a counterpart of that size.
        marks: What the operations did to it.
    """

    name: str
    parent: str
    status: Literal[
        "inherited", "mapped", "rounded", "rescaled", "changed", "replaced", "gathered", "new", "removed",
        "not inherited", "not compared",
    ]  # fmt: skip
    size: int
    relative: float | None
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OtherPart:
    """Another explanation that fits.

    Attributes:
        steps: Its operations.
        bits: Its description length per entry, in bits.
    """

    steps: tuple[str, ...]
    bits: float


@dataclass(frozen=True, kw_only=True)
class ExplainDocument(Document):
    """What was done to a parent to get a child: the simplest explanation (minimum description length).

    Attributes:
        parent: Parent.
        child: Child.
        kind: Relation that the operations make; null where nothing was decided.
        steps: Operations in the order in which they were taken, as far as that shows.
        sentence: Explanation in one sentence.
        relative: Norm of the whole difference as a share of the parent's norm; null where it could not be measured.
        residual: Norm of what the operations leave, as a share of the parent's norm.
        floor: What rounding to the number formats may leave.
        fitted: Share of the squared difference that operations with fewer parameters than entries explain.
        bits: Description length per entry, in bits.
        plain_bits: The same when every changed entry is described by itself.
        layers: What became of every tensor.
        others: Other explanations that fit, the shorter first.
        notes: Further remarks, and what the reader left out of the files, changed or took for granted.
        cannot_see: What weights do not show.
        not_tested: What bears on the answer and could not be tested.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.explain", 1)

    asked: ExplainRequest
    parent: ModelRef
    child: ModelRef
    kind: RelationKind | None
    steps: tuple[StepPart, ...]
    sentence: str
    relative: float | None
    residual: float
    floor: float
    fitted: float
    bits: float
    plain_bits: float
    layers: tuple[LayerPart, ...]
    others: tuple[OtherPart, ...]
    notes: tuple[str, ...]
    cannot_see: tuple[str, ...]
    not_tested: tuple[NotTestedPart, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainAnswer:
    """An explanation of a child by its parent.

    Attributes:
        request: What was asked.
        models: Parent and child.
        result: The explanation.
    """

    request: ExplainRequest
    models: "tuple[Model, Model]"
    result: "Explained"

    def document(self) -> dict[str, Any]:
        """The document that `stemma explain --json` prints."""
        fields = self.result.to_dict()
        return ExplainDocument.of(self.request, **{
            **fields,
            "parent": self.result.explanation.parent,
            "child": self.result.explanation.child,
            "steps": tuple(StepPart(**step) for step in fields["steps"]),
            "layers": tuple(LayerPart(**layer) for layer in fields["layers"]),
            "others": tuple(OtherPart(**other) for other in fields["others"]),
            "notes": (*fields["notes"], *(f"{n.model}: {n.note}" for n in notes_on(*self.models))),
            "not_tested": not_tested_parts(self.result.not_tested),
        }).to_dict()  # fmt: skip


def explain(request: ExplainRequest, progress: Progress | None = None) -> ExplainAnswer:
    """Find the simplest explanation of a child by its parent, and what became of every tensor.

    Args:
        request: The two models.
        progress: Told what is being done.

    Returns:
        The explanation.
    """
    from stemma.application.opening import open_workspace
    from stemma.workspace.explain import explain_pair

    workspace = open_workspace(request.registry, progress=progress)
    models = workspace.resolve(request.parent), workspace.resolve(request.child)
    if progress is not None:
        progress(f"explaining {models[1].name}", 0, None)
    result = explain_pair(*models, **({} if request.alpha is None else {"alpha": request.alpha}))
    return ExplainAnswer(request=request, models=models, result=result)
