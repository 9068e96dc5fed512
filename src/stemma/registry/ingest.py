"""Read and fingerprint checkpoints for the registry."""

from dataclasses import dataclass
from pathlib import Path

from stemma.checkpoints.load import Checkpoint
from stemma.errors import StemmaError, UnreadableModelError
from stemma.fingerprints.unit_keys import UnitKeys
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.networks.load import open_models
from stemma.registry.collection import paused_collection
from stemma.registry.model_records import describe, write_copy
from stemma.registry.records import ModelRecord, TensorRecord
from stemma.types import Fingerprint


@dataclass(frozen=True, slots=True)
class IngestedModel:
    """A model read by a worker, as plain values for another process.

    Attributes:
        record: The model.
        tensors: Its tensors.
        fingerprints: Its fingerprints.
        notes: What the reader omitted or changed.

    """

    record: ModelRecord
    tensors: tuple[TensorRecord, ...]
    fingerprints: tuple[Fingerprint, ...]
    notes: tuple[str, ...] = ()


def fingerprinters() -> tuple[WeightSketch, UnitKeys]:
    """The methods that fingerprint a model when it is added (from weights only); both are used for search."""
    return WeightSketch(), UnitKeys()


def ingest(checkpoint: Checkpoint, license: str | None) -> tuple[IngestedModel, ...] | str:
    """Read and fingerprint the models of one checkpoint, in a worker; returns them, or an error message."""
    try:
        found = []
        with paused_collection():
            for model in open_models(checkpoint.path, checkpoint.name):
                record, tensors = describe(model, license)
                fingerprints = tuple(method(model) for method in fingerprinters())
                found.append(IngestedModel(record, tensors, fingerprints, model.notes))
    except StemmaError as e:
        return str(e) if str(checkpoint.path) in str(e) else f"{checkpoint.path}: {e}"
    except OSError as e:
        return f"{checkpoint.path} cannot be read: {e.strerror or e}"
    except Exception as e:  # a damaged or hostile file may raise anything, and must not stop the others
        return f"{checkpoint.path} cannot be read ({type(e).__name__}: {e}). If the file is valid, please report this"
    return tuple(found)


def copy_weights(checkpoint: Checkpoint, record: ModelRecord, path: Path) -> None:
    """Write a copy of the weights of a model that was read; raises if the source has changed since."""
    for model in open_models(checkpoint.path, checkpoint.name):
        if model.name == record.name:
            model.__dict__["digest"] = record.digest
            write_copy(model, path)
            return
    raise UnreadableModelError(f"{checkpoint.path} changed while it was being added. Try again")
