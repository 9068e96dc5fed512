"""Random function-preserving disguises of a checkpoint, as an attacker would apply them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.save import MAX_SHARD_BYTES, save
from stemma.errors import MisuseError
from stemma.zoo import reparametrizations
from stemma.zoo.memory import FLOAT_TYPES, arrays_of, model_of
from stemma.zoo.symmetries import Arrays, permute_units, scale_units, unit_groups

OPERATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "stemma-mlp": ("permute", "rescale"),
        "stemma-cnn": ("permute", "rescale"),
        "stemma-vit": ("permute", "rescale", "shuffle-heads"),
        "llama": ("permute", "rescale", "shuffle-heads", "rotate", "grow-vocabulary"),
    }
)
"""Operations for each kind of network, besides storing and naming it differently."""


@dataclass(frozen=True)
class Step:
    """One operation of a disguise.

    Attributes:
        name: One of `OPERATIONS`, or `cast`, `rename`, `transpose`.
        parameters: What is needed to understand or undo it.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def disguise(
    model: Model,
    seed: int,
    *,
    operations: tuple[str, ...] | None = None,
    dtype: str | None = None,
    rename: bool | None = None,
    transpose: bool = False,
    within_heads: bool = False,
    keep_config: bool = True,
) -> tuple[Model, list[Step]]:
    """A zoo model that computes the same function and looks different.

    Args:
        model: One with a configuration of ours and its original names.
        seed: Draws everything that is not given.
        operations: In this order; a random non-empty choice in random order unless given.
        dtype: Float type to store in, one of `float32`, `float16`, `bfloat16`; random unless given.
        rename: Give every tensor another name; random unless given.
        transpose: Store every matrix and kernel transposed (first two axes swapped).
        within_heads: Let permutations also move the dimensions inside attention heads where that is exact.
        keep_config: Leave the (adjusted) configuration with the model.

    Returns:
        The disguised model, and what was done to it in order.

    Raises:
        MisuseError: If the model has no configuration of ours, or an operation does not fit it.
    """
    kind = str((model.config or {}).get("model_type"))
    if kind not in OPERATIONS:
        raise MisuseError(f"{model.name} is not a zoo network (model_type {kind}), so its symmetries are unknown.")
    rng = np.random.default_rng([seed, 7])
    chosen = _random_choice(OPERATIONS[kind], rng) if operations is None else operations
    storage_dtype = str(rng.choice(["float32", "float16", "bfloat16"])) if dtype is None else dtype
    renamed = bool(rng.random() < 0.5) if rename is None else rename
    if storage_dtype not in FLOAT_TYPES or not set(chosen) <= set(OPERATIONS[kind]):
        raise MisuseError(f"{kind} knows the operations {OPERATIONS[kind]} and dtypes {tuple(FLOAT_TYPES)}.")
    config, arrays, steps = dict(model.config or {}), arrays_of(model), []
    for operation in chosen:
        config, arrays, step = _apply(operation, config, arrays, rng, within_heads)
        steps.append(step)
    steps.append(Step("cast", {"dtype": storage_dtype}))
    if transpose:
        arrays = {n: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim >= 2 else a for n, a in arrays.items()}
        steps.append(Step("transpose"))
    if renamed:
        names = random_names(list(arrays), rng)
        arrays = {new: arrays[old] for new, old in names.items()}
        steps.append(Step("rename", {"names": names}))
    return model_of(f"{model.name}-disguised-{seed}", arrays, config if keep_config else None, storage_dtype), steps


def original_names(model: Model, steps: list[Step]) -> Model:
    """Undo the renaming and the transposition of a disguise, so that its network can be built and compared."""
    names = next((s.parameters["names"] for s in steps if s.name == "rename"), {})
    arrays = {names.get(n, n): a for n, a in arrays_of(model).items()}
    if any(s.name == "transpose" for s in steps):
        arrays = {n: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim >= 2 else a for n, a in arrays.items()}
    return model_of(model.name, arrays, model.config)


def write_disguised(model: Model, folder: Path, seed: int, **options: Any) -> tuple[Path, list[Step]]:
    """Disguise a model and write it in a random format.

    Args:
        model: As in `disguise`.
        folder: Where the checkpoint goes; made where it is missing.
        seed: Draws disguise and format.
        options: As in `disguise`.

    Returns:
        The path to give to `stemma trace` (a file, or a folder with `config.json`), and the steps; the last one,
        `write`, names the format.
    """
    disguised, steps = disguise(model, seed, **options)
    rng = np.random.default_rng([seed, 8])
    path, form = write(disguised, folder / disguised.name, str(rng.choice(FORMATS)))
    return path, [*steps, Step("write", {"format": form})]


FORMATS = ("safetensors", "folder", "sharded", "torch", "torch-nested", "npz")
"""How a model can be written."""


