"""Convert models to registry records, and records back to models."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote.names import HUB, WHOLE, is_remote
from stemma.checkpoints.tensor import AbstractStorage, Tensor
from stemma.errors import UnreadableModelError
from stemma.networks.open import open_network
from stemma.registry.records import ModelRecord, TensorRecord


def describe(model: Model, license: str | None = None) -> tuple[ModelRecord, tuple[TensorRecord, ...]]:
    """The record of a model and those of its tensors; reads the weights once, for their digests."""
    digest_of = model.tensor_digests
    counted = {t.name for t in model.counted}
    tensors = tuple(
        TensorRecord(t.name, t.dtype, t.shape, digest_of[t.name], t.name in counted) for t in model.tensors.values()
    )
    record = ModelRecord(
        name=model.name,
        digest=model.digest,
        names_free_digest=model.names_free_digest,
        source=model.source,
        format=_format(model.source),
        tensors=len(tensors),
        parameters=model.parameters,
        dtypes=dict(sorted(Counter(t.dtype for t in tensors).items())),
        config=None if model.config is None else _finite(model.config),
        claims={str(k): str(v) for k, v in model.claims.items()},
        license=license,
    )
    return record, tensors


def _format(source: str) -> str:
    if source.startswith("python:"):
        return "python"
    if source.startswith(HUB):
        return "hub"
    path = Path(source.removesuffix(WHOLE) if is_remote(source) else source)
    return "folder" if path.is_dir() else path.suffix.lstrip(".").lower() or "file"


def _finite(value: Any) -> Any:
    """A configuration as plain JSON: NaN and infinities become strings."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


@dataclass(frozen=True)
class MissingStorage(AbstractStorage):
    """Bytes that are no longer available; reading them raises `reason`."""

    reason: str

    def read_into(self, start: int, out: memoryview) -> None:
        """See `AbstractStorage.read_into`."""
        raise UnreadableModelError(self.reason)


def model_without_weights(record: ModelRecord, tensors: Sequence[TensorRecord], reason: str) -> Model:
    """A model whose weights are missing: digests and shapes are known, reading a tensor raises `reason`."""
    absent = MissingStorage(reason)
    known = {t.name: Tensor(t.name, t.dtype, t.shape, absent) for t in sorted(tensors, key=lambda t: t.name)}
    model = Model(record.name, record.source, known, record.config, record.claims, (reason,), open_network)
    model.__dict__["tensor_digests"] = {t.name: t.digest for t in tensors}
    model.__dict__["digest"] = record.digest
    model.__dict__["names_free_digest"] = record.names_free_digest
    return model


def has_no_weights(model: Model) -> bool:
    """Whether the weights of a model are missing."""
    return any(isinstance(t.storage, MissingStorage) for t in model.tensors.values())


def model_from_copy(record: ModelRecord, path: Path) -> Model:
    """The model in a stored copy of its weights, under its recorded source."""
    tensors, _ = safetensors.read(path)
    by_name = {t.name: t for t in sorted(tensors, key=lambda t: t.name)}
    note = f"read from the copy in the registry; {record.source} is missing or has changed"
    return Model(record.name, record.source, by_name, record.config, record.claims, (note,), open_network)


def write_copy(model: Model, path: Path) -> None:
    """Write a copy of the weights and verify it; raises if the source changed since its digest was computed."""
    safetensors.write(path, list(model.tensors.values()))
    copied, _ = safetensors.read(path)
    if Model("", "", {t.name: t for t in copied}).digest != model.digest:
        raise UnreadableModelError(f"{model.source} changed while it was being added. Try again")


def with_name(model: Model, name: str) -> Model:
    """The model under another name, with the digests already computed."""
    out = dataclasses.replace(model, name=name)
    fields = {f.name for f in dataclasses.fields(model)}
    out.__dict__.update({k: v for k, v in model.__dict__.items() if k not in fields})
    return out
