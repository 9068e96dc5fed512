"""A folder that stands for a repository: small files as they are, of weights the beginning; the rest on the server.

What reads checkpoints in folders then reads a repository as it reads a folder, and where it reads weights, the bytes
come from the server (`file_at`).
"""

import os
import re
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from stemma.checkpoints.remote import hub
from stemma.checkpoints.remote.answers import Version
from stemma.checkpoints.remote.hub import HubFile, Repository
from stemma.checkpoints.remote.names import HUB, READ, WHOLE, RemoteName, parse, without_secrets
from stemma.checkpoints.remote.range_cache import make_room, root
from stemma.checkpoints.remote.remote_file import AT_ONCE, RemoteFile
from stemma.errors import RemoteError, UnreadableModelError, UnsafeFileError

SMALL_FILES = re.compile(
    r"(^|/)(README\.md|config\.json|adapter_config\.json|model_index\.json|receipt\.json|[^/]+\.index\.json)$"
)
"""Files beside the weights that are read: claims, configurations, lists of shards."""

MOST = 200_000_000, 8_000_000
"""Most bytes of a list of shards, and of any other small file."""

HEAD = 1 << 17
"""Bytes of a file of weights that are fetched with its name: mostly its whole header."""

MOST_WEIGHTS = 2_000
"""Files of weights of one repository."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")

FETCHED = (*PICKLES, ".h5", ".msgpack", ".keras", ".onnx", ".tflite", ".json", ".npz")
"""Endings of files that are fetched of a repository without safetensors, if all of it is wanted."""

_OPEN: dict[str, RemoteFile] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Replica:
    """A folder or file that stands for a model on a server.

    Attributes:
        path: Where it lies.
        source: The address that is recorded: of a repository with its commit.
        sha256: What the hub says that the SHA-256 of its large files is, by path: claims.
        commit: The commit; empty for a plain address.
    """

    path: Path
    source: str
    sha256: tuple[tuple[str, str], ...] = ()
    commit: str = ""


def file_at(path: Path) -> RemoteFile | None:
    """The file on a server that a file of a replica stands for; None for every other file."""
    return _OPEN.get(os.fspath(path)) if _OPEN else None


def of_repository(name: RemoteName, folder: Path | None = None) -> Replica:
    """Make the folder that stands for a repository; asks the hub for its list, small files and headers.

    Args:
        name: The repository.
        folder: Where it is made; a folder of its own unless given.

    Returns:
        The replica.

    Raises:
        RemoteError: If the repository cannot be read by ranges.
    """
    make_room()
    listed = hub.repository(name)
    chosen = chosen_files(name, listed)
    at = folder or _fresh() / listed.name.rpartition("/")[2]
    token = hub.token()

    def place(file: HubFile) -> None:
        remote = RemoteFile(listed.url(file.path), token, Version(file.size, file.identity))
        _place(at / PurePosixPath(file.path), remote, weights=file.path.casefold().endswith(READ))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(place, chosen):
            pass
    sha256 = tuple((f.path, f.sha256) for f in chosen if f.sha256)
    return Replica(at, f"hf:{listed.name}@{listed.commit}", sha256, listed.commit)


def of_snapshot(name: RemoteName) -> Replica:
    """Fetch a repository through the hub's own cache, and give its folder: nothing of it is on the server only."""
    listed = hub.repository(name)
    try:
        chosen = chosen_files(name, listed)
    except RemoteError:  # pickles are read from files
        chosen = [f for f in listed.files if f.path.casefold().endswith(FETCHED) or SMALL_FILES.search(f.path)]
    folder = hub.download(name, tuple(f.path for f in chosen), listed.commit)
    sha256 = tuple((f.path, f.sha256) for f in chosen if f.sha256)
    return Replica(Path(folder), f"hf:{listed.name}@{listed.commit}{WHOLE}", sha256, listed.commit)