def write(model: Model, path: Path, form: str, *, replace: bool = False) -> tuple[Path, str]:
    """Write a model in one of `FORMATS`; npz cannot hold bfloat16, so that becomes a safetensors file.

    Args:
        model: Any model that fits in memory.
        path: Where, without an ending.
        form: The format.
        replace: Allow an existing checkpoint to be replaced.

    Returns:
        The checkpoint's path, and the format that was written.

    Raises:
        MisuseError: If there is no such format, or the path exists and `replace` is not given.
    """
    if form not in FORMATS:
        raise MisuseError(f"no format is called {form!r}. There are: {', '.join(FORMATS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = list(model.tensors.values())
    if form == "npz" and any(t.dtype == "BF16" for t in tensors):
        form = "safetensors"
    if form in ("folder", "sharded"):
        limit = max(1, sum(t.nbytes for t in tensors) // 3) if form == "sharded" else MAX_SHARD_BYTES
        return save(model, path, max_shard_bytes=limit, replace=replace), form
    path = path.with_name(path.name + {"safetensors": ".safetensors", "npz": ".npz"}.get(form, ".pt"))
    if form == "safetensors":
        return save(model, path, replace=replace), form
    if path.exists() and not replace:
        raise MisuseError(f"{path} exists. Choose another path, or allow it to be replaced.")
    if form == "npz":
        named: dict[str, Any] = {t.name: _native(t.array(), t.dtype) for t in tensors}
        with path.open("wb") as f:
            np.savez(f, **named)
    else:
        _write_torch(tensors, path, nested=form == "torch-nested")
    return path, form


def _native(array: np.ndarray, code: str) -> np.ndarray:
    return array.astype(np.float16) if code == "F16" else array


def _write_torch(tensors: list[Any], path: Path, *, nested: bool) -> None:
    import torch

    halves = {"BF16": torch.bfloat16, "F16": torch.float16}
    state = {t.name: torch.from_numpy(t.array().copy()).to(halves.get(t.dtype)) for t in tensors}
    state = {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3} if nested else state
    torch.save(state, path)


def _random_choice(operations: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    count = int(rng.integers(1, len(operations) + 1))
    return tuple(operations[i] for i in rng.permutation(len(operations))[:count])


def _apply(
    operation: str, config: dict[str, Any], arrays: Arrays, rng: np.random.Generator, within_heads: bool
) -> tuple[dict[str, Any], Arrays, Step]:
    match operation:
        case "permute":
            unit_groups_found = [
                g for g in unit_groups(config, arrays, within_heads=within_heads) if "attn" not in g.name
            ]
            inside = [
                g for g in unit_groups(config, arrays, within_heads=True) if within_heads and _is_inside_head(g.name)
            ]
            return (
                config,
                _permute_groups(arrays, unit_groups_found + inside, rng),
                Step("permute", {"groups": len(unit_groups_found + inside)}),
            )
        case "shuffle-heads":
            unit_groups_found = [g for g in unit_groups(config, arrays) if "attn" in g.name]
            return (
                config,
                _permute_groups(arrays, unit_groups_found, rng),
                Step("shuffle-heads", {"groups": len(unit_groups_found)}),
            )
        case "rotate":
            config, arrays = reparametrizations.rotate_residual_stream(config, arrays, rng)
            return config, arrays, Step("rotate", {"width": config["hidden_size"]})
        case "grow-vocabulary":
            added = int(rng.integers(1, 65))
            config, arrays = reparametrizations.append_tokens(config, arrays, added, rng)
            return config, arrays, Step("grow-vocabulary", {"added": added})
    config, arrays = rescale_units(config, arrays, rng, within_heads=within_heads)
    return config, arrays, Step("rescale")


def _is_inside_head(group: str) -> bool:
    return ".attn.qk." in group or ".attn.v." in group or ".self_attn.v." in group


def _permute_groups(arrays: Arrays, unit_groups_found: list[Any], rng: np.random.Generator) -> Arrays:
    for group in unit_groups_found:
        arrays = permute_units(arrays, group, rng.permutation(group.size))
    return arrays


def rescale_units(
    config: dict[str, Any], arrays: Arrays, rng: np.random.Generator, *, within_heads: bool = True
) -> tuple[dict[str, Any], Arrays]:
    """Every positive rescaling that the network allows, with random factors; a tied head is untied."""
    config, arrays = reparametrizations.untie_head(config, arrays)
    for group in unit_groups(config, arrays, within_heads=within_heads):
        if group.scales:
            arrays = scale_units(arrays, group, reparametrizations.random_factors(group.size, rng))
    if config["model_type"] in ("stemma-vit", "llama"):
        arrays = reparametrizations.scale_norms(config, arrays, rng)
        return config, reparametrizations.scale_queries(config, arrays, rng) if within_heads else arrays
    return config, reparametrizations.scale_batch_norms(arrays, rng)


def random_names(names: list[str], rng: np.random.Generator) -> dict[str, str]:
    """Old names by new ones: meaningless and shuffled, or with every word of the old name replaced."""
    names = sorted(names)
    if rng.random() < 0.5:
        codes = rng.permutation(len(names))
        return {f"tensor_{code:04d}": name for code, name in zip(codes, names, strict=True)}
    words = sorted({w for n in names for w in n.split(".") if not w.isdigit()} - {"weight", "bias"})
    coded = {w: f"{'abcdefgh'[i % 8]}{i}" for w, i in zip(words, rng.permutation(len(words)), strict=True)}
    return {".".join(coded.get(w, w) for w in name.split(".")): name for name in names}
