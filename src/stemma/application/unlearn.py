"""A network that no longer recognises a class, without training, and the record of how it was made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError
from stemma.types import ModelRef, Plan, Receipt

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model


@dataclass(frozen=True, kw_only=True)
class UnlearnRequest:
    """What `stemma unlearn` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        forget: Samples of the class, real or synthetic.
        out: Folder for the new model.
        retain: Inputs of other classes, or generic ones.
        parameters: Fields of the method, as `name=value`.
        replace: Whether an existing folder may be replaced.
        undo: File for the original weights of what changes, outside of the folder; they are not kept if null.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        seed: Of whatever is drawn at random.
    """

    model: str
    forget: str
    out: str
    retain: str | None = None
    parameters: tuple[str, ...] | None = None
    replace: bool = False
    undo: str | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class UnlearnDocument(Document):
    """What was unlearned.

    Attributes:
        model: The model before.
        plan: Which weights change, and how.
        receipt: What was done and measured.
        folder: Folder of the new model.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.unlearn", 1)

    asked: UnlearnRequest
    model: ModelRef
    plan: Plan
    receipt: Receipt
    folder: str


@dataclass(frozen=True, kw_only=True)
class UnlearnAnswer:
    """A plan and what it did.

    Attributes:
        request: What was asked.
        model: The model before.
        plan: Which weights change.
        receipt: What was done.
    """

    request: UnlearnRequest
    model: "Model"
    plan: Plan
    receipt: Receipt

    def document(self) -> dict[str, Any]:
        """The document that `stemma unlearn --json` prints."""
        folder = self.request.out
        return UnlearnDocument.of(
            self.request, model=self.model.ref, plan=self.plan, receipt=self.receipt, folder=folder
        ).to_dict()


def unlearn(request: UnlearnRequest, progress: Progress | None = None) -> UnlearnAnswer:
    """Remove a class from a network, and write the new model.

    Args:
        request: The model, samples of the class, and where to write it.
        progress: Told what is being done.

    Returns:
        The plan and the receipt.

    Raises:
        MisuseError: If the folder exists and is not to be replaced.
    """
    from stemma.application.method_options import parse_fields
    from stemma.application.opening import open_workspace
    from stemma.edits.artefacts.save import check_undo, check_writable, write
    from stemma.edits.unlearning.unlearning import Unlearning

    out = Path(request.out)
    if out.exists() and not request.replace:
        raise MisuseError(f"{out} exists. Choose another folder, or add --replace")
    check_undo(request.undo, out)
    networks, seed = request.networks, request.seed
    method = Unlearning(**parse_fields(Unlearning, request.parameters, seed))
    model = networks.open_model(open_workspace(request.registry, progress=progress), request.model)
    check_writable(out, model.source, overwrite=request.replace)
    forget = networks.read_probes(request.forget, model, seed)
    retain = None if request.retain is None else networks.read_probes(request.retain, model, seed)
    edited = method(model, forget, retain, progress)
    receipt = write(edited, out, forget, overwrite=request.replace, undo=request.undo)
    return UnlearnAnswer(request=request, model=model, plan=edited.plan, receipt=receipt)
