"""Checkpoint folders: recognise them, find checkpoints below a folder, and read them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stemma.checkpoints import adapters, cards, duplicate_files, hub_cache, parallel_ranks, shards
from stemma.checkpoints.assemble import build_models, read_file
from stemma.checkpoints.formats import ALL, GENERIC, ON_REQUEST, distributed, tfjs, unsupported
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
"""Weight files of a checkpoint folder, best first: a folder often has the same weights in several formats."""

NOT_WEIGHTS = re.compile(
    r"^(\.|__)|^(training_args|optimizer|scheduler|lr_scheduler|scaler)([-_.]\d+)*\.(bin|pt|pth)$|"
    r"^(rng_state|random_states)([-_]\d+)*\.(pth|pt|pkl)$|optim_states\.pt$|^tokenizer\.model$|\.index\.json$"
)
"""Files with the extension of a weight file that contain no weights."""


MAX_DEPTH = 64
"""Folders inside one another that are searched."""

SAVED_MODEL_INDEX = Path("variables", "variables.index")
"""The variables of a TensorFlow SavedModel, relative to its folder."""


@dataclass(frozen=True)
class Checkpoint:
    """The path and name of a checkpoint.

    Attributes:
        name: Path relative to the searched folder, without the file extension.
        path: The file, or the folder if the folder is one checkpoint; the address of a model on a server.
    """

    name: str
    path: Path | str


@dataclass(frozen=True)
class Unread:
    """A file or folder that looks like a model and is not read.

    Attributes:
        path: The file or folder.
        reason: What it is and what to do, without the path.
        is_model: Whether it certainly is a model; archives, pickles and arrays may be anything.

    """

    path: Path
    reason: str
    is_model: bool = True


def default_name(path: Path) -> str:
    """A file's stem or a folder's own name."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link that the user named
    return (path.name if path.is_dir() else path.stem) or "model"


def discover(root: Path | str, all_formats: bool = False) -> Iterator[Checkpoint]:
    """Find the checkpoints below a folder, in sorted order; each folder is visited once, whatever links lead to it.

    A checkpoint folder (config next to weights, shards, adapter, pipeline) is one checkpoint; checkpoint folders inside
    it are found too. Other files are skipped.

    Args:
        root: A folder, or a single checkpoint file.
        all_formats: Include NumPy and ONNX files, which are more often data than models.

    Yields:
        The checkpoints.

    Raises:
        NotAModelError: If the path does not exist.
    """
    yield from (c for c in survey(root, all_formats) if isinstance(c, Checkpoint))


def survey(
    root: Path | str, all_formats: bool = False, leaving: frozenset[Path] = frozenset()
) -> Iterator[Checkpoint | Unread]:
    """Find the checkpoints below a folder, and the files and folders with models that are not read.

    Args:
        root: A folder, or a single checkpoint file.
        all_formats: As for `discover`.
        leaving: Links that are not followed.

    Yields:
        Both, in sorted order.

    Raises:
        NotAModelError: If the path does not exist.
    """
    given, root = str(root), Path(root)
    if not root.exists() and given.startswith(("endpoint:", "outputs:")):
        raise NotAModelError(
            f"{given.partition(':')[0]}: stands for a model without weights, which is not enrolled and has no place "
            "in a family tree. Ask about it with stemma compare, trace or distance"
        )
    if not root.exists():
        raise NotAModelError(f"{root} does not exist. Check the path")
    if not root.is_dir() or is_checkpoint(root):
        yield Checkpoint(default_name(root), root)
        return
    yield from _walk(root, "", all_formats, set(), leaving)


