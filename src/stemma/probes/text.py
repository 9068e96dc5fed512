"""Read texts as token ids, in windows of one length without padding."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stemma.errors import MissingExtraError, MisuseError, UnreadableProbesError
from stemma.probes.files import ProbeFiles, read_bytes
from stemma.probes.parameters import MAX_BYTES, check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec

DEFAULT_WINDOW = 128
"""Largest default window in tokens."""

BYTE_VOCABULARY = 256
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

Tokenize = Callable[[str], list[int]]


def read_texts(
    files: ProbeFiles,
    input_spec: InputSpec | None,
    where: str,
    length: int | None,
    tokenizer: Path | None,
    *,
    lines: bool,
) -> Probes:
    """Cut texts into windows of equal length, without overlap and not across the end of a text.

    The remainder of each text is dropped. Without `length`, windows are as long as the median text, at most
    `DEFAULT_WINDOW` tokens and at most the model's limit. Without a tokenizer, models with 256 tokens read UTF-8 bytes.

    Args:
        files: The files.
        input_spec: Input of the models: ids from 0 to `high`.
        where: Named in errors.
        length: Tokens of a window.
        tokenizer: A folder with the files of a Hugging Face tokenizer.
        lines: Whether each line is a text, instead of each file.

    Returns:
        Token ids int64 `[n, length]`, without special tokens; `source` states how much was dropped.

    Raises:
        UnreadableProbesError: If a file is not UTF-8, or no text fills a window.
        MisuseError: If there is no tokenizer.

    """
    if input_spec is not None and input_spec.kind != "tokens":
        raise UnreadableProbesError(
            f"{where} contains text, but the model takes {input_spec.kind} inputs of shape {list(input_spec.shape)}"
        )
    tokenize, how = _tokenizer(input_spec, tokenizer, where)
    texts: list[np.ndarray] = []
    classes: list[int] = []
    for i, path in enumerate(files.paths):
        for part in _parts(path, lines):
            ids = np.asarray(tokenize(part), np.int64)
            if len(ids):
                texts.append(ids)
                classes.append(0 if files.labels is None else int(files.labels[i]))
    if not texts:
        raise UnreadableProbesError(f"{where} contains no text")
    size = _window(texts, input_spec, length)
    windows = [ids[: len(ids) // size * size].reshape(-1, size) for ids in texts]
    check_size(f"the windows of {where}", (sum(len(w) for w in windows), size), 8)
    ids_of_windows = np.concatenate(windows)
    if not len(ids_of_windows):
        longest = max(len(ids) for ids in texts)
        raise UnreadableProbesError(
            f"no text of {where} fills a window of {size} tokens; the longest has {longest}. Use a smaller length, "
            f"for example {where}#length={longest}"
        )
    if input_spec is not None and int(ids_of_windows.max()) > input_spec.high:
        raise MisuseError(
            f"the {how} gives ids up to {int(ids_of_windows.max())}, but the model has ids up to "
            f"{input_spec.high:.0f}. Use the tokenizer of that model"
        )
    labels = None if files.labels is None else np.repeat(classes, [len(w) for w in windows])
    lost = 1 - ids_of_windows.size / sum(len(ids) for ids in texts)
    description = f"{where}: {len(ids_of_windows)} windows of {size} tokens ({how}), {lost:.0%} of the text dropped"
    return Probes.of(ids_of_windows, labels, source=f"{description}{', ' * bool(files.classes)}{files.classes}")


LONGEST_LINE = 16_384
"""Bytes of one line that is asked as a whole."""


def read_lines(path: Path) -> Probes:
    """The lines of a text as they are, for models that are asked in words.

    Args:
        path: A UTF-8 file; empty lines are skipped.

    Returns:
        UTF-8 bytes int64 `[n, longest]`, padded with zeros; no line is cut.

    Raises:
        UnreadableProbesError: If there is no such file, it holds no text, or a line is too long.
    """
    if not path.is_file():
        raise UnreadableProbesError(f"there is no text file {path}: a model that is asked in words needs a .txt")
    lines = [line.encode() for line in _parts(path, lines=True)]
    if not lines:
        raise UnreadableProbesError(f"{path} contains no text")
    longest = max(map(len, lines))
    if longest > LONGEST_LINE or any(0 in line for line in lines):
        raise UnreadableProbesError(f"a line of {path} has {longest:,} bytes, or a zero byte: at most "
                                    f"{LONGEST_LINE:,} bytes of text are asked at once")  # fmt: skip
    check_size(f"the lines of {path}", (len(lines), longest), 8)
    ids = np.zeros((len(lines), longest), np.int64)
    for row, line in zip(ids, lines, strict=True):
        row[: len(line)] = np.frombuffer(line, np.uint8)
    return Probes.of(ids, source=f"{path}: {len(lines)} lines")


def _parts(path: Path, lines: bool) -> list[str]:
    try:
        text = read_bytes(path, MAX_BYTES // 8).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UnreadableProbesError(
            f"{path} is not UTF-8 text: byte {e.start} is {e.object[e.start]:#04x}. Convert it first"
        ) from e
    if not lines:
        return [text.replace("\r\n", "\n")]
    return [line for line in (raw.rstrip("\n") for raw in io.StringIO(text, newline=None)) if line.strip()]


def _window(texts: list[np.ndarray], input_spec: InputSpec | None, length: int | None) -> int:
    longest = input_spec.shape[0] if input_spec is not None and input_spec.shape and input_spec.shape[0] else None
    if length is not None:
        if longest is not None and length > longest:
            raise MisuseError(f"windows of {length} tokens were requested, but the model takes up to {longest}")
        return length
    median = int(np.median([len(ids) for ids in texts]))
    return max(1, min(median, DEFAULT_WINDOW, longest or DEFAULT_WINDOW))


def _tokenizer(input_spec: InputSpec | None, folder: Path | None, where: str) -> tuple[Tokenize, str]:
    folder = folder.parent if folder is not None and folder.is_file() else folder
    if folder is not None and any((folder / name).is_file() for name in TOKENIZERS):
        return _load_tokenizer(folder), f"tokenizer of {folder.name}"
    if input_spec is not None and input_spec.high == BYTE_VOCABULARY - 1:
        return lambda text: list(text.encode("utf-8")), "bytes"
    nothing = "no tokenizer was given" if folder is None else f"{folder} has no tokenizer ({TOKENIZERS[0]}, …)"
    raise MisuseError(
        f"{where} is text and needs a tokenizer, but {nothing}. Use a model folder with its tokenizer, or an .npz "
        "with token ids as 'inputs'"
    )


def _load_tokenizer(folder: Path) -> Tokenize:
    try:
        return (
            _fast_tokenizer(folder / TOKENIZERS[0]) if (folder / TOKENIZERS[0]).is_file() else _slow_tokenizer(folder)
        )
    except ImportError as e:
        raise MissingExtraError("turning text into tokens", "transformers", "hf") from e
    except Exception as e:  # damaged files raise many kinds of error
        why = " ".join(str(e).split())[:200]
        raise UnreadableProbesError(f"the tokenizer in {folder} cannot be loaded: {why}") from e


def _fast_tokenizer(file: Path) -> Tokenize:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    with contextlib.suppress(AttributeError):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _slow_tokenizer(folder: Path) -> Tokenize:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return lambda text: tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
