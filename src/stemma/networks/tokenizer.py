"""Vocabulary of a checkpoint: token ids of two models are comparable if their vocabularies are equal."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.checkpoints import budget
from stemma.errors import OverBudgetError

MAX_BYTES = 64_000_000
"""Largest vocabulary file that is read; that of Gemma 3 has 33 MB."""
MAX_PARTS = 12_000_000
"""Weight of its JSON, as `Limits.json` counts: Gemma 3 lists 580,000 merges as pairs."""


def vocabulary(folder: Path) -> Mapping[str, int] | None:
    """Id by token from `tokenizer.json`, `vocab.json` or `vocab.txt`, added tokens included; None without a file."""
    found = _json(folder / "tokenizer.json")
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        words = found["model"].get("vocab")
        if isinstance(words, list):  # unigram: pairs of token and score
            words = {str(pair[0]): i for i, pair in enumerate(words) if isinstance(pair, list) and pair}
        if isinstance(words, Mapping):
            added = found.get("added_tokens") or []
            more = {str(t["content"]): t["id"] for t in added if isinstance(t, Mapping) and {"content", "id"} <= set(t)}
            return _ids({**words, **more})
    words = _json(folder / "vocab.json")
    if isinstance(words, Mapping):
        more = _json(folder / "added_tokens.json")
        return _ids({**words, **(more if isinstance(more, Mapping) else {})})
    text = _text(folder / "vocab.txt")
    return None if text is None else {word: i for i, word in enumerate(text.split("\n")) if word}


def largest_token_id(folder: Path, rows: int | None) -> int | None:
    """The largest token id in use: embeddings are often longer than their vocabulary; None if unknown."""
    words = vocabulary(folder)
    known = [n - 1 for n in (rows, max(words.values()) + 1 if words else None) if n]
    return min(known) if known else None


def vocabulary_digest(folder: Path) -> str | None:
    """Digest of the vocabulary (tokens and ids), or of a `tokenizer.model` file; None if there is neither."""
    words = vocabulary(folder)
    if words is not None:
        content = json.dumps(sorted(words.items(), key=lambda pair: (pair[1], pair[0]))).encode()
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        path = folder / name
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return None


def _ids(words: Mapping[str, Any]) -> dict[str, int] | None:
    return {k: v for k, v in words.items() if type(v) is int and v >= 0} or None


def _text(path: Path) -> str | None:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    return path.read_text("utf-8", errors="replace")


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        return None if text is None else budget.parse(text.encode(), most=MAX_PARTS)
    except (ValueError, RecursionError, OverBudgetError):
        return None