def of_address(name: RemoteName) -> Replica:
    """Make the file that stands for a file at a plain address."""
    make_room()
    last = unquote(urlsplit(name.url).path).rpartition("/")[2]
    if not _is_plain(last):
        raise RemoteError(f"{without_secrets(name.url)} ends in no name that a file can have")
    at = _fresh() / last
    _place(at, RemoteFile(name.url, _token_if_hub()), weights=True)
    return Replica(at, without_secrets(name.url) + (WHOLE if name.whole else ""))


def check_base(wanted: str) -> None:
    """Refuse a base that is no repository: an adapter on a server must not name a folder of this machine."""
    try:
        parse(f"{HUB}{wanted.removeprefix(HUB)}")
    except RemoteError as e:
        raise RemoteError(
            f"an adapter needs its base model, and {wanted[:200]!r} is no repository of the hub: fetch the adapter and "
            "its base, and give the adapter's folder"
        ) from e


def fetch_base(replica: Replica, wanted: str) -> None:
    """Make the folder of an adapter's base beside that of the adapter, where its reader looks for it."""
    last = wanted.rstrip("/").rpartition("/")[2]
    if _is_plain(last) and last != replica.path.name:
        of_repository(parse(f"{HUB}{wanted.removeprefix(HUB)}"), replica.path.parent / last)


def _token_if_hub() -> str | None:
    try:
        return hub.token()
    except Exception:  # without the library of the hub there is no token
        return None


def chosen_files(name: RemoteName, listed: Repository) -> list[HubFile]:
    """The files that the replica holds: safetensors, else GGUF; and what lies beside them."""
    for file in listed.files:
        if not all(_is_plain(part) for part in file.path.split("/")):
            raise UnsafeFileError(f"{name} lists the file {file.path[:200]!r}, which would leave its folder")
    weights = [f for f in listed.files if f.path.endswith(READ[0])] or [
        f for f in listed.files if f.path.endswith(READ[1])
    ]
    weights = [f for f in weights if f.size]
    if not weights:
        pickled = next((f.path for f in listed.files if f.path.casefold().endswith(PICKLES)), "")
        why = f"its weights are pickles ({pickled})" if pickled else "it holds no weights in a form that is read"
        advice = "; --download fetches and reads all of it" if pickled else ""
        raise RemoteError(f"{name} cannot be read by ranges: {why}, and only safetensors are{advice}")
    if len(weights) > MOST_WEIGHTS:
        raise RemoteError(f"{name} holds {len(weights):,} files of weights, which is no one model: use --download")
    small = [f for f in listed.files if SMALL_FILES.search(f.path)]
    for file in small:
        if file.size > MOST[not file.path.endswith(".index.json")]:
            raise UnreadableModelError(
                f"{name}: {file.path} has {file.size:,} bytes, which is too large for such a file"
            )
    return [*small, *weights]


def forget(replica: Replica) -> None:
    """Remove a replica once its model is open: the tensors keep the files on the server, not the folder."""
    folder = replica.path.parent
    if folder.parent != root() / "replicas":  # a snapshot that was fetched as a whole
        return
    prefix = f"{folder}{os.sep}"
    with _LOCK:
        for known in [k for k in _OPEN if k.startswith(prefix)]:
            del _OPEN[known]
    shutil.rmtree(folder, ignore_errors=True)


def _fresh() -> Path:
    """An empty folder of its own."""
    folder = root() / "replicas"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def _place(path: Path, remote: RemoteFile, *, weights: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if weights:
        path.write_bytes(remote.read(0, min(HEAD, remote.size)))
        with _LOCK:
            _OPEN[os.fspath(path)] = remote
    else:
        path.write_bytes(remote.whole())


def _is_plain(part: str) -> bool:
    """Whether a part of a path is a name in a folder, on every system."""
    return (
        bool(part) and part not in (".", "..") and not re.search(r'[\x00-\x1f\x7f\\:/"<>|?*]', part) and len(part) < 250
    )
