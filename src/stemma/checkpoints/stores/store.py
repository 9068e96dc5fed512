"""A store of models, whatever its kind."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stemma.checkpoints.stores import hub, ollama
from stemma.checkpoints.stores.folder import read_folder
from stemma.checkpoints.stores.stored_model import UNSUPPORTED, FileIdentity, Omitted, StoredModel
from stemma.errors import NotAModelError
from stemma.types.text import plain

StoreKind = Literal["hf", "ollama", "folder"]


@dataclass(frozen=True, slots=True)
class Store:
    """A store of models.

    Attributes:
        kind: How it is laid out.
        path: Its folder; absolute.
    """

    kind: StoreKind
    path: Path

    @property
    def place(self) -> str:
        """What identifies the store among those of this machine."""
        return f"{self.kind}:{self.path}"

    def read(self) -> tuple[list[StoredModel], list[Omitted]]:
        """The models, each set of files once, and what is not read."""
        reader = {"hf": hub.read_hub, "ollama": ollama.read_ollama, "folder": lambda path: read_folder(path, path)}
        found = [_storable(item) for item in reader[self.kind](self.path)]
        return _once([x for x in found if isinstance(x, StoredModel)]), [x for x in found if isinstance(x, Omitted)]


def _storable(item: StoredModel | Omitted) -> StoredModel | Omitted:
    """An item that can be shown and recorded: a path that is no Unicode cannot."""
    if isinstance(item, Omitted):
        return replace(item, why=plain(item.why))
    try:
        "".join((str(item.path), *(f.path for f in item.files))).encode()
    except UnicodeEncodeError:
        why = f"{plain(item.path)} is not valid Unicode and cannot be recorded. Rename it"
        return Omitted(UNSUPPORTED, item.name, why)
    return item


def _once(models: list[StoredModel]) -> list[StoredModel]:
    """Models that are the same files under several names as one model with all names."""
    out: dict[tuple[FileIdentity, ...], StoredModel] = {}
    for m in models:
        known = out.get(m.files)
        names = tuple(dict.fromkeys((*(known.names if known else ()), *m.names)))
        out[m.files] = replace(known or m, names=names, claims={**m.claims, **(known.claims if known else {})})
    return list(out.values())


def store_at(path: Path) -> Store:
    """The store at a path, of whatever kind it is; raises if nothing is there."""
    absolute = path.expanduser().absolute()
    if not absolute.exists():
        raise NotAModelError(f"{path} does not exist: give a folder of models, or the folder of a store")
    if absolute.is_dir() and hub.is_hub(absolute):
        return Store("hf", absolute)
    if absolute.is_dir() and ollama.is_ollama(absolute):
        return Store("ollama", absolute)
    return Store("folder", absolute)


def usual_stores() -> dict[StoreKind, Path]:
    """Where the stores of this machine lie, whether they are there or not."""
    return {"hf": hub.default_place().absolute(), "ollama": ollama.default_place().absolute()}
