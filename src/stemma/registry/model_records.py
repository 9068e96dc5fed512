"""Models to records, and records back to models."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints import digest as digests
from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import AbstractStorage, Tensor
from stemma.errors import UnreadableModelError
from stemma.networks.open import open_network
from stemma.registry.records import ModelRecord, TensorRecord


def describe(model: Model, license: str | None = None) -> tuple[ModelRecord, tuple[TensorRecord, ...]]:
    """What the registry records of a model.

    Cost: one pass over the weights, for the digests.

    Args:
        model: Any model.
        license: As stated by the person who enrols it.

    Returns:
        Its record and its tensors'.
    """
    digest_of = model.tensor_digests
    counted = {t.name for t in digests.counted(model.tensors.values(), digest_of)}
    tensors = tuple(
        TensorRecord(t.name, t.dtype, t.shape, digest_of[t.name], t.name in counted) for t in model.tensors.values()
    )
    source = Path(model.source)
    in_memory = model.source.startswith("python:")
    record = ModelRecord(
        name=model.name,
        digest=model.digest,
        names_free_digest=model.names_free_digest,
        source=model.source,
        format="python" if in_memory else "folder" if source.is_dir() else source.suffix.lstrip(".").lower() or "file",
        tensors=len(tensors),
        parameters=model.parameters,
        dtypes=dict(sorted(Counter(t.dtype for t in tensors).items())),
        config=None if model.config is None else _finite(model.config),
        claims={str(k): str(v) for k, v in model.claims.items()},
        license=license,
    )
    return record, tensors


def _finite(value: Any) -> Any:
    """A configuration as JSON: numbers that JSON lacks become their names.

    Returns:
        Plain JSON values.
    """
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


@dataclass(frozen=True)
class AbsentStorage(AbstractStorage):
    """Bytes that are not there any more.

    Attributes:
        reason: What to tell who asks for them.
    """

    reason: str

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`.

        Raises:
            UnreadableModelError: Always.
        """
        raise UnreadableModelError(self.reason)


def remembered(record: ModelRecord, tensors: Sequence[TensorRecord], reason: str) -> Model:
    """A model whose weights are gone: digests and shapes are known, reading a tensor is refused.

    Args:
        record: The model.
        tensors: Its tensors.
        reason: Why there are no weights.

    Returns:
        A model that can be identified, but not compared.
    """
    absent = AbsentStorage(reason)
    known = {t.name: Tensor(t.name, t.dtype, t.shape, absent) for t in sorted(tensors, key=lambda t: t.name)}
    model = Model(record.name, record.source, known, record.config, record.claims, (reason,), open_network)
    model.__dict__["tensor_digests"] = {t.name: t.digest for t in tensors}
    model.__dict__["digest"] = record.digest
    model.__dict__["names_free_digest"] = record.names_free_digest
    return model


def is_remembered(model: Model) -> bool:
    """Whether a model's weights are gone.

    Returns:
        True for what `remembered` made.
    """
    return any(isinstance(t.storage, AbsentStorage) for t in model.tensors.values())


def from_kept(record: ModelRecord, path: Path) -> Model:
    """The model in a kept copy of its weights.

    Args:
        record: The model.
        path: The copy.

    Returns:
        The model, under its recorded source.
    """
    tensors, _ = safetensors.read(path)
    by_name = {t.name: t for t in sorted(tensors, key=lambda t: t.name)}
    note = f"read from the registry's copy; {record.source} is gone or has changed"
    return Model(record.name, record.source, by_name, record.config, record.claims, (note,), open_network)


def write_copy(model: Model, path: Path) -> None:
    """Write a model's weights for keeping, and read them back.

    Args:
        model: The model, already digested.
        path: Target.

    Raises:
        UnreadableModelError: If the source changed since it was digested.
    """
    safetensors.write(path, list(model.tensors.values()))
    copied, _ = safetensors.read(path)
    if Model("", "", {t.name: t for t in copied}).digest != model.digest:
        raise UnreadableModelError(f"{model.source} changed while it was enrolled: try again")


def renamed(model: Model, name: str) -> Model:
    """A model under another name, without reading it again.

    Returns:
        The model with the digests that it already has.
    """
    out = dataclasses.replace(model, name=name)
    fields = {f.name for f in dataclasses.fields(model)}
    out.__dict__.update({k: v for k, v in model.__dict__.items() if k not in fields})
    return out
