"""Open models on servers: header and sample by ranges; the whole model where it is small, or asked for."""

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace

from stemma.checkpoints import adapters, cards, folders
from stemma.checkpoints.adapters.open import CONFIG
from stemma.checkpoints.formats.files import FileStorage
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import names, replica
from stemma.checkpoints.remote.remote_file import RemoteFile
from stemma.checkpoints.remote.replica import Replica
from stemma.checkpoints.sample import bytes_read, sampled
from stemma.checkpoints.tensor import Tensor
from stemma.errors import MissingExtraError, RemoteError, StemmaError

WHOLE = 64 << 20
"""Bytes of weights up to which a model is read as a whole, so that its digest is that of all of it."""

MOST = 4 << 30
"""Most bytes of a sample."""

CLAIMED_FILES = "hub_sha256"
"""Claim with the SHA-256 that the hub lists for files of weights: `PATH=DIGEST`, separated by spaces."""

CLAIMED_AT_MOST = 40
"""Files whose SHA-256 is recorded."""


def open_remote(text: str, name: str | None = None) -> tuple[Model, ...]:
    """Open a model on a server.

    Args:
        text: `hf:ORG/NAME[@REVISION]` or the address of a file, with `#whole` where all of it is to be fetched.
        name: Name of the model; the repository or the file's stem unless given.

    Returns:
        The models, as of a local folder; of large ones only a sample can be read. Their source is pinned to the commit.

    Raises:
        RemoteError: If the server cannot be asked, or does not answer as it must.
        UnreadableModelError: If what is there is no model that can be read.
    """
    remote = names.parse(text)
    made = _replica(remote)
    with _about_source(made):
        return _opened(made, remote, remote.label if name is None else name)


def _opened(made: Replica, remote: names.RemoteName, name: str) -> tuple[Model, ...]:
    try:
        if (made.path / CONFIG).is_file() and (base := _base_of(made)):
            replica.check_base(base)
            if not remote.whole:
                replica.fetch_base(made, base)
        found = folders.open_folder(made.path, name) if made.path.is_dir() else folders.open_file(made.path, name)
        return tuple(_finished(model, made, remote) for model in found)
    finally:
        replica.forget(made)


def pinned(text: str) -> str:
    """The address with the commit that it leads to now; asks the hub, and reads nothing of the model.

    Args:
        text: As `open_remote` takes it.

    Returns:
        What `Model.source` would be; a plain address as it is.
    """
    from stemma.checkpoints.remote import hub

    remote = names.parse(text)
    ending = names.WHOLE if remote.whole else ""
    if not remote.repository:
        return f"{names.without_secrets(remote.url)}{ending}"
    return f"{names.HUB}{remote.repository}@{hub.commit_of(remote)}{ending}"


def claims_now(source: str) -> dict[str, str]:
    """What a server says now of the files of an enrolled model, without reading weights.

    Args:
        source: The recorded address.

    Returns:
        The claims that are recorded with a model; empty where the server claims nothing.

    Raises:
        RemoteError: If the address leads to nothing any more.
    """
    from stemma.checkpoints.remote import hub

    remote = names.parse(source)
    if remote.repository:
        listed = hub.repository(remote)
        return _claimed_files([(f.path, f.sha256) for f in replica.chosen_files(remote, listed) if f.sha256])
    _ = RemoteFile(remote.url).version
    return {}


def _replica(remote: names.RemoteName) -> Replica:
    if not remote.repository:
        return replica.of_address(remote)
    return replica.of_snapshot(remote) if remote.whole else replica.of_repository(remote)


def _base_of(made: Replica) -> str:
    config = cards.json_object(made.path / CONFIG, [])
    return str((config or {}).get("base_model_name_or_path") or "") if adapters.is_adapter(made.path) else ""


def _finished(model: Model, made: Replica, remote: names.RemoteName) -> Model:
    """The model with its sample fetched, under its address."""
    whole = remote.whole or sum(t.nbytes for t in model.tensors.values()) <= WHOLE
    model = model if whole else sampled(model)
    if not whole and bytes_read(model)[0] > MOST:
        raise RemoteError(
            f"{made.source}: even the sample of this model has {bytes_read(model)[0]:,} bytes, because of its many "
            "small tensors: add --download to read all of it"
        )
    fetch(model.tensors.values())
    claims = {**model.claims, **_claimed_files(made.sha256)}
    notes = tuple(_of_source(note, made) for note in model.notes)
    if model.is_partial:
        read, total = bytes_read(model)
        notes = (*notes, f"partial: {read:,} of {total:,} bytes read from {made.source}")
    return replace(model, source=made.source, claims=claims, notes=notes)


def fetch(tensors: Iterable[Tensor]) -> None:
    """Fetch what can be read of some tensors, several ranges at once."""
    wanted: dict[int, tuple[RemoteFile, list[tuple[int, int]]]] = {}
    for tensor in tensors:
        storage, length = tensor.storage, tensor.cut().nbytes
        if isinstance(storage, FileStorage) and storage.file.remote is not None and length:
            file = storage.file.remote
            wanted.setdefault(id(file), (file, []))[1].append((storage.offset, storage.offset + length))
    for file, ranges in wanted.values():
        file.fetch(ranges)


def _claimed_files(listed: Sequence[tuple[str, str]]) -> dict[str, str]:
    text = " ".join(f"{path}={digest}" for path, digest in listed[:CLAIMED_AT_MOST] if " " not in path)
    return {CLAIMED_FILES: text} if text else {}


@contextlib.contextmanager
def _about_source(made: Replica) -> Generator[None]:
    """Errors are about the address, not about the folder that stands for it."""
    try:
        yield
    except StemmaError as e:
        said = str(e)
        if str(made.path.parent) not in said or isinstance(e, MissingExtraError):
            raise
        raise type(e)(_of_source(said, made)) from e


def _of_source(said: str, made: Replica) -> str:
    """A sentence about the address, without the folder that stands for it or for the base of an adapter."""
    return said.replace(str(made.path), made.source).replace(f"{made.path.parent}{os.sep}", "")
