"""The store of Ollama: manifests by host, name and tag, whose layers are blobs named after their digest.

Source: Ollama, docs/import.md and the layout of `~/.ollama/models`; OCI image manifest, version 2.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma.checkpoints.stores.stored_model import (
    INCOMPLETE,
    MANIFEST,
    NO_WEIGHTS,
    OUTSIDE,
    UNFINISHED,
    Omitted,
    StoredModel,
    files_of,
    is_inside,
    safe_name,
)

SERVICE = Path("/usr/share/ollama/.ollama/models")
"""Where the store lies when Ollama runs as a service of the system."""

WEIGHTS = {"model": "", "adapter": "#adapter", "projector": "#projector"}
"""Kinds of layers with weights, and what stands behind the name of the model."""

LICENCE = "license"
TYPE = "application/vnd.ollama.image."
MAX_MANIFEST = 4_000_000
MAX_LICENCE = 200_000
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def default_place() -> Path:
    """Where the store lies: `OLLAMA_MODELS`, else the user's own, else that of the service."""
    if given := os.environ.get("OLLAMA_MODELS"):
        return Path(given).expanduser()
    own = Path.home() / ".ollama" / "models"
    return SERVICE if not own.is_dir() and SERVICE.is_dir() else own


def is_ollama(root: Path) -> bool:
    """Whether a folder is such a store."""
    return (root / "manifests").is_dir() and (root / "blobs").is_dir()


def read_ollama(root: Path) -> Iterator[StoredModel | Omitted]:
    """The models of a store: `ollama:NAME:TAG`; a blob that several tags name is one model with several names."""
    blobs = root / "blobs"
    if not is_inside(blobs, root):
        yield Omitted(OUTSIDE, "ollama", f"{blobs} is a link that leaves {root}; it was not followed")
        return
    for path in sorted(blobs.glob("sha256*-partial*")):
        yield Omitted(UNFINISHED, safe_name(path.name), f"{path} is an unfinished download", is_model=False)
    for at, folders, files in os.walk(root / "manifests", followlinks=False):
        folders.sort()
        for name in sorted((*files, *(f for f in folders if Path(at, f).is_symlink()))):
            if not name.startswith("."):
                yield from _manifest(Path(at, name), root)


def _manifest(path: Path, root: Path) -> Iterator[StoredModel | Omitted]:
    name = _name(path.relative_to(root / "manifests").parts)
    if not is_inside(path, root):
        yield Omitted(OUTSIDE, name, f"{path} is a link that leaves {root}; it was not followed")
        return
    try:
        layers = _layers(path)
    except (OSError, ValueError, TypeError, RecursionError) as e:
        yield Omitted(MANIFEST, name, f"{path} is not a manifest of Ollama ({str(e)[:100]})")
        return
    claims = _claims(layers, root)
    weights = [(kind, layer) for kind in WEIGHTS for layer in layers if layer.get("mediaType") == f"{TYPE}{kind}"]
    if not any(kind == "model" for kind, _ in weights):
        yield Omitted(NO_WEIGHTS, name, f"{path} names no layer with a model", is_model=False)
    for number, (kind, layer) in enumerate(weights):
        more = sum(k == kind for k, _ in weights[:number])
        yield _layer(safe_name(f"{name}{WEIGHTS[kind]}{f'-{more + 1}' if more else ''}"), layer, root, claims)


def _layers(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file() or path.stat().st_size > MAX_MANIFEST:
        raise ValueError("no file of a manifest's size")
    found = json.loads(path.read_bytes())
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("it has no list of layers")
    return layers


def _layer(name: str, layer: Mapping[str, Any], root: Path, claims: Mapping[str, str]) -> StoredModel | Omitted:
    blob = _blob(layer.get("digest"), root)
    if blob is None:
        shown = safe_name(str(layer.get("digest"))[:100])
        return Omitted(MANIFEST, name, f"its manifest names the layer '{shown}', which is no digest; it was not read")
    if not blob.is_symlink() and not blob.exists():
        return Omitted(INCOMPLETE, name, f"{blob} is missing. Is the download finished?")
    if not is_inside(blob, root):
        return Omitted(OUTSIDE, name, f"{blob} is a link that leaves {root}; it was not followed")
    try:
        files, size = files_of(blob), layer.get("size")
    except OSError as e:
        return Omitted(INCOMPLETE, name, f"{blob} cannot be read: {e.strerror or e}")
    if isinstance(size, int) and files[0].size != size:
        return Omitted(INCOMPLETE, name, f"{blob} has {files[0].size:,} bytes of {size:,}. Is the download finished?")
    base = layer.get("from")
    named = isinstance(base, str) and 0 < len(base) <= 200 and "/blobs/" not in base and "\\" not in base
    return StoredModel((name,), blob, files, {**claims, "base_model": str(base)} if named else claims)


def _blob(digest: object, root: Path) -> Path | None:
    """The file of a digest; None if it is none: it may be a path out of the store."""
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        return None
    usual, old = root / "blobs" / f"sha256-{match[1]}", root / "blobs" / f"sha256:{match[1]}"
    return old if old.exists() and not usual.exists() else usual


def _claims(layers: Sequence[Mapping[str, Any]], root: Path) -> dict[str, str]:
    """The first line of the licence that a model comes with."""
    for layer in layers:
        blob = _blob(layer.get("digest"), root) if layer.get("mediaType") == f"{TYPE}{LICENCE}" else None
        if blob is None or not is_inside(blob, root):
            continue
        try:
            with blob.open("rb") as file:
                text = file.read(MAX_LICENCE).decode(errors="replace")
        except OSError:
            continue
        if lines := [" ".join(line.split()) for line in text.splitlines() if line.strip()]:
            return {LICENCE: lines[0][:200]}
    return {}


def _name(parts: Sequence[str]) -> str:
    """`ollama:NAME:TAG`, with host and owner where they are not the usual ones."""
    *path, tag = parts
    if path[:1] == ["registry.ollama.ai"]:
        path = path[2:] if path[1:2] == ["library"] else path[1:]
    return safe_name(f"ollama:{'/'.join(path)}:{tag}" if path else f"ollama:{tag}")
