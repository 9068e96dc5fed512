"""Turn the contents of a file into models with canonical tensor names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stemma.checkpoints import budget
from stemma.checkpoints.cards import BASE_CLAIMS, CARD_KEYS, MAX_CLAIM
from stemma.checkpoints.formats import ALL, unsupported
from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import flat_ema, rename, strip_prefix, tied_aliases
from stemma.errors import NotAModelError, UnreadableModelError

MAX_CLAIMS, MAX_KEY, MAX_NOTES = 256, 200, 1_000
"""Claims, characters of the name of a claim, and notes that are kept of one checkpoint."""

GRAPH_SUFFIXES = frozenset({".onnx", ".tflite", ".pt2", ".h5", ".hdf5", ".keras", ".gguf", ".json"})
"""Extensions of files that distributed training does not write."""


def format_of(path: Path) -> AbstractFormat:
    """The format of a file, recognised by its first bytes, then by its extension."""
    try:
        with path.open("rb") as f:
            head = f.read(unsupported.HEAD)
    except OSError as e:
        raise NotAModelError(f"{path} cannot be opened: {e.strerror or e}") from e
    if not head:
        raise UnreadableModelError(f"{path} is empty. Was the download interrupted?")
    part = unsupported.by_name(path)
    if part is not None:
        raise part.error(path)
    for known in ALL:
        if known.recognises(path, head[:64]):
            return known
    kind = unsupported.by_content(path, head)
    if kind is not None:
        raise (unsupported.by_suffix(path) or kind if not kind.is_placeholder else kind).error(path)
    suffix = path.suffix.lower()
    kind = unsupported.by_suffix(path) if not any(suffix in f.suffixes for f in ALL) else None
    kind = kind or unsupported.by_plain_bytes(path, head) or unsupported.external_onnx_data(path, head)
    if kind is not None:
        raise kind.error(path)
    for known in ALL:
        if suffix in known.suffixes:
            return known
    reads = ", ".join(f.name for f in ALL)
    raise NotAModelError(f"{path} has an unknown format (its first bytes are {head[:8]!r}). Supported formats: {reads}")


def read_file(path: Path) -> Contents:
    """The tensors of one file under their stored names."""
    with budget.reading(path) as costs:
        found = format_of(path)
        costs.opened(path.stat())
        contents = found.read(path)
        for tensors in contents.parts.values():
            costs.charge(tensors)
        return contents


def build_models(
    contents: Contents,
    name: str,
    source: Path,
    config: Mapping[str, Any] | None = None,
    claims: Mapping[str, str] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
) -> tuple[Model, ...]:
    """Turn the contents of a file into models with canonical names: the main one, then the averaged (EMA) one."""
    parts = {k: {t.name: t for t in v} for k, v in contents.parts.items()}
    main = parts.get("", {})
    if any(len(parts[k]) != len(contents.parts[k]) for k in parts):
        raise UnreadableModelError(f"{source} contains two tensors with the same name")
    averaged = flat_ema(list(main)) if "ema" not in parts else {}
    if averaged:
        parts["ema"] = {called: main[n] for n, called in averaged.items()}
        main = {n: t for n, t in main.items() if n not in averaged}
    if not main:
        raise NotAModelError(
            f"{source} contains no tensors" + (f" ({'; '.join(contents.notes)})" if contents.notes else "")
        )
    _check_not_empty(source, main)
    known = {**contents.metadata, **claims}
    made = []
    for label, tensors in (("", main), ("ema", parts.get("ema", {}))):
        if tensors:
            found, more = canonicalize(tensors, contents.aliases, source)
            called = f"{name}#{label}" if label else name
            made.append(
                make_model(called, str(source.absolute()), found, config, known, (*notes, *contents.notes, *more))
            )
    return tuple(made)


def _check_not_empty(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse files without weights, and the empty placeholders (shape [0]) of ZeRO-3 partitions."""
    graph = source.suffix.lower() in GRAPH_SUFFIXES  # in graphs an operator may have an empty list as input
    shells = [n for n, t in tensors.items() if t.shape == (0,) and not graph]
    weights = sum(n.endswith("weight") for n in shells)
    if shells and (weights or 3 * len(shells) >= len(tensors)):
        raise UnreadableModelError(
            f"{source}: {len(shells)} of {len(tensors)} tensors are empty ZeRO-3 placeholders (first '{min(shells)}'). "
            "Run DeepSpeed's zero_to_fp32.py in the checkpoint folder and use its output"
        )
    if not any(t.size for t in tensors.values()):
        raise NotAModelError(f"{source} contains no weights: all {len(tensors)} tensors are empty")


def canonicalize(
    tensors: Mapping[str, Tensor], aliases: Iterable[tuple[str, ...]], source: Path
) -> tuple[list[Tensor], list[str]]:
    """Tensors under canonical names without second names of tied tensors, and notes on what was left out."""
    for n in tensors:
        if not isinstance(n, str):
            raise UnreadableModelError(f"{source}: the tensor name {n!r} is not a string. Use strings as names")
        if not n.isascii() and any("\ud800" <= c <= "\udfff" for c in n):
            raise UnreadableModelError(f"{source}: the tensor name {n!r} is not valid Unicode")
    names = strip_prefix(list(tensors))
    short = {names[n]: t for n, t in tensors.items()}
    groups = [[names[n] for n in group if n in tensors] for group in aliases]
    dropped = tied_aliases(groups, short)
    notes = [f"'{n}' is tied to '{kept}' and counted once" for n, kept in sorted(dropped.items())]
    kept = (t for n, t in short.items() if n not in dropped)
    stored = {t.name: n for n, t in short.items()}
    return rename(kept, stored.__getitem__), notes


def make_model(
    name: str,
    source: str,
    tensors: Iterable[Tensor],
    config: Mapping[str, Any] | None,
    claims: Mapping[str, str],
    notes: Iterable[str],
) -> Model:
    """A model with its tensors sorted by name."""
    ordered = {t.name: t for t in sorted(tensors, key=lambda t: t.name)}
    return Model(name, source, ordered, config, _short(claims), _few(notes))


def _short(claims: Mapping[str, str]) -> dict[str, str]:
    """Claims as they are kept and shown: a file may have a hundred megabytes of them."""
    kept = sorted(claims, key=lambda key: (key not in (*CARD_KEYS, *BASE_CLAIMS), len(key) > MAX_KEY))[:MAX_CLAIMS]
    return {_cut(k, MAX_KEY): _cut(claims[k], MAX_CLAIM) for k in kept}


def _few(notes: Iterable[str]) -> tuple[str, ...]:
    found = [_cut(note, MAX_CLAIM) for note in notes]
    more = len(found) - MAX_NOTES
    return tuple(found) if more <= 0 else (*found[:MAX_NOTES], f"{more:,} more notes of this kind were left out")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
