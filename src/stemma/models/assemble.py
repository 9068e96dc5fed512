"""From what a file holds to models with canonical names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stemma.errors import NotAModelError, UnreadableModelError
from stemma.models.formats import ALL, REFUSED
from stemma.models.formats.base import AbstractFormat, Contents
from stemma.models.model import Model, Tensor
from stemma.models.names import rename, split_flat_ema, strip_prefix, tied


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
            head = f.read(64)
    except OSError as e:
        raise NotAModelError(f"{path} cannot be opened: {e.strerror or e}") from e
    if not head:
        raise UnreadableModelError(f"{path} is empty. Was the download interrupted?")
    suffix = path.suffix.lower()
    for known in ALL:
        if known.recognises(path, head):
            return known
    for known in ALL:
        if suffix in known.suffixes:
            return known
    what = REFUSED.get(suffix)
    reads = ", ".join(f.name for f in ALL)
    raise NotAModelError(
        f"{path} is {what or 'no checkpoint of a known format'}, which Stemma does not read. It reads: {reads}"
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
    prefix = split_flat_ema(list(main)) if "ema" not in parts else None
    if prefix:
        parts["ema"] = {n.removeprefix(prefix): t for n, t in main.items() if n.startswith(prefix)}
        main = {n: t for n, t in main.items() if not n.startswith(prefix)}
    if not main:
        raise NotAModelError(
            f"{source} holds no tensors" + (f" ({'; '.join(contents.notes)})" if contents.notes else "")
        )
    known = {**contents.metadata, **claims}
    made = []
    for label, tensors in (("", main), ("ema", parts.get("ema", {}))):
        if tensors:
            found, more = canonical(tensors, contents.aliases, source)
            called = f"{name}#{label}" if label else name
            made.append(model(called, str(source.absolute()), found, config, known, (*notes, *contents.notes, *more)))
    return tuple(made)


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
