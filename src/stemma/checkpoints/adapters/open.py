"""Open PEFT adapter folders: find the base model on this machine and merge the adapter into it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from stemma.checkpoints import cards
from stemma.checkpoints.adapters.adapter import Adapter, Changes
from stemma.checkpoints.adapters.readers import read_changes
from stemma.checkpoints.adapters.tied_head import resolve_tied_head
from stemma.checkpoints.assemble import build_models, make_model, read_file
from stemma.checkpoints.confinement import may_lead
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.errors import StemmaError, UnreadableModelError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = re.compile(r"^(base_model\.model\.|base_model\.)")


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds the config and the weights of an adapter."""
    return (folder / CONFIG).is_file() and any((folder / w).is_file() for w in WEIGHTS)


def open_adapter(
    folder: Path, name: str, claims: Mapping[str, str], load_base: Callable[[Path], Model]
) -> tuple[Model, ...]:
    """Open an adapter folder: the base model, changed as PEFT's `merge_and_unload` changes it.

    Raises:
        UnreadableModelError: If the base is not on this machine, or the adapter does not fit it, is inconsistent, or is
            of a type that is not supported.

    Returns:
        One model.

    """
    notes: list[str] = []
    config = cards.json_object(folder / CONFIG, notes)
    if config is None:
        raise UnreadableModelError(f"{folder / CONFIG} is not a JSON object")
    weights = next(folder / w for w in WEIGHTS if (folder / w).is_file())
    wanted = str(config.get("base_model_name_or_path") or "")
    claims = {**claims, **({"base_model_name_or_path": wanted} if wanted else {})}
    (parsed, *_) = build_models(read_file(weights), name, folder, None, claims, tuple(notes))
    adapter = Adapter(folder, {PREFIX.sub("", n): t for n, t in parsed.tensors.items()}, config)
    base_path = _find_base(folder, wanted)
    if base_path is None:
        read_changes(adapter)  # unsupported adapters are refused before the missing base is reported
        _refuse_without_base(adapter, wanted)
    try:
        base = load_base(base_path)
    except StemmaError as e:
        raise UnreadableModelError(f"{folder}: the adapter's base cannot be read: {e}") from e
    adapter = replace(adapter, base_config=base.config or {})
    merged, merged_config, note = _merge(adapter, base)
    licence = cards.licence(base.claims)
    claims = {**claims, **({cards.BASE_LICENCE: licence} if licence else {})}
    notes = [*parsed.notes, *base.notes, f"an adapter merged with its base at {base_path}: {note}"]
    return (make_model(name, parsed.source, merged, base.config and merged_config, claims, notes),)


def base_of(folder: Path) -> Path | None:
    """Where the base of the adapter in a folder lies, which is read with it; None without one on this machine."""
    config = cards.json_object(folder / CONFIG, []) or {}
    return _find_base(folder, str(config.get("base_model_name_or_path") or ""))


def _refuse_without_base(adapter: Adapter, wanted: str) -> NoReturn:
    last = wanted.replace("\\", "/").rstrip("/").rpartition("/")[2]
    copy_nearby = f"put it next to the adapter's folder as '{last}', or " if last else ""
    problem = f"the base '{wanted[:200]}' is not on this machine" if wanted else "it names none"
    advice = f"{copy_nearby}write its path into {CONFIG} as base_model_name_or_path"
    adapter.refuse(f"an adapter needs its base model, and {problem}", advice)


def _find_base(folder: Path, wanted: str) -> Path | None:
    if not wanted or "\0" in wanted:
        return None
    last = wanted.replace("\\", "/").rstrip("/").rpartition("/")[2]
    # a relative path is relative to the adapter, not to the working directory
    places = [folder / wanted, folder.parent / wanted]
    places += [folder.parent / f"{last}{ending}" for ending in ("", ".safetensors", ".pt", ".bin")] if last else []
    for place in places:
        try:
            if not may_lead(folder, place) or not place.exists() or place.resolve() == folder.resolve():
                continue
            if not (place.is_dir() and is_adapter(place)):
                return place
        except (OSError, RuntimeError):  # name too long, or a loop of links
            continue
    return None


def _merge(adapter: Adapter, base: Model) -> tuple[list[Tensor], Mapping[str, Any], str]:
    packed = any(not t.is_float for t in base.tensors.values())
    out = dict(base.weights if packed else base.tensors)
    changes, added, config = resolve_tied_head(adapter, out, read_changes(adapter))
    ends: dict[str, list[str]] = {}
    for name in out:
        ends.setdefault(_last_two_parts(name), []).append(name)
    for wanted, t in changes.replaced.items():
        name = _base_name(adapter, wanted, out, ends)
        out[name] = Tensor(name, t.dtype, t.shape, t.storage)
    _apply(adapter, changes, out, ends)
    note = (
        f"{len(changes.changed) + len(changes.tokens)} tensors changed, {len(changes.replaced) + len(added)} replaced"
    )
    untied = f"; '{next(iter(added))}' is no longer tied to the embedding" if added else ""
    return [*out.values(), *added.values()], config, note + untied


def _apply(adapter: Adapter, changes: Changes, out: dict[str, Tensor], ends: Mapping[str, list[str]]) -> None:
    tokens = {n: t.apply for n, t in changes.tokens.items()}
    for wanted, change in (*changes.changed.items(), *tokens.items()):
        name = _base_name(adapter, wanted, out, ends)
        out[name] = change(name, out[name])
    for wanted, change in changes.optional.items():
        if any(wanted == n or n.endswith(f".{wanted}") for n in ends.get(_last_two_parts(wanted), [])):
            name = _base_name(adapter, wanted, out, ends)
            out[name] = change(name, out[name])


def _last_two_parts(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return stem.rpartition(".")[2] + "." + kind


def _base_name(adapter: Adapter, wanted: str, present: Mapping[str, Tensor], ends: Mapping[str, list[str]]) -> str:
    if wanted in present:
        return wanted
    fitting = [n for n in ends.get(_last_two_parts(wanted), []) if n.endswith("." + wanted) or wanted.endswith("." + n)]
    if len(fitting) != 1:
        adapter.refuse(
            f"the adapter changes '{wanted}', which the base does not have", "use the base model that it was trained on"
        )
    return fitting[0]
