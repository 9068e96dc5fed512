"""Claims of the files next to the weights (config, model card, receipt): shown to people, never used as evidence."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.types.edits import RECEIPT

MAX_BYTES = 4_000_000
LICENCE_KEYS = ("license", "license_name", "license_link")
"""Front-matter keys of a model card that state its licence."""

CARD_KEYS = (*LICENCE_KEYS, "base_model", "base_model_relation", "model_name", "pipeline_tag", "library_name")
"""Front-matter keys of a model card that are read."""

MAX_CLAIM = 1000
"""Characters of a claim that are kept; longer texts are not licence names."""

BASE_CLAIMS = ("base_model", "base_model_name_or_path", "edited_from")
"""Claims that name the base model: of a card, an adapter, a receipt."""

BASE_LICENCE = "base_model_license"
"""Claim with the licence of the base model of a merged adapter."""

NO_LICENCE = frozenset({"", "null", "~", "none", "n/a", "na", "tbd", "todo", "noassertion", "[]", "{}"})
"""Values in cards that mean no licence."""

FROM_SCRATCH = "from_scratch"
"""Claim that a model was trained from scratch: the sentence of its card."""

_SCRATCH = re.compile(
    r"[\s\-*#>+_]*(?:"
    r"(?:it|(?:this|the|our)\s(?:[\w.\-]+\s){0,2}(?:model|network|checkpoint))"
    r"\s(?:is|was|has\sbeen)\s(?:\w+\s){0,2}(?:pre-?)?trained"
    r"|we\s(?:have\s)?(?:pre-?)?trained\s(?:this|the|our)\s(?:model|network)"
    r"|(?:pre-?)?trained)"
    r"\s(?:\w+\s){0,2}from[\s-]scratch\b",
    re.IGNORECASE,
)
"""How a sentence begins that says this of its own model, and neither of another one nor as an instruction."""

_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=[-*#|>])")
_OTHERWISE = re.compile(
    r"\b(?:not?|never|without|rather|instead|than|unlike|cannot|neither|nor|if|which|whose|while|then|before|later|after|"
    r"first|originally|baselines?|teacher|compar\w*|base|adapt\w*|fine-?tun\w*|by)\b|n't\b|n’t\b",
    re.IGNORECASE,
)
"""Words with which a sentence may say something else than that these very weights were trained from scratch."""

_CODE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
"""A block of code in Markdown."""

BLOCK_SCALARS = frozenset({">", "|", ">-", "|-", ">+", "|+"})
"""YAML indicators of a block scalar on the following lines."""

PLACEHOLDER_LICENCES = frozenset({"other", "unknown"})
"""Hugging Face's placeholder licences: the actual name is in another key, if any."""


def read(folder: Path) -> tuple[dict[str, Any] | None, dict[str, str], tuple[str, ...]]:
    """`config.json` of a checkpoint folder (None without one), claims by name, and notes on unreadable files."""
    notes: list[str] = []
    config = json_object(folder / "config.json", notes)
    claims: dict[str, str] = {}
    base = (config or {}).get("_name_or_path")
    if isinstance(base, str) and base:
        claims["_name_or_path"] = base
    claims.update(front_matter(folder / "README.md"))
    claims.update(from_scratch(folder / "README.md"))
    claims.update(receipt(folder / RECEIPT))
    return config, claims, tuple(notes)


def receipt(path: Path) -> dict[str, str]:
    """What an edit's `receipt.json` claims: `edited_from`, `edited_to` and `edit`; empty if it is not a receipt."""
    found = json_object(path, []) or {}
    claims = {"edited_from": found.get("parent"), "edited_to": found.get("child"), "edit": found.get("operation")}
    whole = all(isinstance(v, str) and v and len(v) < 100 for v in claims.values())
    return {k: str(v) for k, v in claims.items()} if whole else {}


def json_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The JSON object in a file; None, with a note, if the file holds none."""
    text = _text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} is not a JSON object and was ignored")
        return None
    return found


def licence(claims: Mapping[str, str]) -> str | None:
    """The licence that card, GGUF or safetensors claims state, as written; `other: NAME` for a named one; else None."""
    word, name, link = (_stated(claims, key) for key in LICENCE_KEYS)
    if word and word.casefold() in PLACEHOLDER_LICENCES:
        return f"{word}: {name}" if name else f"{word} ({link})" if link else word
    both = [x for x in (word, name) if x]
    if len(both) == 2 and both[0].casefold() == both[1].casefold():
        both.pop()
    return ", ".join(both) or (f"other ({link})" if link else None)


def provenance_claims(claims: Mapping[str, str]) -> dict[str, str]:
    """The claims about licence and base model."""
    licence = [f(k) for k in LICENCE_KEYS for f in _SPELLINGS]
    return {k: claims[k] for k in (*licence, *BASE_CLAIMS, "edited_to", BASE_LICENCE) if claims.get(k)}


def _stated(claims: Mapping[str, str], key: str) -> str:
    text = next((claims[k] for f in _SPELLINGS if claims.get(k := f(key))), "")
    return "" if text.strip().casefold() in NO_LICENCE else text.strip()


_SPELLINGS = (str, lambda key: key.replace("_", "."), lambda key: f"modelspec.{key}")
"""Spellings of a key in cards, GGUF and safetensors metadata."""


def front_matter(path: Path) -> Mapping[str, str]:
    """Selected keys of a model card's YAML front matter; lists are joined by commas."""
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
            _continue_value(found.get(key, []), line.strip())
        else:
            key = _scalar(head).strip().casefold().replace("licence", "license")
            found.setdefault(key, []).extend(_scalars(value))
    return {k: ", ".join(found[k])[:MAX_CLAIM] for k in CARD_KEYS if found.get(k)}


def from_scratch(path: Path) -> dict[str, str]:
    """The claim of a model card that the model was trained from scratch; empty where no plain sentence says so."""
    lines = (_text(path) or "").splitlines()
    if lines and lines[0].strip() == "---":
        end = next((i for i, line in enumerate(lines[1:1000], 1) if line.strip() in ("---", "...")), 0)
        lines = lines[end + 1 :]
    for sentence in _SENTENCES.split(_CODE.sub("\n\n", "\n".join(lines))):
        if _SCRATCH.match(sentence) and not _OTHERWISE.search(sentence):
            return {FROM_SCRATCH: " ".join(sentence.split())[:MAX_CLAIM]}
    return {}


def _continue_value(items: list[str], line: str) -> None:
    """Add a continuation line to a value: a list item, or more text."""
    more = _scalars(line.removeprefix("- "))
    if line.startswith("- ") or line[-1:] in ",]" or not items:
        items += more
    elif more:
        items[-1] = f"{items[-1]} {more[0]}"
        items += more[1:]


def _scalars(value: str) -> list[str]:
    """Items of a one-line list, or the single scalar; empty for a block-scalar sign."""
    text = value.strip()
    if text in BLOCK_SCALARS:
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