def _walk(
    folder: Path,
    prefix: str,
    all_formats: bool,
    visited: set[tuple[int, int]],
    leaving: frozenset[Path] = frozenset(),
) -> Iterator[Checkpoint | Unread]:
    try:
        stat = folder.stat()
        entries = sorted((p for p in folder.iterdir() if p not in leaving), key=lambda p: p.name)
    except OSError:
        return  # a dangling link, or a folder without permission
    if (stat.st_dev, stat.st_ino) in visited:
        return
    if prefix.count("/") > MAX_DEPTH:
        yield Unread(folder, f"more than {MAX_DEPTH} folders deep: give its own path", is_model=False)
        return
    visited.add((stat.st_dev, stat.st_ino))
    if hub_cache.is_cache(folder):
        for label, revision in hub_cache.snapshots(folder).items():
            inner = f"{prefix or default_name(folder) + '/'}{label}/" if label else prefix or f"{default_name(folder)}/"
            yield from _walk(revision, inner, all_formats, visited, leaving)
        return
    whole = bool(prefix) and is_checkpoint(folder)
    if whole:
        yield Checkpoint(prefix.removesuffix("/"), folder)
        if is_pipeline(folder):
            return
    unsupported_folder = unsupported.by_folder(folder)
    if unsupported_folder is not None and not whole:
        path, kind = unsupported_folder
        yield Unread(path, f"{kind.what}, which is not supported: {kind.advice}")
        if prefix or kind is unsupported.ZERO3:
            return
    files = [] if whole else [p for p in entries if is_weight_file(p, all_formats)]
    yield from _unread_files(entries, files, whole)
    folders = [p for p in entries if p.is_dir() and not p.name.startswith((".", "__"))]
    stems = [p.stem for p in files] + [p.name for p in folders]
    found: list[tuple[str, Path]] = [(p.name if stems.count(p.stem) > 1 else p.stem, p) for p in files]
    for label, path in sorted([*found, *((p.name, p) for p in folders)]):
        if path.is_dir():
            if not whole or is_checkpoint(path):
                yield from _walk(path, f"{prefix}{label}/", all_formats, visited, leaving)
        else:
            yield Checkpoint(f"{prefix}{label}", path)


def _unread_files(entries: list[Path], taken: list[Path], whole: bool) -> Iterator[Unread]:
    if whole:
        return
    known = set(taken)
    others = [p for p in entries if p not in known and not _is_side_file(p) and p.is_file()]
    for path, kind in unsupported.unsupported_files(others):
        yield Unread(path, f"{kind.what}, which is not supported: {kind.advice}", kind not in unsupported.AMBIGUOUS)
    for path in others:
        if path.suffix.lower() in ON_REQUEST:
            yield Unread(
                path,
                f"a {path.suffix.lower()[1:]} file; add --all-formats to read such files from folders",
                is_model=False,
            )


def is_weight_file(path: Path, all_formats: bool = False) -> bool:
    """Whether a file in a folder is a checkpoint: by extension, and by first bytes for ambiguous extensions."""
    suffix = path.suffix.lower()
    if _is_side_file(path) or not (path.is_file() or path.is_symlink()) or path.is_dir():
        return False
    if suffix in ON_REQUEST and not all_formats:
        return False
    if suffix in GENERIC or path.name == tfjs.MANIFEST:
        return _has_known_header(path)
    return any(suffix in f.suffixes for f in ALL)


def _is_side_file(path: Path) -> bool:
    """Training state, tokenizers, and the weights before an edit, which Stemma keeps beside those after it."""
    return bool(NOT_WEIGHTS.search(path.name)) or (path.name == UNDO and (path.parent / RECEIPT).is_file())


