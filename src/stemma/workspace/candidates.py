"""Candidates that a suspect is compared with, from files or models in memory."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import NotAModelError, StemmaError
from stemma.networks.load import open_models
from stemma.registry.records import ModelRecord
from stemma.workspace.enrol import UNSURE, AddResult, discover


def is_same_file(record: ModelRecord, model: Model) -> bool:
    """Whether a model was read from the source that the record of the same digest names."""
    return record.source == model.source and record.digest == model.digest


def _same(model: Model) -> Model:
    return model


def candidates_from_files(
    paths: Sequence[Path | str], suspect: Model | None = None, prepare: Callable[[Model], Model] = _same
) -> tuple[list[Candidate], list[str]]:
    """Candidates from files, folders or servers, without the suspect, and an error for each that cannot be read."""
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise NotAModelError(f"{path} does not exist: give a checkpoint, or a folder of them, to search")
    candidates: list[Candidate] = []
    unreadable: list[str] = []
    names: set[str] = set()
    for checkpoint in (c for path in paths for c in discover(path, all_formats=False)):
        if isinstance(checkpoint, AddResult):
            unreadable += [checkpoint.error or checkpoint.note] if checkpoint.status != UNSURE else []
            continue
        try:
            for model in open_models(
                checkpoint.path, checkpoint.name if checkpoint.name not in names else str(checkpoint.path)
            ):
                names.add(model.name)
                if suspect is None or not (model.source == suspect.source and model.digest == suspect.digest):
                    candidates.append(candidate_from_model(prepare(model)))
        except (StemmaError, OSError) as e:
            unreadable.append(str(e))
    return candidates, unreadable


def candidate_from_model(model: Model) -> Candidate:
    """A candidate from a loaded model."""
    return Candidate(model.ref, model.names_free_digest, model.tensor_digests, partial(_same, model), model.claims)
