"""Folders: which of them are checkpoints, where checkpoints lie below a folder, and how a checkpoint folder is read."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stemma.checkpoints import adapters, cards, duplicate_files, hub_cache, parallel_ranks, shards
from stemma.checkpoints.assemble import models_of, read_file
from stemma.checkpoints.formats import ALL, GENERIC, ON_REQUEST, distributed, foreign, tfjs
from stemma.checkpoints.model import Model
from stemma.errors import NotAModelError
from stemma.types.edits import RECEIPT, UNDO

WEIGHTS = (
    re.compile(r"^(model|diffusion_pytorch_model|open_clip_model|pytorch_model)\.safetensors$"),
    re.compile(r"^[^.].*\.safetensors$"),
    re.compile(r"^(pytorch_model|diffusion_pytorch_model|model)\.(bin|pt|pth)$"),
    re.compile(r"^[^.].*\.(bin|pt|pth|ckpt)$"),
    re.compile(r"^[^.].*\.gguf$"),
    re.compile(r"^(tf_model\.h5|model\.weights\.h5|model\.keras|flax_model\.msgpack)$"),
    re.compile(r"^[^.].*\.(h5|keras|msgpack|tflite|onnx|pdparams|pt2)$"),
    re.compile(rf"^{re.escape(tfjs.MANIFEST)}$"),
    re.compile(r"^[^.].*\.index$"),
)
"""Weight files of a checkpoint folder, best first: a folder often holds the same weights in several formats."""

NOT_WEIGHTS = re.compile(
    r"^(\.|__)|^(training_args|optimizer|scheduler|lr_scheduler|scaler)([-_.]\d+)*\.(bin|pt|pth)$|"
    r"^(rng_state|random_states)([-_]\d+)*\.(pth|pt|pkl)$|optim_states\.pt$|^tokenizer\.model$|\.index\.json$"
)
"""Files beside weights that carry a weight file's ending and are none."""


SAVED = Path("variables", "variables.index")
"""Where the variables of a TensorFlow SavedModel lie in its folder."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies and what it is called.

    Attributes:
        name: Path relative to the folder that was searched, without the file's ending.
        path: The file, or the folder where the folder is one checkpoint.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Skipped:
    """Something in a folder that holds a model and is not read.

    Attributes:
        path: The file or folder.
        why: What it is and what to do, without the path.
        sure: Whether it surely is a model; archives, pickles and arrays may be anything.
    """

    path: Path
    why: str
    sure: bool = True


def default_name(path: Path) -> str:
    """A file's stem or a folder's own name.

    Returns:
        The name.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link that the user named
    return (path.name if path.is_dir() else path.stem) or "model"


def discover(root: Path | str, all_formats: bool = False) -> Iterator[Checkpoint]:
    """Find the checkpoints below a folder, in sorted order; each folder is entered once, whatever links lead to it.

    A checkpoint folder (config beside weights, shards, adapter, pipeline) is one checkpoint; checkpoint folders inside
    it are found too. Files that are no checkpoints are skipped; so are damaged ones only if their ending says nothing.

    Args:
        root: A folder, or a single checkpoint file.
        all_formats: Include NumPy and ONNX files, which are more often data than models.

    Yields:
        The checkpoints.

    Raises:
        NotAModelError: If the path does not exist.
    """
    yield from (c for c in survey(root, all_formats) if isinstance(c, Checkpoint))


def survey(root: Path | str, all_formats: bool = False) -> Iterator[Checkpoint | Skipped]:
    """What lies below a folder: the checkpoints, and the files and folders that hold models of kinds that are not read.

    Args:
        root: A folder, or a single checkpoint file.
        all_formats: As for `discover`.

    Yields:
        Both, in sorted order.

    Raises:
        NotAModelError: If the path does not exist.
    """
    root = Path(root)
    if not root.exists():
        raise NotAModelError(f"there is nothing at {root}. Is the path right?")
    if not root.is_dir() or is_checkpoint(root):
        yield Checkpoint(default_name(root), root)
        return
    yield from _below(root, "", all_formats, set())


