"""A network that no longer recognises a class, without training, and the record of how it was made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.erasure_curve import ErasureCurve, erasure_curve
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError
from stemma.types import ModelRef, Plan, Receipt

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.edits.artefacts.result import Edited
    from stemma.probes import Probes

METHODS = ("erasure", "modhifi-u")
"""Erasure needs samples of what is kept; without them ModHiFi-U is the default."""


@dataclass(frozen=True, kw_only=True)
class UnlearnRequest:
    """What `stemma unlearn` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        forget: Samples of the class, real or synthetic.
        out: Folder for the new model.
        retain: Inputs of other classes, or generic ones.
        method: One of `METHODS`; erasure where samples of other classes are given, if null.
        strength: Of an erasure; its default if null.
        curve: Whether every strength of an erasure is measured.
        retrained: Models that never saw what is to be forgotten, for the curve.
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
    method: str | None = None
    strength: int | None = None
    curve: bool = False
    retrained: tuple[str, ...] | None = None
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
        curve: Every strength of the erasure; null unless asked for.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.unlearn", 1)

    asked: UnlearnRequest
    model: ModelRef
    plan: Plan
    receipt: Receipt
    folder: str
    curve: ErasureCurve | None = None


@dataclass(frozen=True, kw_only=True)
class UnlearnAnswer:
    """A plan and what it did.

    Attributes:
        request: What was asked.
        model: The model before.
        plan: Which weights change.
        receipt: What was done.
        curve: Every strength of the erasure, where asked for.
    """

    request: UnlearnRequest
    model: "Model"
    plan: Plan
    receipt: Receipt
    curve: ErasureCurve | None = None

    def document(self) -> dict[str, Any]:
        """The document that `stemma unlearn --json` prints."""
        folder = self.request.out
        return UnlearnDocument.of(
            self.request, model=self.model.ref, plan=self.plan, receipt=self.receipt, folder=folder,
            curve=self.curve,
        ).to_dict()  # fmt: skip


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
    from stemma.application.opening import open_workspace
    from stemma.edits.artefacts.save import check_undo, check_writable, write

    out = Path(request.out)
    if out.exists() and not request.replace:
        raise MisuseError(f"{out} exists. Choose another folder, or add --replace")
    check_undo(request.undo, out)
    erases = _erases(request)
    networks, seed = request.networks, request.seed
    workspace = open_workspace(request.registry, progress=progress)
    model = networks.open_model(workspace, request.model)
    check_writable(out, model.source, overwrite=request.replace)
    forget = networks.read_probes(request.forget, model, seed)
    retain = None if request.retain is None else networks.read_probes(request.retain, model, seed)
    curve = None
    if erases and retain is not None:
        retrained = list(networks.open_models(workspace, request.retrained or ()))
        curve, edited = _erased(request, model, (forget, retain), retrained, progress)
    else:
        edited = _by_modhifi_u(request, model, (forget, retain), progress)
    receipt = write(edited, out, forget, overwrite=request.replace, undo=request.undo)
    return UnlearnAnswer(request=request, model=model, plan=edited.plan, receipt=receipt, curve=curve)


def _erases(request: UnlearnRequest) -> bool:
    """Whether an erasure is asked for; `MisuseError` where the options do not go together."""
    if request.method not in (None, *METHODS):
        raise MisuseError(f"no method of unlearning is called {request.method!r}: choose {' or '.join(METHODS)}")
    erases = request.method == "erasure" or (request.method is None and request.retain is not None)
    if request.method == "erasure" and request.retain is None:
        raise MisuseError("an erasure needs samples of what is kept: give them with --retain")
    if not erases and (request.curve or request.strength is not None):
        raise MisuseError("--curve and --strength belong to an erasure, which needs samples of what is kept: give "
                          "--retain, and not --method modhifi-u")  # fmt: skip
    if request.retrained and not request.curve:
        raise MisuseError("--retrained is for the curve: add --curve")
    return erases


def _erased(
    request: UnlearnRequest, model: "Model", given: "tuple[Probes, Probes]", retrained: "list[Model]",
    progress: Progress | None,
) -> "tuple[ErasureCurve | None, Edited]":  # fmt: skip
    from stemma.application.method_options import parse_fields
    from stemma.edits.unlearning.erasure import Erasure

    fields = parse_fields(Erasure, request.parameters, request.seed)
    if request.strength is not None:
        fields["strength"] = request.strength
    method = Erasure(**fields)
    if request.curve:
        return erasure_curve(method, model, *given, retrained, progress)
    return None, method(model, *given, progress)


def _by_modhifi_u(
    request: UnlearnRequest, model: "Model", given: "tuple[Probes, Probes | None]", progress: Progress | None
) -> "Edited":
    from stemma.application.method_options import parse_fields
    from stemma.edits.unlearning.unlearning import Unlearning

    return Unlearning(**parse_fields(Unlearning, request.parameters, request.seed))(model, *given, progress)
