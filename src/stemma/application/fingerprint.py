"""What does a fingerprint record of one model? Request, answer and JSON document of `stemma fingerprint`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError
from stemma.types import Fingerprint, ModelRef

if TYPE_CHECKING:
    import numpy as np

    from stemma.checkpoints.model import Model
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.probes import Probes


@dataclass(frozen=True, kw_only=True)
class FingerprintRequest:
    """What `stemma fingerprint` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        method: Name of the fingerprint; the weight sketch if null.
        probes: Probe inputs, for fingerprints of what a model computes.
        parameters: Parameters of the fingerprint, as `name=value`.
        training_sample: Inputs like those that the model was trained on, for a DNA.
        encoder: Encoder of a DNA: a file or `untrained`; the one that ships if null.
        out: File for the values, as .npz.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        max_queries: Inputs that may be sent to services; the default if null.
        seed: Of whatever is drawn at random.
    """

    model: str
    method: str | None = None
    probes: str | None = None
    parameters: tuple[str, ...] | None = None
    training_sample: str | None = None
    encoder: str | None = None
    out: str | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    max_queries: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class MethodPart:
    """The method behind a fingerprint.

    Attributes:
        name: Name of the method.
        version: Raised whenever the figures of the method change.
        params: Parameters of the method.
        digest: Digest of name, version and parameters.
    """

    name: str
    version: int
    params: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """One array of a fingerprint.

    Attributes:
        dtype: Number format.
        shape: Lengths of its axes.
        digest: Digest of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class FingerprintDocument(Document):
    """A fingerprint of one model.

    Attributes:
        model: Model.
        method: Method.
        values: Arrays of the fingerprint, by name.
        probes: Digest of the probe inputs; null for a fingerprint of the weights.
        kept: Whether it is kept in the registry, to be compared later without the model.
        out: File that was written.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.fingerprint", 1)

    asked: FingerprintRequest
    model: ModelRef
    method: MethodPart
    values: Mapping[str, ArrayPart]
    probes: str | None
    kept: bool
    out: str | None


@dataclass(frozen=True, kw_only=True)
class FingerprintAnswer:
    """A fingerprint of one model.

    Attributes:
        request: What was asked.
        model: The model.
        probes: The probe inputs; None for a fingerprint of the weights.
        result: The fingerprint.
        arrays: Its values, by name.
        kept: Whether it is kept in the registry.
    """

    request: FingerprintRequest
    model: "Model"
    probes: "Probes | None"
    result: Fingerprint
    arrays: "Mapping[str, np.ndarray]"
    kept: bool

    def values(self) -> dict[str, ArrayPart]:
        """What is stated of each array."""
        import hashlib

        return {
            name: ArrayPart(str(a.dtype), tuple(a.shape), "sha256:" + hashlib.sha256(a.tobytes()).hexdigest())
            for name, a in self.arrays.items()
        }

    def document(self) -> dict[str, Any]:
        """The document that `stemma fingerprint --json` prints."""
        spec = self.result.spec
        return FingerprintDocument.of(
            self.request,
            model=self.model.ref,
            method=MethodPart(spec.name, spec.version, spec.params, spec.digest),
            values=self.values(),
            probes=self.result.probes,
            kept=self.kept,
            out=self.request.out,
        ).to_dict()


def fingerprint(
    request: FingerprintRequest, progress: Progress | None = None, tell: "Callable[[str], None] | None" = None
) -> FingerprintAnswer:
    """Take a fingerprint of one model; a DNA of an enrolled model is kept in the registry.

    Args:
        request: The model and the method.
        progress: Told what is being done.
        tell: Told what asking services will cost, before it begins; without, no service is asked.

    Returns:
        The fingerprint.

    Raises:
        MisuseError: If the method looks at weights, and the model has none.
    """
    import numpy as np

    from stemma.application.black_boxes import BlackBoxes
    from stemma.application.method_options import make_fingerprinter
    from stemma.application.modalities import join_modalities
    from stemma.application.opening import open_workspace
    from stemma.fingerprints import ALL
    from stemma.fingerprints.dna import DNA

    networks, seed = request.networks, request.seed
    method = make_fingerprinter(request.method or ALL[0].name, request.parameters, seed)
    runs = _runs_the_network(request, method)
    workspace = open_workspace(request.registry, progress=progress, prepare=networks.with_network)
    boxes = BlackBoxes(networks, request.max_queries, progress, tell)
    model = boxes.resolve(workspace, request.model)
    if model.black_box and not runs:
        raise MisuseError(f"{model.name} has no weights: --method outputs --probes P records its answers")
    probes = boxes.probes(request.probes, [model], seed) if runs else None
    model = join_modalities(boxes.answered(model, probes), probes)
    kept = False
    if isinstance(method, DNA) and probes is not None:
        given = request.training_sample
        sample = None if given is None else networks.read_probes(given, model, seed)
        result = replace(method, encoder=_encoder(request.encoder, probes.kind))(model, probes, sample)
        kept = workspace.keep(model, result)
    else:
        result = method(model) if probes is None else method(model, probes)
    arrays = {name: np.ascontiguousarray(value) for name, value in result.values.items()}
    if request.out is not None:
        to = {} if probes is None else {"probes_digest": np.array(str(probes.digest))}
        with Path(request.out).open("wb") as file:
            np.savez(file, **arrays, **to)  # ty: ignore[invalid-argument-type]
    return FingerprintAnswer(request=request, model=model, probes=probes, result=result, arrays=arrays, kept=kept)


def _runs_the_network(request: FingerprintRequest, method: Any) -> bool:
    """Whether the method runs the network on probe inputs; options of other methods are a MisuseError."""
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.fingerprints.dna import DNA

    runs = isinstance(method, (DNA, AbstractFingerprinter))
    if request.probes is not None and not runs:
        raise MisuseError(
            f"{method.name} is a fingerprint of the weights and takes no probe inputs: leave --probes out"
        )
    for option, value in (("--training-sample", request.training_sample), ("--encoder", request.encoder)):
        if value is not None and not isinstance(method, DNA):
            raise MisuseError(f"{option} belongs to method dna, not to {method.name}")
    return runs


def _encoder(given: str | None, kind: str) -> "FragmentEncoder":
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.training import shipped_dna

    if given == "untrained":
        return FragmentEncoder.untrained()
    return shipped_dna(kind) if given is None else FragmentEncoder.load(Path(given))
