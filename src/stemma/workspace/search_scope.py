"""What a suspect is searched among: which models are compared with it, and which could not be looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.registry import Registry
from stemma.registry.records import ModelRecord
from stemma.types import Digest, NotTested
from stemma.workspace.candidates import from_files, is_itself, of_model
from stemma.workspace.comparison_cache import Recall

Reopen = Callable[[ModelRecord], Model]


@dataclass(frozen=True)
class Search:
    """The models that a suspect is put beside.

    Attributes:
        candidates: Those that are compared with it.
        n_searched: How many were searched to find them.
        not_tested: What could not be searched.
    """

    candidates: Sequence[Candidate]
    n_searched: int
    not_tested: tuple[NotTested, ...] = ()


def among_files(paths: Sequence[Path | Model], suspect: Model, prepare: Callable[[Model], Model]) -> Search:
    """Search files, or models in memory, instead of a registry.

    Args:
        paths: Checkpoints, folders of them, or models.
        suspect: Is left out.
        prepare: Gives each its network, where the files alone do not say how it is run.

    Returns:
        All of them, and the files that cannot be read.
    """
    given = [of_model(prepare(m)) for m in paths if isinstance(m, Model) and m is not suspect]
    found, unread = from_files([p for p in paths if not isinstance(p, Model)], suspect, prepare)
    candidates, left = [*given, *found], unreadable(unread)
    if not candidates:
        where = ", ".join(p.name if isinstance(p, Model) else str(p) for p in paths)
        left = (*left, _nothing(f"there is no other checkpoint in {where}"))
    return Search(candidates, len(candidates), left)


def unreadable(files: Sequence[str]) -> tuple[NotTested, ...]:
    """Files that cannot be read, as things that were not tested.

    Args:
        files: What is wrong with each.

    Returns:
        One entry per file.
    """
    return tuple({"what": "unreadable-file", "model": "", "why": f"a file cannot be read: {why}"} for why in files)


def _nothing(why: str) -> NotTested:
    return {"what": "nothing-searched", "model": "", "why": f"nothing was searched: {why}"}


def among_enrolled(registry: Registry, suspect: Model, limit: int, reopen: Reopen) -> Search:
    """Search a registry: all of it up to a size, else the nearest by sketch and those that share tensors.

    Args:
        registry: Holds the models.
        suspect: The record of it, read from this very place, is left out.
        limit: How many models are compared at most, copies and ties apart.
        reopen: Reads an enrolled model.

    Returns:
        The candidates. Nothing searched, and models that no sketch can find, are told.
    """
    contents, left = registry.count(), ()
    if contents <= limit + 1:
        live = registry.models()
    else:
        near, left = _near(registry, suspect, limit, contents)
        live = sorted(near.values(), key=lambda r: r.name)
    others = [r for r in live if not is_itself(r, suspect)]
    alone = len(others) < len(live) and suspect.digest not in {r.digest for r in others}
    if not others:
        left = (*left, _nothing(_why_empty(registry, itself=bool(live))))
    return Search([_candidate(registry, r, reopen) for r in others], contents - alone, left)


def _why_empty(registry: Registry, *, itself: bool) -> str:
    if itself:
        return f"the registry at {registry.path} holds no other model"
    known = "the registry at {} is empty" if registry.path.exists() else "there is no registry at {}"
    return known.format(registry.path)


def _near(
    registry: Registry, suspect: Model, limit: int, contents: int
) -> tuple[dict[str, ModelRecord], tuple[NotTested, ...]]:
    """Of a large registry, the models to look at, by name; and what the index does not hold."""
    sketch = Recall(registry).sketch(suspect)
    telling = [suspect.tensor_digests[n] for n, t in suspect.tensors.items() if sum(s > 1 for s in t.shape) >= 2]
    digests: set[Digest] = set(registry.by_tensor_digests(telling, limit))  # a vector of ones is shared by thousands
    indexed = 0
    if sketch is not None:
        index = registry.sketch_index(sketch.spec)
        indexed = len(index)
        digests.update(n.digest for n in index.nearest(np.asarray(sketch.values["bits"]), limit + 1))
    copies = registry.by_names_free_digest(suspect.names_free_digest)
    found = {r.name: r for digest in digests for r in registry.by_digest(digest)} | {r.name: r for r in copies}
    if indexed >= contents:
        return found, ()
    why = f"of {contents - indexed:,} of {contents:,} models no sketch is kept, so that they cannot be searched"
    if sketch is None:
        why = f"no sketch of this model is kept, so that {contents:,} models cannot be searched"
    return found, ({"what": "no-sketch", "model": "", "why": why},)


def _candidate(registry: Registry, record: ModelRecord, reopen: Reopen) -> Candidate:
    tensors = {t.name: t.digest for t in registry.tensors(record.digest)}
    load = partial(reopen, record)
    return Candidate(record.ref, record.names_free_digest, tensors, load, record.claims, record.license or "")