def _below(folder: Path, prefix: str, all_formats: bool, seen: set[tuple[int, int]]) -> Iterator[Checkpoint | Skipped]:
    try:
        stat = folder.stat()
        entries = sorted(folder.iterdir(), key=lambda p: p.name)
    except OSError:
        return  # a link that leads nowhere, or a folder that may not be read
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    if hub_cache.is_cache(folder):
        for label, revision in hub_cache.snapshots(folder).items():
            inner = f"{prefix or default_name(folder) + '/'}{label}/" if label else prefix or f"{default_name(folder)}/"
            yield from _below(revision, inner, all_formats, seen)
        return
    whole = bool(prefix) and is_checkpoint(folder)
    if whole:
        yield Checkpoint(prefix.removesuffix("/"), folder)
        if is_pipeline(folder):
            return
    strange = foreign.of_folder(folder)
    if strange is not None and not whole:
        yield Skipped(strange[0], f"{strange[1].what}, which Stemma does not read: {strange[1].todo}")
        if prefix or strange[1] is foreign.ZERO3:
            return
    files = [] if whole else [p for p in entries if is_weight_file(p, all_formats)]
    yield from _skipped(entries, files, whole)
    folders = [p for p in entries if p.is_dir() and not p.name.startswith((".", "__"))]
    stems = [p.stem for p in files] + [p.name for p in folders]
    found: list[tuple[str, Path]] = [(p.name if stems.count(p.stem) > 1 else p.stem, p) for p in files]
    for label, path in sorted([*found, *((p.name, p) for p in folders)]):
        if path.is_dir():
            if not whole or is_checkpoint(path):
                yield from _below(path, f"{prefix}{label}/", all_formats, seen)
        else:
            yield Checkpoint(f"{prefix}{label}", path)


def _skipped(entries: list[Path], taken: list[Path], whole: bool) -> Iterator[Skipped]:
    if whole:
        return
    known = set(taken)
    others = [p for p in entries if p not in known and not _beside_weights(p) and p.is_file()]
    for path, kind in foreign.foreign_files(others):
        yield Skipped(path, f"{kind.what}, which Stemma does not read: {kind.todo}", kind not in foreign.UNSURE)
    for path in others:
        if path.suffix.lower() in ON_REQUEST:
            yield Skipped(path, f"{path.suffix.lower()[1:]}, taken from folders only with --all-formats", sure=False)


def is_weight_file(path: Path, all_formats: bool = False) -> bool:
    """Whether a file in a folder is to be taken for a checkpoint of its own.

    Returns:
        True by its ending; for endings that many programs use, by its first bytes.
    """
    suffix = path.suffix.lower()
    if _beside_weights(path) or not (path.is_file() or path.is_symlink()) or path.is_dir():
        return False
    if suffix in ON_REQUEST and not all_formats:
        return False
    if suffix in GENERIC or path.name == tfjs.MANIFEST:
        return _sniffed(path)
    return any(suffix in f.suffixes for f in ALL)


def _beside_weights(path: Path) -> bool:
    """Training state, tokenizers, and the weights before an edit, which Stemma keeps beside those after it."""
    return bool(NOT_WEIGHTS.search(path.name)) or (path.name == UNDO and (path.parent / RECEIPT).is_file())


