"""Texts as token ids: windows of one length, so that nothing is padded."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import MissingExtraError, MisuseError, UnreadableProbesError
from stemma.probes.files import Found, read_bytes
from stemma.probes.parameters import MAX_BYTES, check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec

LONGEST = 128
"""Tokens of a window where nobody says how many."""

BYTES = 256
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

Tokenize = Callable[[str], list[int]]


def read_texts(
    found: Found, like: InputSpec | None, where: str, length: int | None, tokenizer: Path | None, *, lines: bool
) -> Probes:
    """Cut texts into windows of equal length.

    Windows do not overlap and do not cross the end of a text; what is left over at its end is dropped. Without
    `length`, windows are as long as the median text, at most `LONGEST` tokens and at most what the model takes.

    Args:
        found: The files.
        like: What the models take: ids from 0 to `high`.
        where: For people.
        length: Tokens of a window.
        tokenizer: A folder with the files of a Hugging Face tokenizer. Where there is none, models of 256 tokens read
            the bytes of the text in UTF-8.
        lines: Whether each line is a text, instead of each file.

    Returns:
        Token ids int64 `[n, length]`, without special tokens; `source` says what was dropped.

    Raises:
        UnreadableProbesError: If a file is not UTF-8, or no text fills a window.
        MisuseError: If nothing says how text becomes tokens.
    """
    if like is not None and like.kind != "tokens":
        raise UnreadableProbesError(
            f"{where} holds text, but the model takes {like.kind} inputs of shape {list(like.shape)}"
        )
    tokenize, how = _tokenizer(like, tokenizer, where)
    texts: list[np.ndarray] = []
    classes: list[int] = []
    for i, path in enumerate(found.paths):
        for part in _parts(path, lines):
            ids = np.asarray(tokenize(part), np.int64)
            if len(ids):
                texts.append(ids)
                classes.append(0 if found.labels is None else int(found.labels[i]))
    if not texts:
        raise UnreadableProbesError(f"{where} holds no text")
    size = _window(texts, like, length)
    windows = [ids[: len(ids) // size * size].reshape(-1, size) for ids in texts]
    check_size(f"the windows of {where}", (sum(len(w) for w in windows), size), 8)
    whole = np.concatenate(windows)
    if not len(whole):
        longest = max(len(ids) for ids in texts)
        raise UnreadableProbesError(
            f"no text of {where} fills a window of {size} tokens, the longest has {longest}: give a smaller length, "
            f"for example {where}#length={longest}"
        )
    if like is not None and int(whole.max()) > like.high:
        raise MisuseError(
            f"the {how} gives ids up to {int(whole.max())}, but the model knows them up to {like.high:.0f}: give the "
            "tokenizer of that model"
        )
    labels = None if found.labels is None else np.repeat(classes, [len(w) for w in windows])
    lost = 1 - whole.size / sum(len(ids) for ids in texts)
    said = f"{where}: {len(whole)} windows of {size} tokens ({how}), {lost:.0%} of the text left over"
    return Probes.of(whole, labels, source=f"{said}{', ' * bool(found.classes)}{found.classes}")


def _parts(path: Path, lines: bool) -> list[str]:
    try:
        text = read_bytes(path, MAX_BYTES // 8).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UnreadableProbesError(
            f"{path} is no UTF-8 text: byte {e.start} is {e.object[e.start]:#04x}. Convert it first"
        ) from e
    if not lines:
        return [text.replace("\r\n", "\n")]
    return [line for line in (raw.rstrip("\n") for raw in io.StringIO(text, newline=None)) if line.strip()]


def _window(texts: list[np.ndarray], like: InputSpec | None, length: int | None) -> int:
    longest = like.shape[0] if like is not None and like.shape and like.shape[0] else None
    if length is not None:
        if longest is not None and length > longest:
            raise MisuseError(f"windows of {length} tokens were asked for, but the model takes up to {longest}")
        return length
    median = int(np.median([len(ids) for ids in texts]))
    return max(1, min(median, LONGEST, longest or LONGEST))


def _tokenizer(like: InputSpec | None, folder: Path | None, where: str) -> tuple[Tokenize, str]:
    folder = folder.parent if folder is not None and folder.is_file() else folder
    if folder is not None and any((folder / name).is_file() for name in TOKENIZERS):
        return _of_folder(folder), f"tokenizer of {folder.name}"
    if like is not None and like.high == BYTES - 1:
        return lambda text: list(text.encode("utf-8")), "bytes"
    nothing = "no tokenizer was given" if folder is None else f"{folder} has no tokenizer ({TOKENIZERS[0]}, …)"
    raise MisuseError(
        f"{where} is text, which becomes tokens by a model's tokenizer, and {nothing}: give the model as a folder with "
        "its tokenizer, or an .npz with token ids as 'inputs'"
    )


def _of_folder(folder: Path) -> Tokenize:
    try:
        return _fast(folder / TOKENIZERS[0]) if (folder / TOKENIZERS[0]).is_file() else _slow(folder)
    except ImportError as e:
        raise MissingExtraError("turning text into tokens", "transformers", "hf") from e
    except Exception as e:  # its files may be damaged in many ways
        why = " ".join(str(e).split())[:200]
        raise UnreadableProbesError(f"the tokenizer in {folder} cannot be loaded: {why}") from e


def _fast(file: Path) -> Tokenize:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    with contextlib.suppress(AttributeError):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _slow(folder: Path) -> Tokenize:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return lambda text: tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
