"""Reads many checkpoints: here, in other processes, or on a cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stemma.checkpoints.load import Checkpoint
from stemma.checkpoints.model import Model
from stemma.registry import ingest
from stemma.registry.ingest import IngestedModel
from stemma.workspace.engines.base import AbstractEngine
from stemma.workspace.engines.run_tasks import Lost, run
from stemma.workspace.shared_files import FileState, WithFiles, require_seen

Read = tuple[IngestedModel, ...] | str
"""The models of one checkpoint, or why it cannot be read."""


@dataclass(frozen=True)
class Reading:
    """The task: read and fingerprint one checkpoint under a licence as stated."""

    license: str | None = None

    def __call__(self, checkpoint: Checkpoint) -> Read:
        """Read it."""
        return ingest.ingest(checkpoint, self.license)


def read_all(checkpoints: Sequence[Checkpoint], license: str | None, engine: AbstractEngine | None) -> Iterator[Read]:
    """Read and fingerprint checkpoints.

    Args:
        checkpoints: Files and folders.
        license: Licence as stated.
        engine: Where they are read; None for this process.

    Yields:
        For each checkpoint, in order, its models or an error message; one that kills its process is an error too.
    """
    task = Reading(license)
    if engine is None or (not engine.distant and len(checkpoints) < 2):
        yield from map(task, checkpoints)
    elif engine.distant:
        values = (
            (replace(c, path=c.path.absolute()), (FileState.of(c.path),)) if isinstance(c.path, Path) else (c, ())
            for c in checkpoints
        )
        results = run(engine, WithFiles(task), values, size=lambda value: sum(file.size for file in value[1]))
        for checkpoint, result in zip(checkpoints, results, strict=True):
            yield _why_lost(checkpoint, result) or require_seen(result, engine.address) or result
    else:
        for checkpoint, result in zip(checkpoints, run(engine, task, checkpoints), strict=True):
            yield _why_lost(checkpoint, result) or result


def read_sources(sources: Sequence[str], engine: AbstractEngine) -> dict[str, tuple[IngestedModel, ...]]:
    """The models of sources that can be read, by source; each is read once."""
    there = [Checkpoint(Path(source).stem, Path(source)) for source in dict.fromkeys(sources) if Path(source).exists()]
    found = zip(there, read_all(there, None, engine), strict=True)
    return {str(c.path): models for c, models in found if not isinstance(models, str)}


def with_digests(models: Sequence[Model], read: Sequence[IngestedModel]) -> dict[str, np.ndarray]:
    """Give models the digests that were computed elsewhere, so that their bytes are not read again.

    Args:
        models: The models of one checkpoint.
        read: The same models, as they were read.

    Returns:
        Bits of their weight sketches, by digest.
    """
    sketches: dict[str, np.ndarray] = {}
    for model, found in zip(models, read, strict=False):
        digests = {t.name: t.digest for t in found.tensors}
        if digests.keys() == model.tensors.keys():
            model.__dict__["tensor_digests"] = {name: digests[name] for name in model.tensors}
            if found.fingerprints:
                sketches[found.record.digest] = np.asarray(found.fingerprints[0].values["bits"])
    return sketches


def _why_lost(checkpoint: Checkpoint, result: object) -> str:
    return f"{checkpoint.path}: {result.why}" if isinstance(result, Lost) else ""
