"""Train the learned parts on families of networks with a known history."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.application.suggestions import did_you_mean
from stemma.errors import MisuseError, NotAModelError

if TYPE_CHECKING:
    from stemma.ancestry.parent_model import ParentModel
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.kinship.learned.detector import LineageDetector


@dataclass(frozen=True, kw_only=True)
class TrainDetectorRequest:
    """What `stemma train detector` is asked.

    Attributes:
        zoo: Folders of `stemma zoo build`, or kinds such as `mlp+cnn:n=48,seed=1`.
        out: File for the detector.
        preset: `v3`, or `paper` for the published architecture.
        steps: Number of updates; the default if null.
        seed: Of the split, the start and the order.
    """

    zoo: tuple[str, ...]
    out: str
    preset: str = "v3"
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainDirectionRequest:
    """What `stemma train direction` is asked.

    Attributes:
        out: Folder for the two files.
        families: Trees of each kind; as shipped if null.
        kinds: Kinds of networks; all if null.
        seed: Of the first family.
        jobs: Processes that measure families.
    """

    out: str
    families: int | None = None
    kinds: tuple[str, ...] | None = None
    seed: int = 3000
    jobs: int = 2


@dataclass(frozen=True, kw_only=True)
class TrainDnaRequest:
    """What `stemma train dna` is asked.

    Attributes:
        zoo: Folders of `stemma zoo build`, or kinds such as `mlp+cnn:n=24,seed=1`.
        out: File for the encoder.
        probes: Probe inputs for the models of folders.
        similarity: Loss on similarity beside that of the classifier.
        steps: Number of updates; the default if null.
        seed: Of the start and the order.
        networks: How the networks of models in folders are built.
    """

    zoo: tuple[str, ...]
    out: str
    probes: str | None = None
    similarity: str = "none"
    steps: int | None = None
    seed: int = 0
    networks: NetworkOptions = field(default_factory=NetworkOptions)


@dataclass(frozen=True, kw_only=True)
class TrainDetectorDocument(Document):
    """A detector that was trained.

    Attributes:
        file: File of the detector.
        preset: Architecture.
        digest: Digest of its weights.
        models: Number of models that it was trained, selected, calibrated and tested on.
        families: Number of families in each of these parts.
        test: Figures on the test families.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.train-detector", 1)

    asked: TrainDetectorRequest
    file: str
    preset: str
    digest: str
    models: int
    families: Mapping[str, int]
    test: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainDirectionDocument(Document):
    """Models of direction and parents that were trained.

    Attributes:
        folder: Folder of the two files.
        pairs: Number of pairs that direction was learned from.
        queries: Number of suspects that parents were learned from.
        families: Number of families.
        named_from: Probability from which a parent is named, by the number of relatives.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.train-direction", 1)

    asked: TrainDirectionRequest
    folder: str
    pairs: int
    queries: int
    families: Any
    named_from: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainDnaDocument(Document):
    """An encoder of Model DNA that was trained.

    Attributes:
        file: File of the encoder.
        digest: Digest of the encoder.
        groups: Groups of models that it was trained on.
        test: Figures on the sources that were left out.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.train-dna", 1)

    asked: TrainDnaRequest
    file: str
    digest: str
    groups: tuple[str, ...]
    test: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainDetectorAnswer:
    """A detector that was trained.

    Attributes:
        request: What was asked.
        result: The detector.
        models: Number of models that it was trained, selected, calibrated and tested on.
    """

    request: TrainDetectorRequest
    result: "LineageDetector"
    models: int

    def document(self) -> dict[str, Any]:
        """The document that `stemma train detector --json` prints."""
        return TrainDetectorDocument.of(
            self.request,
            file=self.request.out,
            preset=self.request.preset,
            digest=self.result.weights_digest,
            models=self.models,
            families=self.result.made["families"],
            test=self.result.made["test"],
        ).to_dict()


@dataclass(frozen=True, kw_only=True)
class TrainDirectionAnswer:
    """Models of direction and parents that were trained.

    Attributes:
        request: What was asked.
        result: The two models.
    """

    request: TrainDirectionRequest
    result: "ParentModel"

    def document(self) -> dict[str, Any]:
        """The document that `stemma train direction --json` prints."""
        made = self.result
        return TrainDirectionDocument.of(
            self.request,
            folder=self.request.out,
            pairs=made.direction.trees.about["pairs"],
            queries=made.trees.about["queries"],
            families=made.trees.about["families"],
            named_from={n: made.parent_threshold(k) for n, k in (("one", 1), ("three", 3), ("more", 8))},
        ).to_dict()


