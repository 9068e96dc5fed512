"""What zoo networks learn from: scikit-learn's digits, and the English text that ships with Python."""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from stemma.errors import MissingExtraError, MisuseError

PARTS = ("a", "b", "test")
"""Two disjoint halves to learn from, and what no network learns from."""

LENGTH = 32
"""Bytes of text in one example of a language model."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and what a network should answer.

    Attributes:
        inputs: Images `[n, 1, 8, 8]` in [0, 1] (float32), or byte tokens `[n, length]` (int64).
        targets: Class `[n]`, next byte `[n, length]`, or a teacher's probabilities with one more axis (float32).
    """

    inputs: np.ndarray
    targets: np.ndarray


def examples(kind: str, part: str, task: str = "digit") -> Examples:
    """One part of the data that networks of a kind learn from.

    Args:
        kind: `mlp`, `cnn` and `vit` learn digits, `lm` learns text.
        part: One of `PARTS`.
        task: For digits: `digit` (10 classes) or `parity` (odd or even).

    Returns:
        700 digits (397 in the test part), or windows of text.

    Raises:
        MisuseError: If part or task are unknown.
    """
    if part not in PARTS or task not in ("digit", "parity"):
        raise MisuseError(f"there is no part {part!r} with task {task!r}. Parts: {PARTS}; tasks: digit, parity.")
    if kind == "lm":
        return _text(part)
    found = _digits(part)
    return Examples(found.inputs, found.targets % 2) if task == "parity" else found


@cache
def _digits(part: str) -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the zoo's digits", "scikit-learn", "networks") from error
    loaded = load_digits()
    order = np.random.default_rng(20240101).permutation(len(loaded.target))
    rows = {"test": order[:397], "a": order[397:1097], "b": order[1097:]}[part]
    images = (loaded.data[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return Examples(images, loaded.target[rows].astype(np.int64))


@cache
def _text(part: str) -> Examples:
    """Whole help topics go to a part by the hash of their name, so that no sentence is in two parts.

    Returns:
        Windows of `LENGTH` bytes and the byte after each.
    """
    from pydoc_data.topics import topics

    share = {"a": range(7), "b": range(7, 14), "test": range(14, 16)}[part]
    names = [n for n in sorted(topics) if hashlib.sha256(n.encode()).digest()[0] % 16 in share]
    raw = "\n\n".join(topics[n] for n in names).encode("ascii", "replace")
    codes = np.frombuffer(raw, np.uint8).astype(np.int64)
    count = min((len(codes) - 1) // LENGTH, 8000)
    inputs = codes[: count * LENGTH].reshape(count, LENGTH)
    return Examples(inputs, codes[1 : count * LENGTH + 1].reshape(count, LENGTH))
