"""Candidates that a suspect is compared with, from files or models in memory."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.load import Checkpoint
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import without_queries
from stemma.errors import NotAModelError, StemmaError
from stemma.networks.load import open_models
from stemma.registry.records import ModelRecord
from stemma.workspace.engines.base import AbstractEngine
from stemma.workspace.enrol import UNSURE, AddResult, discover
from stemma.workspace.read_checkpoints import read_all, with_digests


def is_same_file(record: ModelRecord, model: Model) -> bool:
    """Whether a model was read from the source that the record of the same digest names."""
    return record.source == model.source and record.digest == model.digest


def _same(model: Model) -> Model:
    return model


def candidates_from_files(
    paths: Sequence[Path | str],
    suspect: Model | None = None,
    prepare: Callable[[Model], Model] = _same,
    engine: AbstractEngine | None = None,
    sketches: dict[str, np.ndarray] | None = None,
) -> tuple[list[Candidate], list[str]]:
    """Candidates from files, folders or servers, without the suspect, and an error message for each unreadable file.

    Args:
        paths: Checkpoints, or folders of them.
        suspect: A model that is left out.
        prepare: Gives a model its network.
        engine: Where files are read; this process if None.
        sketches: Filled with the bits of weight sketches, by digest, where an engine reads.

    Returns:
        The candidates, and the error messages.

    Raises:
        NotAModelError: If a path does not exist.
    """
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise NotAModelError(f"{path} does not exist: give a checkpoint, or a folder of them, to search")
    candidates: list[Candidate] = []
    unreadable: list[str] = []
    names: set[str] = set()
    found = [c for path in paths for c in discover(path, all_formats=False)]
    read = iter(()) if engine is None else read_all([c for c in found if isinstance(c, Checkpoint)], None, engine)
    for checkpoint in found:
        if isinstance(checkpoint, AddResult):
            unreadable += [checkpoint.error or checkpoint.note] if checkpoint.status != UNSURE else []
            continue
        known = () if engine is None else next(read)
        if isinstance(known, str):
            unreadable.append(known)
            continue
        try:
            name = checkpoint.name if checkpoint.name not in names else without_queries(str(checkpoint.path))
            models = open_models(checkpoint.path, name)
            bits = with_digests(models, known)
            if sketches is not None:
                sketches.update(bits)
            for model in models:
                names.add(model.name)
                if suspect is None or not (model.source == suspect.source and model.digest == suspect.digest):
                    candidates.append(candidate_from_model(prepare(model)))
        except (StemmaError, OSError) as e:
            unreadable.append(without_queries(str(e)))
    return candidates, unreadable


def candidate_from_model(model: Model) -> Candidate:
    """A candidate from a loaded model."""
    load = partial(_same, model)
    return Candidate(model.ref, model.names_free_digest, model.tensor_digests, load, model.claims, source=model.source)
