"""What a suspect is put beside: models of a registry, or of files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import NotAModelError, StemmaError
from stemma.networks.load import open_models
from stemma.registry.records import ModelRecord
from stemma.workspace.enrol import UNSURE, AddResult, discovered


def is_itself(record: ModelRecord, model: Model) -> bool:
    """Whether a model was read from the very place where a record says it lies.

    Returns:
        True for the same source and digest.
    """
    return record.source == model.source and record.digest == model.digest


def _same(model: Model) -> Model:
    return model


def from_files(
    paths: Sequence[Path], suspect: Model | None = None, prepare: Callable[[Model], Model] = _same
) -> tuple[list[Candidate], list[str]]:
    """Candidates from files instead of a registry, each under a name of its own.

    Args:
        paths: Checkpoints, or folders of them.
        suspect: Is left out.
        prepare: Gives each its network, where the files alone do not say how it is run.

    Returns:
        The candidates, and what is wrong with the files that are none.

    Raises:
        NotAModelError: If there is nothing at a path.
    """
    for path in paths:
        if not path.exists():
            raise NotAModelError(f"there is nothing at {path} to search. Is the path right?")
    candidates: list[Candidate] = []
    unread: list[str] = []
    names: set[str] = set()
    for found in (c for path in paths for c in discovered(path, all_formats=False)):
        if isinstance(found, AddResult):
            unread += [found.error or found.note] if found.status != UNSURE else []
            continue
        try:
            for model in open_models(found.path, found.name if found.name not in names else str(found.path)):
                names.add(model.name)
                if suspect is None or not (model.source == suspect.source and model.digest == suspect.digest):
                    candidates.append(of_model(prepare(model)))
        except (StemmaError, OSError) as e:
            unread.append(str(e))
    return candidates, unread


def of_model(model: Model) -> Candidate:
    """A candidate that is at hand.

    Returns:
        The candidate.
    """
    return Candidate(model.ref, model.names_free_digest, model.tensor_digests, partial(_same, model), model.claims)
