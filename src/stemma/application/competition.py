"""Which modality does a network rely on, and how strongly do its modalities compete?

Request, answer and JSON document of `stemma competition`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError
from stemma.multimodal.competition_strength import CompetitionStrength
from stemma.multimodal.contribution import Measured, Modality, ModalityContribution
from stemma.types import ModelRef

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes


@dataclass(frozen=True, kw_only=True)
class CompetitionRequest:
    """What `stemma competition` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        probes: Paired probe inputs, one array per modality.
        concepts: Networks of one modality alone, as `NAME=MODEL`.
        fit_probes: Paired inputs that readouts are fitted on.
        mask: How a modality is hidden; the default if null.
        layer: Layer whose input is the fused representation; the last linear layer if null.
        concept_networks: Functions that build the networks of one modality, as `NAME=MODULE:FACTORY`.
        html: File for a page with the picture.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        seed: Of the bootstrap, and of permuted inputs.
    """

    model: str
    probes: str | None = None
    concepts: tuple[str, ...] | None = None
    fit_probes: str | None = None
    mask: str | None = None
    layer: str | None = None
    concept_networks: tuple[str, ...] | None = None
    html: str | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class PairedProbesPart:
    """Paired probe inputs that a model was given.

    Attributes:
        digest: Digest of the inputs.
        source: Where they come from.
        n: Number of inputs.
    """

    digest: str
    source: str
    n: int


@dataclass(frozen=True, kw_only=True)
class CompetitionDocument(Document):
    """Which modality a network relies on, and how strongly its modalities compete.

    Attributes:
        model: The network.
        modalities: What each modality does, by name.
        accuracy: Accuracy of the fused output; null without labels.
        hidden: Total variation distance of the output with every modality hidden from the class frequencies; null
            without labels.
        masks: How each modality was hidden.
        probes: Paired probe inputs.
        reason: What makes the figures unreliable; empty if nothing does.
        strength: Competition strength by modality; null where no networks of that modality were given.
        layer: Layer whose input was read; null where no strength was measured.
        missing: What could not be measured, and what that takes.
        html: Page that was written.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.competition", 1)

    asked: CompetitionRequest
    model: ModelRef
    modalities: Mapping[str, Modality]
    accuracy: Measured | None
    hidden: float | None
    masks: Mapping[str, str]
    probes: PairedProbesPart
    reason: str
    strength: Mapping[str, CompetitionStrength | None]
    layer: str | None
    missing: tuple[str, ...]
    html: str | None


@dataclass(frozen=True, kw_only=True)
class CompetitionAnswer:
    """Shares and accuracies of the modalities, and competition strengths as far as they were measured.

    Attributes:
        request: What was asked.
        model: The network.
        probes: The paired probe inputs.
        result: Shares and accuracies.
        strengths: Competition strengths, by modality.
        layer: Layer whose input was read; empty where no strength was measured.
    """

    request: CompetitionRequest
    model: "Model"
    probes: "Probes"
    result: ModalityContribution
    strengths: Mapping[str, CompetitionStrength]
    layer: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be measured, and what that takes."""
        return tuple(
            f"competition strength of {name}: needs networks of {name} alone, trained separately (--concept "
            f"{name}=MODEL, three or more), and --fit-probes P"
            for name in self.result.modalities
            if name not in self.strengths
        )

    def document(self) -> dict[str, Any]:
        """The document that `stemma competition --json` prints."""
        found = self.result
        return CompetitionDocument.of(
            self.request,
            model=found.model,
            modalities=found.modalities,
            accuracy=found.accuracy,
            hidden=found.hidden,
            masks=found.masks,
            probes=PairedProbesPart(str(self.probes.digest), self.probes.source, len(self.probes)),
            reason=found.reason,
            strength={name: self.strengths.get(name) for name in found.modalities},
            layer=self.layer or None,
            missing=self.missing,
            html=self.request.html,
        ).to_dict()


def competition(request: CompetitionRequest, progress: Progress | None = None) -> CompetitionAnswer:
    """Measure which modality a network relies on, and how strongly its modalities compete.

    Args:
        request: The network and its inputs.
        progress: Told what is being done.

    Returns:
        Shares, accuracies and strengths.

    Raises:
        MisuseError: If only one of `concepts` and `fit_probes` is given.
    """
    from stemma.application.modalities import unimodal_models
    from stemma.application.opening import open_workspace
    from stemma.multimodal.contribution import ContributionTest
    from stemma.multimodal.strength_test import StrengthTest

    networks, seed = request.networks, request.seed
    given: dict[str, Any] = {"mask": request.mask, "seed": seed}
    test = ContributionTest(**{name: value for name, value in given.items() if value is not None})
    if bool(request.concepts) != bool(request.fit_probes):
        raise MisuseError("competition strength takes both --concept NAME=MODEL and --fit-probes P: give both or none")
    workspace = open_workspace(request.registry, progress=progress)
    model = networks.open_model(workspace, request.model)
    probes = networks.read_probes(request.probes, model, seed)
    result = test(model, probes)
    strengths: dict[str, CompetitionStrength] = {}
    layer = ""
    if request.fit_probes is not None:
        fit_probes = networks.read_probes(request.fit_probes, model, seed)
        concepts, factories = request.concepts or (), request.concept_networks or ()
        measure = StrengthTest(request.layer, test.mask)
        for name, models in unimodal_models(networks, workspace, concepts, factories, probes).items():
            strengths[name], layer = measure(model, models, name, fit_probes, probes)
    return CompetitionAnswer(
        request=request, model=model, probes=probes, result=result, strengths=strengths, layer=layer
    )
