"""Unmerged low-rank adapters (PEFT folders): W + scale · B·A over a base found on this machine, some rows at a time.

Source: LoRA, arXiv:2106.09685; rank-stabilised scale, arXiv:2312.03732; DoRA, arXiv:2402.09353. A merged tensor is
rounded to its base's dtype, as a stored merge would be; the product is taken in float32.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import StemmaError, UnreadableModelError
from stemma.models import cards
from stemma.models.assemble import model, models_of, read_file
from stemma.models.model import Model, RowStorage, Tensor

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = re.compile(r"^(base_model\.model\.|base_model\.)")
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$"
)
MAX_RANK = 1 << 16


@dataclass(frozen=True)
class _Update:
    """What one module's adapter adds.

    Attributes:
        a: Shape `[rank, in, …]`.
        b: Shape `[out, rank, …]`.
        scale: Factor of the product.
        transposed: The base keeps `[in, out]`.
        magnitude: Length of each row after the change (DoRA), None for plain LoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    magnitude: Tensor | None


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter.

    Returns:
        True if its config and weights are there.
    """
    return (folder / CONFIG).is_file() and any((folder / w).is_file() for w in WEIGHTS)


def open_adapter(
    folder: Path, name: str, claims: Mapping[str, str], load_base: Callable[[Path], Model]
) -> tuple[Model, ...]:
    """Open an adapter folder: merged with its base where that lies on this machine, else alone, with a note.

    Args:
        folder: The folder.
        name: What to call the model.
        claims: What the folder's card claims.
        load_base: Opens the base model at a path.

    Returns:
        One model.

    Raises:
        UnreadableModelError: If the adapter does not fit its base, or is inconsistent.
    """
    notes: list[str] = []
    config = cards.json_object(folder / CONFIG, notes)
    if config is None:
        raise UnreadableModelError(f"{folder / CONFIG} is no JSON object")
    weights = next(folder / w for w in WEIGHTS if (folder / w).is_file())
    wanted = str(config.get("base_model_name_or_path") or "")
    claims = {**claims, **({"base_model_name_or_path": wanted} if wanted else {})}
    (alone, *_) = models_of(read_file(weights), name, folder, None, claims, tuple(notes))
    tensors = {PREFIX.sub("", n): t for n, t in alone.tensors.items()}
    base_path = _find_base(folder, wanted)
    if base_path is None or config.get("peft_type") != "LORA" or config.get("target_parameters"):
        why = f"its base '{wanted}' is not on this machine" if base_path is None else "its kind is not merged"
        note = f"an adapter alone: {why}"
        return (model(name, alone.source, _named(tensors), None, claims, (*alone.notes, note)),)
    try:
        base = load_base(base_path)
    except StemmaError as e:
        raise UnreadableModelError(f"{folder}: the adapter's base cannot be read: {e}") from e
    updates, whole = _updates(folder, tensors, config)
    merged = _merge(folder, base, updates, whole)
    note = f"an adapter merged with its base at {base_path}: {len(updates)} tensors changed, {len(whole)} replaced"
    licence = cards.licence(base.claims)
    claims = {**claims, **({cards.BASE_LICENCE: licence} if licence else {})}
    return (model(name, alone.source, merged, base.config, claims, (*alone.notes, *base.notes, note)),)


def _named(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [Tensor(n, t.dtype, t.shape, t.storage) for n, t in tensors.items()]


def _find_base(folder: Path, wanted: str) -> Path | None:
    if not wanted or "\0" in wanted:
        return None
    last = wanted.replace("\\", "/").rstrip("/").rpartition("/")[2]
    # a relative path is relative to the adapter, not to where the program runs; an absolute one stays as it is
    places = [folder / wanted, folder.parent / wanted]
    places += [folder.parent / f"{last}{ending}" for ending in ("", ".safetensors", ".pt", ".bin")] if last else []
    for place in places:
        try:
            if place.exists() and place.resolve() != folder.resolve() and not (place.is_dir() and is_adapter(place)):
                return place
        except (OSError, RuntimeError):  # too long a name, or a loop of links
            continue
    return None


def _updates(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, _Update], dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, t in tensors.items():
        match = _PART.match(name)
        if match:
            found.setdefault(match["module"], {})[match["kind"]] = t
        else:
            whole[name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = t
    out: dict[str, _Update] = {}
    for module, parts in found.items():
        embedded = "lora_embedding_A" in parts
        a = parts.get("lora_embedding_A" if embedded else "lora_A")
        b = parts.get("lora_embedding_B" if embedded else "lora_B")
        if (
            a is None
            or b is None
            or len(a.shape) < 2
            or len(b.shape) < 2
            or not 0 < a.shape[0] == b.shape[1] <= MAX_RANK
        ):
            raise UnreadableModelError(f"{folder}: the adapter of '{module}' lacks a half, or its halves do not fit")
        transposed = bool(config.get("fan_in_fan_out")) or embedded
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None and (transposed or len(a.shape) > 2):
            raise UnreadableModelError(f"{folder}: packed format DoRA on '{module}' is not supported")
        out[f"{module}.weight"] = _Update(a, b, _scale(folder, module, a.shape[0], config), transposed, magnitude)
    return out, whole


def _scale(folder: Path, module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    declared = _pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or declared != rank:
        raise UnreadableModelError(
            f"{folder}: '{module}' has rank {rank}, its config says {declared!r}, alpha {alpha!r}"
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    # a key is the end of a module's name; it may also be a regular expression, and an unknown file's is not run
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        if module == key or module.endswith(f".{key}"):
            return value
    return default


def _merge(folder: Path, base: Model, updates: Mapping[str, _Update], whole: Mapping[str, Tensor]) -> list[Tensor]:
    packed = any(not t.is_float for t in base.tensors.values())
    out = dict(base.weights if packed else base.tensors)
    ends: dict[str, list[str]] = {}
    for name in out:
        ends.setdefault(name.rpartition(".")[0].rpartition(".")[2] + "." + name.rpartition(".")[2], []).append(name)
    for wanted, t in whole.items():
        name = _match(folder, wanted, out, ends)
        out[name] = Tensor(name, t.dtype, t.shape, t.storage)
    for wanted, update in updates.items():
        name = _match(folder, wanted, out, ends)
        out[name] = _merged(folder, name, out[name], update)
    return list(out.values())


def _match(folder: Path, wanted: str, present: Mapping[str, Tensor], ends: Mapping[str, list[str]]) -> str:
    if wanted in present:
        return wanted
    stem, _, kind = wanted.rpartition(".")
    near = ends.get(stem.rpartition(".")[2] + "." + kind, [])
    fitting = [n for n in near if n.endswith("." + wanted) or wanted.endswith("." + n)]
    if len(fitting) != 1:
        raise UnreadableModelError(f"{folder}: the adapter changes '{wanted}', which its base lacks")
    return fitting[0]


def _merged(folder: Path, name: str, base: Tensor, update: _Update) -> Tensor:
    flat_a, flat_b = (math.prod(update.a.shape[1:]), math.prod(update.b.shape) // update.a.shape[0])
    rows, columns = (flat_a, flat_b) if update.transposed else (flat_b, flat_a)
    fits = base.is_float and len(base.shape) > 1 and base.shape[0] == rows and base.size == rows * columns
    if not fits or not update.a.is_float or not update.b.is_float:
        shapes = f"{list(update.b.shape)} · {list(update.a.shape)}"
        raise UnreadableModelError(f"{folder}: the adapter of '{name}' ({shapes}) does not fit {list(base.shape)}")
    if update.magnitude is not None and update.magnitude.size != rows:
        raise UnreadableModelError(f"{folder}: the magnitudes of '{name}' do not fit its {rows} rows")
    rank = update.a.shape[0]

    def make(start: int, stop: int) -> np.ndarray:
        weight = base.rows(start, stop).reshape(stop - start, columns).astype(np.float32)
        if update.transposed:
            left = update.a.array().reshape(rank, -1)[:, start:stop].T
            right = update.b.array().reshape(-1, rank).T
        else:
            left = update.b.rows(start, stop).reshape(stop - start, rank)
            right = update.a.array().reshape(rank, -1)
        weight = weight + (left @ right).astype(np.float32) * np.float32(update.scale)
        if update.magnitude is not None:
            length = np.linalg.norm(weight, axis=1, keepdims=True)
            weight = weight * (update.magnitude.array().reshape(-1)[start:stop, None] / length)
        return weight.reshape(stop - start, *base.shape[1:])

    dtype = base.dtype if base.dtype in ("F64", "F32", "F16", "BF16") else "F32"
    return Tensor(name, dtype, base.shape, RowStorage(make, base.shape, dtype))
