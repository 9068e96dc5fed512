"""From what a file holds to models with canonical names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stemma.checkpoints.formats import ALL, foreign
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import flat_ema, rename, strip_prefix, tied
from stemma.errors import NotAModelError, UnreadableModelError

GRAPHS = frozenset({".onnx", ".tflite", ".pt2", ".h5", ".hdf5", ".keras", ".gguf", ".json"})
"""Endings of files that no training run on several processes writes."""


def format_of(path: Path) -> AbstractFormat:
    """Which format a file is in: by its first bytes, then by its ending.

    Returns:
        The format.

    Raises:
        NotAModelError: If it is none of those that Stemma reads.
        UnreadableModelError: If the file is empty.
    """
    try:
        with path.open("rb") as f:
            head = f.read(foreign.HEAD)
    except OSError as e:
        raise NotAModelError(f"{path} cannot be opened: {e.strerror or e}") from e
    if not head:
        raise UnreadableModelError(f"{path} is empty. Was the download interrupted?")
    part = foreign.by_name(path)
    if part is not None:
        raise part.error(path)
    for known in ALL:
        if known.recognises(path, head[:64]):
            return known
    kind = foreign.by_content(path, head)
    if kind is not None:
        raise (foreign.by_ending(path) or kind if not kind.instead else kind).error(path)
    suffix = path.suffix.lower()
    kind = foreign.by_ending(path) if not any(suffix in f.suffixes for f in ALL) else None
    kind = kind or foreign.by_look(path, head) or foreign.data_of_onnx(path, head)
    if kind is not None:
        raise kind.error(path)
    for known in ALL:
        if suffix in known.suffixes:
            return known
    reads = ", ".join(f.name for f in ALL)
    raise NotAModelError(
        f"{path} is no checkpoint that is known (it begins with {head[:8]!r}), which Stemma does not read. "
        f"It reads: {reads}"
    )


def read_file(path: Path) -> Contents:
    """List what one file holds, under stored names.

    Returns:
        The contents.
    """
    return format_of(path).read(path)


def models_of(
    contents: Contents,
    name: str,
    source: Path,
    config: Mapping[str, Any] | None = None,
    claims: Mapping[str, str] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
) -> tuple[Model, ...]:
    """Turn a file's contents into models with canonical names.

    Args:
        contents: What the file holds.
        name: Name of the main model.
        source: The file or folder.
        config: Architecture as claimed by a file beside the weights.
        claims: Metadata from elsewhere; wins over the file's own.
        notes: What was noticed elsewhere.

    Returns:
        The main model, then the averaged one where there is one.

    Raises:
        NotAModelError: If the file holds no tensor.
        UnreadableModelError: If two tensors have the same name.
    """
    parts = {k: {t.name: t for t in v} for k, v in contents.parts.items()}
    main = parts.get("", {})
    if any(len(parts[k]) != len(contents.parts[k]) for k in parts):
        raise UnreadableModelError(f"{source}: two tensors have the same name")
    averaged = flat_ema(list(main)) if "ema" not in parts else {}
    if averaged:
        parts["ema"] = {called: main[n] for n, called in averaged.items()}
        main = {n: t for n, t in main.items() if n not in averaged}
    if not main:
        raise NotAModelError(
            f"{source} holds no tensors" + (f" ({'; '.join(contents.notes)})" if contents.notes else "")
        )
    _whole(source, main)
    known = {**contents.metadata, **claims}
    made = []
    for label, tensors in (("", main), ("ema", parts.get("ema", {}))):
        if tensors:
            found, more = canonical(tensors, contents.aliases, source)
            called = f"{name}#{label}" if label else name
            made.append(model(called, str(source.absolute()), found, config, known, (*notes, *contents.notes, *more)))
    return tuple(made)


def _whole(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse the shells that ZeRO-3 leaves of parameters that lie on other processes: one axis, of length 0.

    Raises:
        UnreadableModelError: If tensors are such shells.
        NotAModelError: If no tensor holds anything.
    """
    graph = source.suffix.lower() in GRAPHS  # there an operator may take an empty list
    shells = [n for n, t in tensors.items() if t.shape == (0,) and not graph]
    weights = sum(n.endswith("weight") for n in shells)
    if shells and (weights or 3 * len(shells) >= len(tensors)):
        raise UnreadableModelError(
            f"{source} holds {len(shells)} of {len(tensors)} tensors as empty shells (first '{min(shells)}'), as "
            "ZeRO-3 leaves them: run DeepSpeed's zero_to_fp32.py in the checkpoint's folder, and give what it writes"
        )
    if not any(t.size for t in tensors.values()):
        raise NotAModelError(f"{source} holds {len(tensors)} tensors without a single number in them: no weights")


def canonical(
    tensors: Mapping[str, Tensor], aliases: Iterable[tuple[str, ...]], source: Path
) -> tuple[list[Tensor], list[str]]:
    """Canonical names, without second names of tied tensors.

    Returns:
        The tensors and notes on what was left out.

    Raises:
        UnreadableModelError: If a name is no text.
    """
    for n in tensors:
        if not isinstance(n, str):
            raise UnreadableModelError(f"{source}: the tensor name {n!r} is no text; give names as strings")
        if not n.isascii() and any("\ud800" <= c <= "\udfff" for c in n):
            raise UnreadableModelError(f"{source}: the tensor name {n!r} is no valid text")
    names = strip_prefix(list(tensors))
    short = {names[n]: t for n, t in tensors.items()}
    groups = [[names[n] for n in group if n in tensors] for group in aliases]
    dropped = tied(groups, short)
    notes = [f"'{n}' is tied to '{kept}' and counted once" for n, kept in sorted(dropped.items())]
    kept = (t for n, t in short.items() if n not in dropped)
    stored = {t.name: n for n, t in short.items()}
    return rename(kept, stored.__getitem__), notes


def model(
    name: str,
    source: str,
    tensors: Iterable[Tensor],
    config: Mapping[str, Any] | None,
    claims: Mapping[str, str],
    notes: Iterable[str],
) -> Model:
    """A model with its tensors sorted by name.

    Returns:
        The model.
    """
    ordered = {t.name: t for t in sorted(tensors, key=lambda t: t.name)}
    return Model(name, source, ordered, config, dict(claims), tuple(notes))