def _sniffed(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            head = f.read(64)
    except OSError:
        return False
    if path.suffix.lower() in ("", ".json", ".dat", ".data") and foreign.is_pointer(head):
        return False  # a pointer to a file that may be anything
    return foreign.is_pointer(head) or any(f.recognises(path, head) for f in ALL)


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is one checkpoint: shards, ranks, an adapter, a pipeline, weights beside a config or receipt.

    Returns:
        True if so.
    """
    if distributed.is_distributed(folder) or hub_cache.is_cache(folder) or parallel_ranks.find(folder):
        return True
    if shards.find(folder) or adapters.is_adapter(folder) or is_pipeline(folder):
        return True
    if (folder / SAVED).is_file():
        return True
    described = (folder / "config.json").is_file() or (folder / RECEIPT).is_file()
    return described and weight_file(folder) is not None


def is_pipeline(folder: Path) -> bool:
    """Whether the folder says that it is a pipeline of components.

    Returns:
        True if so.
    """
    return (folder / "model_index.json").is_file()


def weight_file(folder: Path) -> Path | None:
    """The weight file of a checkpoint folder.

    Returns:
        The best format's only file, or its file of the customary name; None where there is none or the choice is open.
    """
    names = sorted(p.name for p in folder.iterdir() if not _beside_weights(p) and p.is_file())
    for pattern in WEIGHTS:
        matching = [n for n in names if pattern.match(n) and is_weight_file(folder / n, all_formats=True)]
        if matching:
            customary = len(matching) == 1 or pattern in (WEIGHTS[0], WEIGHTS[2])
            return folder / matching[0] if customary else None
    return None


def _weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_weight_file(p, all_formats=True))


def open_file(path: Path, name: str) -> tuple[Model, ...]:
    """Open one file; where it is the weights of a checkpoint folder, with the folder's config and claims.

    Returns:
        The main model and, where there is one, its averaged copy.
    """
    part = shards.alone(path)
    if part is not None:
        raise part
    folder = path.parent
    if path.name in adapters.WEIGHTS and adapters.is_adapter(folder):
        return open_folder(folder, name)
    if (folder / "config.json").is_file() and weight_file(folder) == path:
        config, claims, notes = cards.read(folder)
        return adapters.refuse_alone(path, models_of(read_file(path), name, path, config, claims, notes))
    return adapters.refuse_alone(path, models_of(read_file(path), name, path))


def open_folder(folder: Path, name: str) -> tuple[Model, ...]:
    """Open a checkpoint folder.

    Args:
        folder: Shards, an adapter, one weight file beside its config, or components in sub-folders.
        name: What to call the model.

    Returns:
        The model, or one per component.

    Raises:
        NotAModelError: If the folder holds no checkpoint, or several.
    """
    if hub_cache.is_cache(folder):
        revision, others = hub_cache.snapshot(folder), len(hub_cache.snapshots(folder)) - 1
        found = open_folder(revision, name)
        if not others:
            return found
        text = f"{folder} holds {others} other revisions, {revision.name[:8]} is the one that is read"
        duplicate_files.warn(text)
        return tuple(replace(m, notes=(*m.notes, text)) for m in found)
    config, claims, notes = cards.read(folder)
    index = shards.find(folder)
    if index:
        return models_of(shards.read(folder, index), name, folder, config, claims, notes)
    if distributed.is_distributed(folder):
        return models_of(distributed.read(folder), name, folder, config, claims, notes)
    if (folder / SAVED).is_file():
        return models_of(read_file(folder / SAVED), name, folder, config, claims, notes)
    cut = parallel_ranks.find(folder)
    if cut and not (folder / "config.json").is_file():
        return models_of(parallel_ranks.read(folder, cut), name, folder, config, claims, notes)
    if adapters.is_adapter(folder):
        return adapters.open_adapter(folder, name, claims, _load_base)
    if not is_pipeline(folder):
        weights = weight_file(folder)
        if weights is not None:
            more = duplicate_files.beside(weights, [p for p in _weight_files(folder) if p != weights])
            found = models_of(read_file(weights), name, folder, config, claims, (*notes, *more))
            return adapters.refuse_alone(folder, found)
    return _components(folder, name)


def _load_base(path: Path) -> Model:
    name = default_name(path)
    return (open_folder(path, name) if path.is_dir() else open_file(path, name))[0]


def _components(folder: Path, name: str) -> tuple[Model, ...]:
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    whole = is_pipeline(folder)
    parts = [p for p in inside if is_checkpoint(p) or (whole and weight_file(p) is not None)]
    if not parts:
        raise NotAModelError(nothing_in(folder))
    out: list[Model] = []
    for part in parts:
        if not is_pipeline(part):  # a pipeline inside a pipeline is a model of its own, and could be a loop of links
            out.extend(open_folder(part, f"{name}/{part.name}"))
    left = [
        f"a part of {folder} was not read: {skipped.path} is {skipped.why}"
        for part in inside if whole and part not in parts
        for skipped in _below(part, "", True, set()) if isinstance(skipped, Skipped)
    ]  # fmt: skip
    for text in left:
        duplicate_files.warn(text)
    return tuple(replace(m, notes=(*m.notes, *left)) for m in out) if left else tuple(out)


def nothing_in(folder: Path) -> str:
    """Why a folder is no checkpoint.

    Args:
        folder: The folder.

    Returns:
        One sentence: what it holds instead, or that the path may be wrong.
    """
    found = list(_below(folder, "", True, set()))
    there = [c.name for c in found if isinstance(c, Checkpoint) and c.path.exists()]
    if there:
        return f"{folder} is not a checkpoint folder. It holds {len(there)} checkpoint files ({there[0]} …): name one"
    lost = next((p for p in sorted(folder.iterdir()) if p.is_symlink() and not p.exists()), None)
    if lost is not None:
        return f"{lost} is a link to a file that is not there. Was the download interrupted, or the cache cleaned?"
    state = next((p.name for p in sorted(folder.iterdir()) if "optim" in p.name and NOT_WEIGHTS.search(p.name)), None)
    if state is not None:
        return f"{folder} holds an optimizer's state ({state}), not a network. Give the folder with the weights"
    skipped = next((s for s in found if isinstance(s, Skipped)), None)
    if skipped is not None:
        return f"{folder} holds no checkpoint that is read: {skipped.path} is {skipped.why}"
    return f"{folder} is not a checkpoint folder. Is the path right?"