def _has_known_header(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            head = f.read(64)
    except OSError:
        return False
    if path.suffix.lower() in ("", ".json", ".dat", ".data") and unsupported.is_pointer(head):
        return False  # a pointer to an unknown kind of file
    return unsupported.is_pointer(head) or any(f.recognises(path, head) for f in ALL)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint: shards, ranks, adapter, pipeline, or weights beside config or receipt."""
    if distributed.is_distributed(folder) or hub_cache.is_cache(folder) or parallel_ranks.find(folder):
        return True
    if shards.find(folder) or adapters.is_adapter(folder) or is_pipeline(folder):
        return True
    if (folder / SAVED_MODEL_INDEX).is_file():
        return True
    described = (folder / "config.json").is_file() or (folder / RECEIPT).is_file()
    return described and weight_file(folder) is not None


def is_pipeline(folder: Path) -> bool:
    """Whether the folder declares a pipeline of components (`model_index.json`)."""
    return (folder / "model_index.json").is_file()


def weight_file(folder: Path) -> Path | None:
    """The weight file of a checkpoint folder; None if there is none or the choice is ambiguous."""
    names = sorted(p.name for p in folder.iterdir() if not _is_side_file(p) and p.is_file())
    for pattern in WEIGHTS:
        matching = [n for n in names if pattern.match(n) and is_weight_file(folder / n, all_formats=True)]
        if matching:
            customary = len(matching) == 1 or pattern in (WEIGHTS[0], WEIGHTS[2])
            return folder / matching[0] if customary else None
    return None


def _weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_weight_file(p, all_formats=True))


def open_file(path: Path, name: str) -> tuple[Model, ...]:
    """Open one file, with the config and claims of its folder if it is that folder's weight file."""
    part = shards.error_if_part(path)
    if part is not None:
        raise part
    folder = path.parent
    if path.name in adapters.WEIGHTS and adapters.is_adapter(folder):
        return open_folder(folder, name)
    if (folder / "config.json").is_file() and weight_file(folder) == path:
        config, claims, notes = cards.read(folder)
        return adapters.refuse_without_base(path, build_models(read_file(path), name, path, config, claims, notes))
    return adapters.refuse_without_base(path, build_models(read_file(path), name, path))


def open_folder(folder: Path, name: str) -> tuple[Model, ...]:
    """Open a checkpoint folder: shards, an adapter, a weight file beside its config, or components in sub-folders."""
    if hub_cache.is_cache(folder):
        revision, others = hub_cache.snapshot(folder), len(hub_cache.snapshots(folder)) - 1
        found = open_folder(revision, name)
        if not others:
            return found
        text = f"{folder} holds {others} more revisions; only {revision.name[:8]} was read"
        duplicate_files.warn(text)
        return tuple(replace(m, notes=(*m.notes, text)) for m in found)
    config, claims, notes = cards.read(folder)
    index = shards.find(folder)
    if index:
        return build_models(shards.read(folder, index), name, folder, config, claims, notes)
    if distributed.is_distributed(folder):
        return build_models(distributed.read(folder), name, folder, config, claims, notes)
    if (folder / SAVED_MODEL_INDEX).is_file():
        return build_models(read_file(folder / SAVED_MODEL_INDEX), name, folder, config, claims, notes)
    ranks = parallel_ranks.find(folder)
    if ranks and not (folder / "config.json").is_file():
        return build_models(parallel_ranks.read(folder, ranks), name, folder, config, claims, notes)
    if adapters.is_adapter(folder):
        return adapters.open_adapter(folder, name, claims, _load_base)
    if not is_pipeline(folder):
        weights = weight_file(folder)
        if weights is not None:
            more = duplicate_files.notes_on_others(weights, [p for p in _weight_files(folder) if p != weights])
            found = build_models(read_file(weights), name, folder, config, claims, (*notes, *more))
            return adapters.refuse_without_base(folder, found)
    return _components(folder, name)


def _load_base(path: Path) -> Model:
    name = default_name(path)
    return (open_folder(path, name) if path.is_dir() else open_file(path, name))[0]


def _components(folder: Path, name: str) -> tuple[Model, ...]:
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    whole = is_pipeline(folder)
    parts = [p for p in inside if is_checkpoint(p) or (whole and weight_file(p) is not None)]
    if not parts:
        raise NotAModelError(explain_no_checkpoint(folder))
    out: list[Model] = []
    for part in parts:
        if not is_pipeline(part):  # a nested pipeline is a separate model, and could be a loop of links
            out.extend(open_folder(part, f"{name}/{part.name}"))
    unread_parts = [
        f"part of the pipeline {folder} was not read: {skipped.path} is {skipped.reason}"
        for part in inside if whole and part not in parts
        for skipped in _walk(part, "", True, set()) if isinstance(skipped, Unread)
    ]  # fmt: skip
    for text in unread_parts:
        duplicate_files.warn(text)
    return tuple(replace(m, notes=(*m.notes, *unread_parts)) for m in out) if unread_parts else tuple(out)


def explain_no_checkpoint(folder: Path) -> str:
    """Why a folder is not a checkpoint, in one sentence."""
    found = list(_walk(folder, "", True, set()))
    checkpoints_inside = [c.name for c in found if isinstance(c, Checkpoint) and Path(c.path).exists()]
    if checkpoints_inside:
        return (
            f"{folder} is not one checkpoint: it holds {len(checkpoints_inside)} checkpoint files "
            f"({checkpoints_inside[0]} …). Use the path of "
            "one of them"
        )
    dangling = next((p for p in sorted(folder.iterdir()) if p.is_symlink() and not p.exists()), None)
    if dangling is not None:
        return f"{dangling} is a link to a missing file. Was the download interrupted, or the cache cleaned?"
    state = next((p.name for p in sorted(folder.iterdir()) if "optim" in p.name and NOT_WEIGHTS.search(p.name)), None)
    if state is not None:
        return f"{folder} holds optimizer state ({state}), not weights. Use the folder with the weights"
    skipped = next((s for s in found if isinstance(s, Unread)), None)
    if skipped is not None:
        return f"{folder} holds no supported checkpoint: {skipped.path} is {skipped.reason}"
    return f"{folder} is not a checkpoint folder. Check the path"