@dataclass(frozen=True, kw_only=True)
class TrainDnaAnswer:
    """An encoder of Model DNA that was trained.

    Attributes:
        request: What was asked.
        result: The encoder.
        groups: Groups of models that it was trained on.
        models: Number of models that it was trained on.
        test: Figures on the sources that were left out.
    """

    request: TrainDnaRequest
    result: "FragmentEncoder"
    groups: tuple[str, ...]
    models: int
    test: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The document that `stemma train dna --json` prints."""
        return TrainDnaDocument.of(
            self.request, file=self.request.out, digest=self.result.digest, groups=self.groups, test=self.test
        ).to_dict()


def train_detector(request: TrainDetectorRequest, progress: Progress | None = None) -> TrainDetectorAnswer:
    """Train a lineage detector; whole families are used for training, selection, calibration or the test.

    Args:
        request: The families and the file.
        progress: Told what is being done.

    Returns:
        The detector.

    Raises:
        MisuseError: If there is no such preset.
    """
    from stemma.kinship.learned.detector import PRESETS, LineageDetector

    preset = request.preset
    if preset not in PRESETS:
        raise MisuseError(
            f"no preset is called '{preset}'.{did_you_mean(preset, PRESETS)} There are: {', '.join(PRESETS)}"
        )
    from stemma.training.detector import PAPER, Training, train
    from stemma.training.detector_questions import pools
    from stemma.training.detector_zoo import probes_for

    paper = preset == "paper"
    start = LineageDetector(preset=preset)
    given = [relatives for one in request.zoo for relatives in _families(one, progress)]
    asked = probes_for if paper else None
    found = pools(given, cap=start.cap, per_layer=start.per_layer, probes=asked, matrix=paper)
    usual = PAPER if paper else Training()
    training = replace(usual, steps=request.steps or usual.steps, seed=request.seed)
    options = f"--preset {preset} --steps {training.steps} --seed {request.seed}"
    made = {"command": f"stemma train detector {_names(request.zoo)} {options}"}
    trained = train(found, start, training, made, progress)
    trained.save(Path(request.out))
    return TrainDetectorAnswer(request=request, result=trained, models=sum(map(len, found)))


def train_direction(request: TrainDirectionRequest, progress: Progress | None = None) -> TrainDirectionAnswer:
    """Train the models that tell which of two came first, and which of several is the parent.

    Args:
        request: The families and the folder.
        progress: Told what is being done.

    Returns:
        Both models.

    Raises:
        MisuseError: If kinds are given without the number of families.
        NotAModelError: If the folder is a file.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from stemma.training.parent_model import Families, train_parent_model

    out = Path(request.out)
    if out.exists() and not out.is_dir():
        raise NotAModelError(f"{out} is a file: --out takes a folder for two files")
    chosen, families = Families(seed=request.seed), request.families
    if families is not None:
        kinds = list(request.kinds or chosen.pairs)
        half, third = families // 2, families // 3
        pairs, parents = dict.fromkeys(kinds, half), dict.fromkeys(kinds, third)
        chosen = Families(pairs, parents, dict.fromkeys(kinds, families - half - third), request.seed)
    elif request.kinds:
        raise MisuseError("--kind goes with --families, which says how many of each")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(request.jobs, mp_context=context) as pool:
        made = train_parent_model(chosen, pool, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    made.direction.trees.save(out / "direction.safetensors")
    made.trees.save(out / "parenthood.safetensors")
    return TrainDirectionAnswer(request=request, result=made)


def train_dna(request: TrainDnaRequest, progress: Progress | None = None) -> TrainDnaAnswer:
    """Train the encoder and the provenance classifier of Model DNA; a quarter of the sources is left out for the test.

    Args:
        request: The families and the file.
        progress: Told what is being done.

    Returns:
        The encoder, and figures on the sources that were left out.

    Raises:
        MisuseError: If probe inputs and folders do not go together, or images and texts are mixed.
    """
    from stemma.training import dna_groups
    from stemma.training.dna import TEXT_HIDDEN, Training, evaluate, split_sources, train

    folders = [Path(one) for one in request.zoo if Path(one).exists()]
    if not folders and request.networks.network is not None:
        raise MisuseError(
            "--network builds the networks of models in folders: give a folder with models and truth.json"
        )
    if bool(folders) != (request.probes is not None):
        raise MisuseError("--probes gives the inputs for the models of folders: use it with folders, and only then")
    recipes = [r for one in request.zoo if not Path(one).exists() for r in dna_groups.parse_groups(one)]
    of_folders = [_group_of(folder, request, progress) for folder in folders]
    groups = [group for group, _ in of_folders]
    kinds = {text for _, text in of_folders} | {r.kind == "lm" for r in recipes}
    if len(kinds) > 1:
        raise MisuseError("images and texts need separate encoders: train one on lm alone and one on the others")
    hidden = TEXT_HIDDEN if kinds == {True} else Training.hidden
    seed = request.seed
    training = Training(similarity=request.similarity, seed=seed, steps=request.steps or Training.steps, hidden=hidden)
    groups += [dna_groups.measure_group(recipe, progress=progress) for recipe in recipes]
    learning, asked = split_sources(groups)
    options = f"--similarity {request.similarity} --steps {training.steps} --seed {seed}"
    made = {"command": f"stemma train dna {_names(request.zoo)} {options}", "groups": [g.name for g in groups]}
    trained = train(learning, training, made, progress)
    test = evaluate(trained, asked, learning)
    replace(trained, about={**trained.about, "test": test}).save(Path(request.out))
    return TrainDnaAnswer(
        request=request,
        result=trained,
        groups=tuple(g.name for g in groups),
        models=sum(len(g.way) for g in learning),
        test=test,
    )


def _names(zoo: tuple[str, ...]) -> str:
    return " ".join(Path(one).name for one in zoo)


def _group_of(folder: Path, request: TrainDnaRequest, progress: Progress | None) -> tuple[Any, bool]:
    """The group of models in a folder, and whether they read text."""
    from stemma.training import dna_groups, relatives

    networks, found = request.networks, relatives.relatives_from_folder(folder, progress)
    found = [replace(r, model=networks.with_network(r.model)) for r in found]
    inputs = networks.read_probes(request.probes, found[0].model)
    return dna_groups.group_from_relatives(folder.name, found, inputs), inputs.kind == "tokens"


def _families(zoo: str, progress: Progress | None) -> list[Any]:
    from stemma.training import detector_curriculum, detector_zoo, relatives

    if Path(zoo).exists():
        return relatives.relatives_from_folder(Path(zoo), progress)
    if (drawn := detector_curriculum.parse(zoo)) is not None:
        return detector_curriculum.build(*drawn, progress=progress)
    kinds, count, seed = detector_zoo.parse_zoo(zoo)
    return detector_zoo.build_families(kinds, count, seed, progress=progress)
