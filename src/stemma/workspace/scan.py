"""What is new, changed or gone in the model stores of a machine since they were last scanned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stemma.checkpoints.model import Model
from stemma.checkpoints.stores.store import Store
from stemma.checkpoints.stores.stored_model import FileIdentity, Omitted, StoredModel
from stemma.errors import RegistryError, StemmaError, UnknownNameError
from stemma.networks.load import open_models
from stemma.registry import Registry
from stemma.registry.ingest import fingerprinters
from stemma.registry.model_records import describe
from stemma.registry.records import ScannedCheckpoint, ScanRecord
from stemma.types import Digest

Progress = Callable[[str, int, int | None], None]

Status = Literal["new", "changed", "unchanged", "gone"]

UNREADABLE = "unreadable-file"


@dataclass(frozen=True)
class Found:
    """A checkpoint in a store, or one that is gone.

    Attributes:
        store: Where it is.
        names: Its names.
        path: The file or folder.
        status: What happened to it since the last scan.
        digests: Name and digest of each model in it.
        models: The models, where they were read now.
        stored: As the store has it now; None if it is gone.
        before: As it was recorded; None if it was not.
    """

    store: Store
    names: tuple[str, ...]
    path: str
    status: Status
    digests: tuple[tuple[str, Digest], ...]
    models: tuple[Model, ...] = ()
    stored: StoredModel | None = None
    before: ScannedCheckpoint | None = None

    def record(self, passed: Sequence[str]) -> ScannedCheckpoint:
        """As it is to be remembered, with the policies that let it pass."""
        files = tuple(map(_row, self.stored.files)) if self.stored else ()
        return ScannedCheckpoint(self.names, self.path, files, self.digests, tuple(sorted(set(passed))))

    @property
    def contents(self) -> tuple[Digest, ...]:
        """What tells it from other checkpoints of the store, whatever they are called."""
        return _digests(self.digests)

    def opened(self) -> tuple[Model, ...]:
        """Its models; opened where they were not read yet."""
        return self.models or (_open(self.stored) if self.stored else ())


def look_at(
    store: Store, before: Sequence[ScannedCheckpoint], *, again: bool = False, progress: Progress | None = None
) -> Iterator[Found | Omitted]:
    """Every checkpoint of a store, one after the other, those that are gone last, and what is not read.

    What has the same files as at the last scan is not opened: nothing of it is read. Everything else is read once.

    Args:
        store: The store.
        before: What it held at the last scan.
        again: Read everything, whatever was recorded.
        progress: Told what is being read.

    Yields:
        Checkpoints, the models of those that were read opened; and what is not read. Two of them may have the same
        contents.
    """
    models, omitted = store.read()
    yield from omitted
    by_name = {name: c for c in before for name in c.names}
    by_files = {tuple(sorted(c.files)): c for c in before}
    by_contents = {_digests(c.models): c for c in before}
    met = {id(by_name[o.name]) for o in omitted if o.name in by_name}  # there, though it cannot be read now
    for number, stored in enumerate(models):
        same = by_files.get(tuple(sorted(map(_row, stored.files))))
        named = [by_name[name] for name in stored.names if name in by_name]
        met |= {id(c) for c in (*named, *([same] if same else []))}
        other = next((c for c in named if same is None or _digests(c.models) != _digests(same.models)), None)
        if same is not None and other is None and not again:
            yield Found(store, stored.names, str(stored.path), "unchanged", same.models, (), stored, same)
            continue
        if progress:
            progress(f"reading {stored.name}", number, len(models))
        try:
            found = _read(store, stored, other or same)
        except Exception as e:  # a damaged or hostile file may raise anything, and must not stop the others
            yield Omitted(UNREADABLE, stored.name, _why(stored, e))
            continue
        known = by_contents.get(found.contents) if found.status == "new" else None
        if known is not None:  # the same weights at another place of the store
            found, met = replace(found, status="unchanged", before=known), met | {id(known)}
        yield found
    for c in before:
        if id(c) not in met:
            yield Found(store, c.names, c.path, "gone", c.models, before=c)


def _open(stored: StoredModel) -> tuple[Model, ...]:
    found = open_models(stored.path, stored.name)
    return tuple(replace(m, claims={**stored.claims, **m.claims}) for m in found)


def _read(store: Store, stored: StoredModel, named: ScannedCheckpoint | None) -> Found:
    models = _open(stored)
    digests = tuple((m.name, m.digest) for m in models)
    status: Status = "new" if named is None else "changed"
    if named is not None and _digests(named.models) == _digests(digests):
        status = "unchanged"
    return Found(store, stored.names, str(stored.path), status, digests, models, stored, named)


def _why(stored: StoredModel, error: Exception) -> str:
    if isinstance(error, StemmaError):
        text = str(error)
        return text if str(stored.path) in text else f"{stored.path}: {text}"
    if isinstance(error, OSError):
        return f"{stored.path} cannot be read: {error.strerror or error}"
    return f"{stored.path} cannot be read ({type(error).__name__}: {error})"


def _row(file: FileIdentity) -> tuple[str, int, int, int, int]:
    return file.path, file.size, file.modified, file.touched, file.inode


def _digests(models: Sequence[tuple[str, Digest]]) -> tuple[Digest, ...]:
    return tuple(sorted(digest for _, digest in models))


def remember(store: Store, found: Sequence[ScannedCheckpoint], registry: Registry) -> None:
    """Record what a store holds."""
    ordered = tuple(sorted(found, key=lambda c: c.names))
    registry.put_scan(ScanRecord(store.place, ordered))


def enrol_model(model: Model, store: Store, registry: Registry) -> tuple[str, str]:
    """Enrol a model that was read.

    Names of revisions and tags belong to their store: other weights under one replace those before. A name of a folder
    may belong to a model elsewhere: the names of the folders above are put before it then.

    Returns:
        Its name in the registry, and what became of it.
    """
    parts = Path(model.source).parent.parts[1:]
    longer = (f"{'/'.join(parts[-n:])}/{model.name}" for n in range(1, len(parts) + 1))
    names = (model.name, *longer, model.source) if store.kind == "folder" else (model.name,)
    free = (n for n in names if store.kind != "folder" or _source(n, registry) in (None, model.source))
    name = next(free, model.source)
    record, tensors = describe(model)
    fingerprints = [method(model) for method in fingerprinters()]
    return name, registry.add(record.renamed(name), tensors, fingerprints, replace=True).status.value


def _source(name: str, registry: Registry) -> str | None:
    """Where the enrolled model of exactly this name lies, None if there is none."""
    try:
        found = registry.get(name)
    except (UnknownNameError, RegistryError):
        return None
    return found.source if found.name == name else None
