"""How far apart are two models in what they compute? Request, answer and JSON document of `stemma distance`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.notes import notes_on
from stemma.application.parts import ModelNote, ProbesPart, SpecPart
from stemma.errors import MisuseError, UnreadableModelError
from stemma.types import Distance, ModelRef, jsonable

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.agreement import Agreement
    from stemma.measures.base import AbstractMeasure
    from stemma.probes import Probes


@dataclass(frozen=True, kw_only=True)
class DistanceRequest:
    """What `stemma distance` is asked.

    Attributes:
        a: Path, registry name or digest prefix of the first model.
        b: Path, registry name or digest prefix of the second model.
        probes: Probe inputs for both.
        method: Fingerprint that is compared; the default if null.
        measure: Measure of the distance; the one that goes with the fingerprint if null.
        parameters: Parameters of the fingerprint or the measure, as `name=value`.
        registry: Registry in which names are looked up; the default one if null.
        html: File for a page that shows where the two differ.
        networks: How networks are built and run.
        max_queries: Inputs that may be sent to services; the default if null.
        seed: Of whatever is drawn at random.
    """

    a: str
    b: str
    probes: str | None = None
    method: str | None = None
    measure: str | None = None
    parameters: tuple[str, ...] | None = None
    registry: str | None = None
    html: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    max_queries: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class AgreementPart:
    """How two models classify the probe inputs.

    Attributes:
        alike: Share of inputs with the same top class; null where the two choose among different classes.
        accuracy_a: Accuracy of the first model; null where no true labels are known.
        accuracy_b: Accuracy of the second model; null where no true labels are known.
    """

    alike: float | None
    accuracy_a: float | None
    accuracy_b: float | None


@dataclass(frozen=True, kw_only=True)
class DistanceDocument(Document):
    """How far apart two models are in what they compute.

    Attributes:
        a: First model.
        b: Second model.
        method: Fingerprint that was compared.
        measure: Measure of the distance.
        value: Distance; 0 is the same.
        interval: 95 % interval over probe inputs; null with a single one.
        n_probes: Number of probe inputs.
        coverage: Share of probe inputs at which the distance is defined.
        agreement: How the two classify the probe inputs.
        per_probe: Distance at each probe input, null where undefined; empty for a measure of the whole set.
        probes: Probe inputs.
        specs: The fingerprint (`method`) and the measure, with version and parameters.
        networks: Digests of the two networks.
        html: Page that was written.
        notes: What the reader left out of the files, changed or took for granted.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.distance", 1)

    asked: DistanceRequest
    a: ModelRef
    b: ModelRef
    method: str
    measure: str
    value: float
    interval: tuple[float, float] | None
    n_probes: int
    coverage: float
    agreement: AgreementPart
    per_probe: tuple[float | None, ...]
    probes: ProbesPart
    specs: Mapping[str, SpecPart]
    networks: tuple[str, str]
    html: str | None
    notes: tuple[ModelNote, ...]


@dataclass(frozen=True, kw_only=True)
class DistanceAnswer:
    """A distance, with how the two models classify the same inputs.

    Attributes:
        request: What was asked.
        models: The two models.
        probes: The probe inputs.
        method: The fingerprint that was compared.
        measure: The measure of the distance.
        result: The distance.
        agreement: How the two classify the inputs.
        only_sketch: Whether the weights of one model are gone, so that its stored sketch was compared.
        pictures: Sections of a page that show where in the inputs the two differ, where a page is asked for.
    """

    request: DistanceRequest
    models: "tuple[Model, Model]"
    probes: "Probes"
    method: "AbstractFingerprinter"
    measure: "AbstractMeasure"
    result: Distance
    agreement: "Agreement"
    only_sketch: bool = False
    pictures: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The document that `stemma distance --json` prints."""
        from stemma.application.method_options import method_label

        found, probes, alike = self.result, self.probes, self.agreement
        specs = {"method": found.fingerprint, "measure": found.measure}
        return DistanceDocument.of(
            self.request,
            a=self.models[0].ref,
            b=self.models[1].ref,
            method=method_label(self.method),
            measure=found.measure.name,
            value=found.value,
            interval=found.interval,
            n_probes=len(probes),
            coverage=found.coverage,
            agreement=AgreementPart(**jsonable(alike)),
            per_probe=found.per_probe,
            probes=ProbesPart(str(probes.digest), probes.kind, probes.source, probes.labelled),
            specs={name: SpecPart(spec.name, spec.version, spec.params) for name, spec in specs.items()},
            networks=(found.a, found.b),
            html=self.request.html,
            notes=notes_on(*self.models),
        ).to_dict()


def distance(
    request: DistanceRequest, progress: Progress | None = None, tell: "Callable[[str], None] | None" = None
) -> DistanceAnswer:
    """Measure how far apart two models are on the same probe inputs.

    Args:
        request: The two models, the inputs and how to measure.
        progress: Told what is being done.
        tell: Told what asking services will cost, before it begins; without, no service is asked.

    Returns:
        The distance and the agreement of labels.

    Raises:
        MisuseError: If a page is asked for and the weights of one model are gone.
    """
    from stemma.application.black_boxes import BlackBoxes, is_black_box
    from stemma.application.method_options import choose_methods
    from stemma.application.modalities import join_modalities
    from stemma.application.opening import open_workspace

    known = tell is not None and any(is_black_box(text) for text in (request.a, request.b))
    named = request.method or ("outputs" if known and request.measure is None else None)
    method, measure = choose_methods(named, request.measure, request.parameters, request.seed)
    networks = request.networks
    workspace = open_workspace(request.registry, progress=progress, prepare=networks.with_network)
    boxes = BlackBoxes(networks, request.max_queries, progress, tell)
    found = [boxes.resolve(workspace, text) for text in (request.a, request.b)]
    probes = boxes.probes(request.probes, found, request.seed)
    a, b = (join_modalities(boxes.answered(model, probes), probes) for model in found)
    models = a, b
    result = workspace.distance(*models, probes, method, measure)
    outputs, agreement = _outputs(models, probes)
    pictures: tuple[str, ...] = ()
    if request.html is not None:
        from stemma.export.difference import Difference, difference_sections

        if outputs is None:
            raise MisuseError("--html shows the outputs of both models, but the weights of one are no longer available")
        difference = Difference(models, probes, method, measure, result, outputs, agreement)
        pictures = tuple(difference_sections(difference, progress))
    return DistanceAnswer(
        request=request, models=models, probes=probes, method=method, measure=measure, result=result,
        agreement=agreement, only_sketch=outputs is None, pictures=pictures,
    )  # fmt: skip


def _outputs(models: "tuple[Model, Model]", probes: "Probes") -> "tuple[Any, Agreement]":
    """The outputs of both models, None where only a sketch of one is left; and how often they agree."""
    from stemma.fingerprints.evaluation import compute_outputs
    from stemma.measures.agreement import Agreement, agreement

    try:
        outputs = compute_outputs(models[0], probes), compute_outputs(models[1], probes)
    except UnreadableModelError:
        return None, Agreement(None, None, None)
    return outputs, agreement(*outputs, probes, scores=all(m.network.scores for m in models))
