"""How few units does each layer need? Request, answer and JSON document of `stemma fidelity`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.types import ModelRef
from stemma.types.edits import GroupEffect, LayerFidelity

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.edits.layer_fidelity import Fidelity
    from stemma.probes import Probes


@dataclass(frozen=True, kw_only=True)
class FidelityRequest:
    """What `stemma fidelity` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        probes: Inputs like those that the model is meant for.
        levels: Fidelities that sets of units are sought for.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        seed: Of whatever is drawn at random.
    """

    model: str
    probes: str
    levels: tuple[float, ...] = ()
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class FidelityDocument(Document):
    """How few units each layer needs.

    Attributes:
        model: The model.
        probes: Digest of the probe inputs.
        levels: Fidelities that sets were sought for, ascending.
        layers: One entry for each layer and group that it reads.
        effects: One entry for each group.
        refused: Layers whose units cannot be removed, with the reason.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.fidelity", 1)

    asked: FidelityRequest
    model: ModelRef
    probes: str
    levels: tuple[float, ...]
    layers: tuple[LayerFidelity, ...]
    effects: tuple[GroupEffect, ...]
    refused: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class FidelityAnswer:
    """How few units each layer needs.

    Attributes:
        request: What was asked.
        model: The model.
        probes: The probe inputs.
        result: The sets of every layer.
    """

    request: FidelityRequest
    model: "Model"
    probes: "Probes"
    result: "Fidelity"

    def document(self) -> dict[str, Any]:
        """The document that `stemma fidelity --json` prints."""
        found = self.result
        return FidelityDocument.of(
            self.request, model=self.model.ref, probes=str(self.probes.digest), levels=found.levels,
            layers=found.layers, effects=found.effects, refused=found.refused,
        ).to_dict()  # fmt: skip


def fidelity(request: FidelityRequest, progress: Progress | None = None) -> FidelityAnswer:
    """Find the smallest sets of units that reproduce what each layer computes.

    Args:
        request: The model, inputs and fidelities.
        progress: Told what is being done.

    Returns:
        The sets of every layer.
    """
    from stemma.application.opening import open_workspace
    from stemma.edits.layer_fidelity import LEVELS, layer_fidelity

    networks = request.networks
    model = networks.open_model(open_workspace(request.registry, progress=progress), request.model)
    probes = networks.read_probes(request.probes, model, request.seed)
    result = layer_fidelity(model, probes, request.levels or LEVELS, progress)
    return FidelityAnswer(request=request, model=model, probes=probes, result=result)
