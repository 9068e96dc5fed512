"""Put checkpoints into the registry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.workspace.enrol import AddResult

AT_ONCE = 16
"""Models of a list that are asked for before the next ones: what was enrolled by then is kept if the run is stopped."""

LONGEST_LIST = 20_000_000
"""Most characters of a list."""


@dataclass(frozen=True, kw_only=True)
class EnrolRequest:
    """What `stemma add` is asked.

    Attributes:
        paths: Checkpoints and folders.
        registry: Registry; the default one if null.
        name: Name of the one model given.
        license: Licence of these models.
        keep_weights: Whether a copy of the weights is stored too.
        replace: Whether a known name may stand for new weights.
        all_formats: Whether .npz and ONNX files are taken from folders too.
        jobs: Processes that read models at once.
        cluster: Address of the cluster that reads the models; this machine if null.
        probes: Probe inputs of a functional sketch; none is stored if null.
        networks: How networks are built and run.
        seed: Of whatever is drawn at random.
        hub_list: File with one repository of the hub in a line: `hf:ORG/NAME[@REVISION]`; none if null.
        download: Whether models on servers are fetched as a whole.
    """

    paths: tuple[str, ...] = ()
    registry: str | None = None
    name: str | None = None
    license: str | None = None
    keep_weights: bool = False
    replace: bool = False
    all_formats: bool = False
    jobs: int = 1
    cluster: str | None = None
    probes: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None
    hub_list: str | None = None
    download: bool = False


@dataclass(frozen=True, slots=True)
class EnrolledPart:
    """What became of one checkpoint.

    Attributes:
        name: Name of the model.
        path: File, folder, or address of a model on a server.
        digest: Digest of its weights; null where they could not be read. It begins with `partial:` where only a sample
            of them was read.
        status: What became of it.
        error: What is wrong; null where nothing is.
        note: What a person should know; empty for nothing.
    """

    name: str
    path: str
    digest: str | None
    status: Literal["added", "known", "replaced", "failed", "skipped", "left out"]
    error: str | None
    note: str


@dataclass(frozen=True, kw_only=True)
class EnrolDocument(Document):
    """What became of the checkpoints that were added.

    Attributes:
        registry: Where the registry lies: its file, or its address without the password.
        models: Every checkpoint.
        failed: Number of checkpoints that could not be added.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.add", 1)

    asked: EnrolRequest
    registry: str
    models: tuple[EnrolledPart, ...]
    failed: int


@dataclass(frozen=True, kw_only=True)
class EnrolAnswer:
    """What became of the checkpoints that were added.

    Attributes:
        request: What was asked.
        registry: Where the registry lies: its file, or its address without the password.
        results: Every checkpoint, in order.
    """

    request: EnrolRequest
    registry: str
    results: "tuple[AddResult, ...]"

    @property
    def failed(self) -> int:
        """Number of checkpoints that could not be added."""
        return sum(1 for result in self.results if result.error)

    def document(self) -> dict[str, Any]:
        """The document that `stemma add --json` prints."""
        names = ("name", "path", "digest", "status", "error", "note")
        rows: list[dict[str, Any]] = [
            {name: None if (value := getattr(r, name)) is None else str(value) for name in names} for r in self.results
        ]
        models = tuple(EnrolledPart(**row) for row in rows)
        return EnrolDocument.of(self.request, registry=self.registry, models=models, failed=self.failed).to_dict()


def unclear_licence(license: str | None) -> str:
    """Why no policy understands a licence, empty where one does; an empty licence is a MisuseError."""
    from stemma.application.policies import why_unclear

    if license is not None and not license.strip():
        raise MisuseError("--license is given without a licence")
    return why_unclear(license) if license is not None else ""


def enrol(
    request: EnrolRequest, progress: Progress | None = None, on_result: "Callable[[AddResult], None] | None" = None
) -> EnrolAnswer:
    """Enrol checkpoints; one that cannot be read never stops the others.

    Args:
        request: The checkpoints and how to enrol them.
        progress: Told what is being done.
        on_result: Told what became of each checkpoint, as soon as it is known.

    Returns:
        What became of every checkpoint.

    Raises:
        MisuseError: If nothing is given, or one name for several models.
    """
    from stemma.application.modalities import ModalitiesJoined
    from stemma.application.opening import open_workspace
    from stemma.checkpoints.remote import place
    from stemma.checkpoints.remote.names import whole

    unclear_licence(request.license)
    networks = request.networks
    given, bad = _listed(request.hub_list)
    paths = [place(whole(path) if request.download else path) for path in (*request.paths, *given)]
    if not paths and not bad:
        raise MisuseError("nothing is given to add: give paths, hf:ORG/NAME, or --hub-list FILE with some lines")
    probes = None
    if request.probes is not None:
        probes = networks.read_probes(request.probes, networks.first_runnable(paths), request.seed)
    prepare = ModalitiesJoined(networks.with_network, probes)
    workspace = open_workspace(request.registry, request.jobs, progress, prepare, request.cluster)
    results = list(bad)
    for result in bad:
        if on_result is not None:
            on_result(result)
    if request.name is not None and len(paths) != 1:
        raise MisuseError(f"--name names one model, but {len(paths) + len(bad)} were given")
    for at in range(0, len(paths), AT_ONCE) if request.hub_list else (0,):
        results += workspace.add(
            paths[at : at + AT_ONCE] if request.hub_list else paths,
            name=request.name,
            license=request.license,
            keep_weights=request.keep_weights,
            replace=request.replace,
            all_formats=request.all_formats,
            probes=probes,
            on_result=on_result,
        )
    return EnrolAnswer(request=request, registry=workspace.registry.where, results=tuple(results))


def _listed(file: str | None) -> "tuple[list[str], list[AddResult]]":
    """The repositories that a list names, each once, and a result for each line that names none."""
    from stemma.checkpoints.remote.names import HUB, is_remote, parse
    from stemma.errors import StemmaError
    from stemma.workspace.enrol import AddResult

    if file is None:
        return [], []
    try:
        with Path(file).open(encoding="utf-8-sig") as lines:
            text = lines.read(LONGEST_LIST + 1)
    except (OSError, UnicodeDecodeError) as e:
        raise MisuseError(f"--hub-list {file} cannot be read as text: {e}") from e
    if len(text) > LONGEST_LIST:
        raise MisuseError(f"--hub-list {file} is longer than {LONGEST_LIST:,} characters: is it a list of names?")
    names: dict[str, None] = {}
    bad = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition(" #")[0].strip()
        if not word or word.startswith("#"):
            continue
        address = word if is_remote(word) else f"{HUB}{word}"
        try:
            parse(address)
            names[address] = None
        except StemmaError as e:
            bad.append(AddResult(word[:200], address[:200], None, "failed", f"{file}, line {number}: {e}"))
    return list(names), bad
