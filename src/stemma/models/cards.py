"""What the files beside the weights claim: architecture, licence, base model. Shown to people, never evidence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.types.edits import RECEIPT

MAX_BYTES = 4_000_000
KEYS = ("license", "license_name", "base_model", "base_model_relation", "model_name", "pipeline_tag", "library_name")
"""Front-matter keys of a model card that are kept."""


def read(folder: Path) -> tuple[dict[str, Any] | None, dict[str, str], tuple[str, ...]]:
    """The config and the claims of a checkpoint folder.

    Args:
        folder: The folder.

    Returns:
        `config.json` as read (None without one), the claims by name, and notes on what could not be read.
    """
    notes: list[str] = []
    config = json_object(folder / "config.json", notes)
    claims: dict[str, str] = {}
    base = (config or {}).get("_name_or_path")
    if isinstance(base, str) and base:
        claims["_name_or_path"] = base
    claims.update(front_matter(folder / "README.md"))
    claims.update(receipt(folder / RECEIPT))
    return config, claims, tuple(notes)


def receipt(path: Path) -> dict[str, str]:
    """What a receipt of an edit claims: the digests of the models before and after, and what was done.

    Args:
        path: A `receipt.json`; it may be absent, or be something else.

    Returns:
        `edited_from`, `edited_to` and `edit`; nothing where it is no receipt.
    """
    found = json_object(path, []) or {}
    claims = {"edited_from": found.get("parent"), "edited_to": found.get("child"), "edit": found.get("operation")}
    whole = all(isinstance(v, str) and v and len(v) < 100 for v in claims.values())
    return {k: str(v) for k, v in claims.items()} if whole else {}


def json_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A JSON object in a file, or None with a note why not.

    Args:
        path: The file; it may be absent.
        notes: Where the note goes.

    Returns:
        The object.
    """
    text = _text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} is no JSON object and was ignored")
        return None
    return found


def front_matter(path: Path) -> Mapping[str, str]:
    """The kept keys of a model card's front matter (its scalars and flat lists; the rest of YAML is not needed).

    Args:
        path: A `README.md`; it may be absent.

    Returns:
        Text by key; lists are joined by commas.
    """
    lines = (_text(path) or "").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:1000]:
        if line.strip() == "---":
            break
        if line[:1] in (" ", "-", "\t") and key and line.strip().startswith("- "):
            found[key].append(_scalar(line.strip()[2:]))
        elif ":" in line and line[:1] not in (" ", "-", "#", "\t"):
            key, _, value = line.partition(":")
            items = value.strip().strip("[]").split(",") if value.strip().startswith("[") else [value]
            found[key] = [_scalar(v) for v in items if _scalar(v)]
    return {k: ", ".join(found[k]) for k in KEYS if found.get(k)}


def _scalar(text: str) -> str:
    text = text.split(" #")[0].strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None
