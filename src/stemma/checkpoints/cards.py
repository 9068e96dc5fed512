"""What the files beside the weights claim: architecture, licence, base model. Shown to people, never evidence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.types.edits import RECEIPT

MAX_BYTES = 4_000_000
LICENCE = ("license", "license_name", "license_link")
"""Front-matter keys of a model card that state its licence."""

KEYS = (*LICENCE, "base_model", "base_model_relation", "model_name", "pipeline_tag", "library_name")
"""Front-matter keys of a model card that are kept."""

LONGEST = 1000
"""Characters of a claim that are kept: licences of this length are no names any more."""

BASES = ("base_model", "base_model_name_or_path", "edited_from")
"""Claims that name the model that another one was made from: by a card, an adapter, a receipt."""

BASE_LICENCE = "base_model_license"
"""The claim that tells the licence of the base that an adapter was merged with."""

NOTHING = frozenset({"", "null", "~", "none", "n/a", "na", "tbd", "todo", "noassertion", "[]", "{}"})
"""What stands in cards where no licence is stated."""

FOLDED = frozenset({">", "|", ">-", "|-", ">+", "|+"})
"""YAML's signs that a text follows on the lines below."""

UNNAMED = frozenset({"other", "unknown"})
"""Licences of Hugging Face's list that are none: the name stands elsewhere, or nowhere."""


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


def licence(claims: Mapping[str, str]) -> str | None:
    """The licence that a model's files claim, in one text.

    Args:
        claims: Of a card (`license`, `license_name`, `license_link`), of a GGUF file (`license.name` and so on), or of
            the metadata of a safetensors file (`modelspec.license`).

    Returns:
        As it is written; `other: NAME` where the card's own word is `other` and the name stands beside it. Where two
        are stated both are told, with a comma. None where none is stated.
    """
    word, name, link = (_stated(claims, key) for key in LICENCE)
    if word and word.casefold() in UNNAMED:
        return f"{word}: {name}" if name else f"{word} ({link})" if link else word
    both = [x for x in (word, name) if x]
    if len(both) == 2 and both[0].casefold() == both[1].casefold():
        both.pop()
    return ", ".join(both) or (f"other ({link})" if link else None)


def relevant(claims: Mapping[str, str]) -> dict[str, str]:
    """The claims about a model's licence and about what it was made from.

    Returns:
        Those that are there.
    """
    licence = [f(k) for k in LICENCE for f in _SPELLINGS]
    return {k: claims[k] for k in (*licence, *BASES, "edited_to", BASE_LICENCE) if claims.get(k)}


def _stated(claims: Mapping[str, str], key: str) -> str:
    text = next((claims[k] for f in _SPELLINGS if claims.get(k := f(key))), "")
    return "" if text.strip().casefold() in NOTHING else text.strip()


_SPELLINGS = (str, lambda key: key.replace("_", "."), lambda key: f"modelspec.{key}")
"""A key of a card, as GGUF has it, and as the metadata of safetensors files have it."""


def front_matter(path: Path) -> Mapping[str, str]:
    """The kept keys of a model card's front matter.

    Scalars, lists and folded text are understood. What is not (a mapping) is kept as it is written, so that nothing
    that states a licence is lost; of a key that is written twice both values are kept.

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
        if line.strip() in ("---", "..."):
            break
        head, colon, value = line.partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " -\t" or not colon:
            _go_on(found.get(key, []), line.strip())
        else:
            key = _scalar(head).strip().casefold().replace("licence", "license")
            found.setdefault(key, []).extend(_scalars(value))
    return {k: ", ".join(found[k])[:LONGEST] for k in KEYS if found.get(k)}


def _go_on(items: list[str], line: str) -> None:
    """A further line of a value: an item of a list, or more of a text."""
    more = _scalars(line.removeprefix("- "))
    if line.startswith("- ") or line[-1:] in ",]" or not items:
        items += more
    elif more:
        items[-1] = f"{items[-1]} {more[0]}"
        items += more[1:]


def _scalars(value: str) -> list[str]:
    """The items of a list in one line, or the one scalar that it is; a sign that text follows below is none."""
    text = value.strip()
    if text in FOLDED:
        return []
    whole = text[:1] not in "[]" and text[-1:] not in "],"
    items = [text] if whole else text.split(" #")[0].strip("[], ").split(",")
    return [item for i in items if (item := _scalar(i))]


def _scalar(text: str) -> str:
    text = text.split(" #")[0].strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        return path.read_text("utf-8-sig", errors="replace")
    except OSError:
        return None
