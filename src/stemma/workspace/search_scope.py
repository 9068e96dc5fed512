"""The scope of a search: which models are compared with a suspect, and which could not be searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.registry import Registry, model_records
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord
from stemma.types import UNREAD, Digest, NotTested
from stemma.workspace.candidates import candidate_from_model, candidates_from_files, is_same_file
from stemma.workspace.comparison_cache import ComparisonCache
from stemma.workspace.engines.base import AbstractEngine

Reopen = Callable[[ModelRecord], Model]


@dataclass(frozen=True)
class SearchScope:
    """The models compared in full with a suspect, how many were searched, and what could not be searched."""

    candidates: Sequence[Candidate]
    n_searched: int
    not_tested: tuple[NotTested, ...] = ()


def search_files(
    paths: Sequence[Path | str | Model],
    suspect: Model,
    prepare: Callable[[Model], Model],
    engine: AbstractEngine | None = None,
) -> SearchScope:
    """All models in some files and folders, or in memory, except the suspect; and the files that cannot be read."""
    loaded = [candidate_from_model(prepare(m)) for m in paths if isinstance(m, Model) and m is not suspect]
    found, unreadable = candidates_from_files([p for p in paths if not isinstance(p, Model)], suspect, prepare, engine)
    candidates, not_tested = [*loaded, *found], unreadable_files(unreadable)
    if not candidates:
        where = ", ".join(p.name if isinstance(p, Model) else str(p) for p in paths)
        not_tested = (*not_tested, _nothing_searched(f"there is no other checkpoint in {where}"))
    return SearchScope(candidates, len(candidates), not_tested)


def unreadable_files(files: Sequence[str]) -> tuple[NotTested, ...]:
    """Error messages of unreadable files as entries of `not_tested`."""
    return tuple({"what": "unreadable-file", "model": "", "why": f"a file cannot be read: {why}"} for why in files)


def _nothing_searched(why: str) -> NotTested:
    return {"what": "nothing-searched", "model": "", "why": f"nothing was searched: {why}"}


def search_registry(registry: Registry, suspect: Model, limit: int, reopen: Reopen) -> SearchScope:
    """The models of a registry up to `limit`; of a larger one the nearest by sketch and those that share tensors."""
    count, not_tested = registry.count(), ()
    if count <= limit + 1:
        records = registry.models()
    else:
        near, not_tested = _nearest_records(registry, suspect, limit, count)
        records = sorted(near.values(), key=lambda r: r.name)
    others = [r for r in records if not is_same_file(r, suspect)]
    alone = len(others) < len(records) and suspect.digest not in {r.digest for r in others}
    if not others:
        not_tested = (*not_tested, _nothing_searched(_why_empty(registry, itself=bool(records))))
    return SearchScope([_candidate(registry, r, reopen) for r in others], count - alone, not_tested)


def _why_empty(registry: Registry, *, itself: bool) -> str:
    if itself:
        return f"the registry at {registry.where} holds no other model"
    message = "the registry at {} is empty" if registry.exists() else "there is no registry at {}"
    return message.format(registry.where)


def _nearest_records(
    registry: Registry, suspect: Model, limit: int, count: int
) -> tuple[dict[str, ModelRecord], tuple[NotTested, ...]]:
    """Of a large registry, the records to compare with, by name; and what the index does not hold."""
    sketch = ComparisonCache(registry).sketch(suspect)
    matrix_digests = [suspect.tensor_digests[n] for n, t in suspect.tensors.items() if sum(s > 1 for s in t.shape) >= 2]
    digests: set[Digest] = set(
        registry.by_tensor_digests(matrix_digests, limit)
    )  # a vector of ones is shared by thousands
    indexed = 0
    if sketch is not None:
        index = registry.sketch_index(sketch.spec)
        indexed = len(index)
        digests.update(n.digest for n in index.nearest(np.asarray(sketch.values["bits"]), limit + 1))
    # units in another order, and fewer of them, that a child has of its parent
    digests.update(registry.by_unit_keys(_unit_keys(registry, suspect), limit // 2))
    copies = registry.by_names_free_digest(suspect.names_free_digest)
    found = {r.name: r for digest in digests for r in registry.by_digest(digest)} | {r.name: r for r in copies}
    gaps: tuple[NotTested, ...] = ()
    if unseen := registry.sampled() - {r.digest for r in found.values()}:
        why = (
            f"of {len(unseen):,} enrolled models only a sample was read; it finds no relative whose units are in "
            "another order, and these were not compared"
        )
        gaps = ({"what": UNREAD, "model": "", "why": why},)
    if indexed >= count:
        return found, gaps
    why = f"no weight sketch is kept of {count - indexed:,} of {count:,} models, so that they cannot be searched"
    if sketch is None:
        why = f"no weight sketch of this model is kept, so that {count:,} models cannot be searched"
    return found, (*gaps, {"what": "no-sketch", "model": "", "why": why})


def _unit_keys(registry: Registry, suspect: Model) -> list[int]:
    """The keys of the suspect's hidden units; where its weights are gone the kept ones."""
    method = fingerprinters()[1]
    gone = model_records.has_no_weights(suspect)
    found = registry.fingerprint(suspect.digest, method.spec) if gone else method(suspect)
    return [] if found is None else np.asarray(found.values["unit_keys"]).tolist()


def _candidate(registry: Registry, record: ModelRecord, reopen: Reopen) -> Candidate:
    tensors = {t.name: t.digest for t in registry.tensors(record.digest)}
    load = partial(reopen, record)
    return Candidate(
        record.ref, record.names_free_digest, tensors, load, record.claims, record.license or "", record.source
    )
