"""Training data of zoo networks: data sets that are always available, tasks made of them, and subsets."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from stemma.errors import MissingExtraError, MisuseError
from stemma.zoo import datasets
from stemma.zoo.recipe import Recipe

PARTS = ("a", "b", "test")
"""Two disjoint halves to learn from, and a part that no network learns from."""

TASKS = ("digit", "parity", "inverted", "rotated", "shuffled:SEED")
"""Tasks on images, joined by `+`: the class, whether it is odd, the class of the negative, of the picture
turned a quarter, and the class under other labels. Language models know `digit` (the text as it is) and
`shuffled:SEED` (its letters exchanged)."""

LENGTH = 32
"""Bytes of text in one example of a language model."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets.

    Attributes:
        inputs: Images `[n, 1, 8, 8]` in [0, 1] (float32), or byte tokens `[n, length]` (int64).
        targets: Class `[n]`, next byte `[n, length]`, or a teacher's probabilities with one more axis (float32).
    """

    inputs: np.ndarray
    targets: np.ndarray


def examples(
    kind: str, part: str, task: str = "digit", data: str | None = None, folder: Path | str | None = None
) -> Examples:
    """One part of the data that networks of a kind learn from.

    Args:
        kind: `mlp`, `cnn` and `vit` learn images, `lm` learns text.
        part: One of `PARTS`.
        task: See `TASKS`.
        data: `digits` (scikit-learn's) or `text` (the manuals that ship with Python), which are always available and
            the default; or one of `stemma.zoo.datasets.IMAGES` or `TEXTS`.
        folder: Where those are; the folder that `STEMMA_DATA` names unless given.

    Returns:
        700 digits (397 in the test part), 3000 other images (2000), or windows of text. Inputs are the same array
        every time, except for text under other letters.

    Raises:
        MisuseError: If part, task or data are unknown, or a data set is missing.
    """
    language = kind == "lm"
    data = data or ("text" if language else "digits")
    if part not in PARTS:
        raise MisuseError(f"there is no part {part!r}. Parts: {PARTS}.")
    if data not in (("text", *datasets.TEXTS) if language else ("digits", *datasets.IMAGES)):
        raise MisuseError(
            f"a {kind} network cannot learn {data!r}. Images: digits, {', '.join(datasets.IMAGES)}; "
            f"for language models: text, {', '.join(datasets.TEXTS)}."
        )
    where = "" if data in ("digits", "text") else str(datasets.folder(folder))
    return _examples(data, part, task, where)


def _examples(data: str, part: str, task: str, folder: str) -> Examples:
    """Steps before the first exchange of labels are cached; the others are cheap."""
    steps = [s for s in task.split("+") if s != "digit"]
    first = next((i for i, s in enumerate(steps) if s.startswith("shuffled")), len(steps))
    return _apply_task_steps(_cached_examples(data, part, tuple(steps[:first]), folder), data, steps[first:])


@cache
def _cached_examples(data: str, part: str, steps: tuple[str, ...], folder: str) -> Examples:
    return _apply_task_steps(_load(data, part, folder), data, steps)


def _apply_task_steps(source: Examples, data: str, steps: Sequence[str]) -> Examples:
    change = _text_task if data in ("text", *datasets.TEXTS) else _image_task
    for step in steps:
        changed = change(source, step)
        if changed is None:
            raise MisuseError(
                f"{data} has no task {step!r}. Tasks of images: {', '.join(TASKS)}; of text: digit, "
                "shuffled:SEED; SEED is a whole number."
            )
        source = changed
    return source


def _seed(step: str) -> int | None:
    name, _, seed = step.partition(":")
    return int(seed) if name == "shuffled" and seed.isdecimal() else None


def _image_task(source: Examples, step: str) -> Examples | None:
    seed = _seed(step)
    if seed is not None:
        labels = np.random.default_rng([seed, 11]).permutation(10)
        return Examples(source.inputs, labels[source.targets])
    simple: dict[str, Callable[[], Examples]] = {
        "parity": lambda: Examples(source.inputs, source.targets % 2),
        "inverted": lambda: Examples(1 - source.inputs, source.targets),
        "rotated": lambda: Examples(np.ascontiguousarray(np.rot90(source.inputs, axes=(2, 3))), source.targets),
    }
    return simple[step]() if step in simple else None


def _text_task(source: Examples, step: str) -> Examples | None:
    seed = _seed(step)
    if seed is None:
        return None
    codes, small, large = np.arange(256), ord("a") + np.arange(26), ord("A") + np.arange(26)
    order = np.random.default_rng([seed, 12]).permutation(26)
    codes[small], codes[large] = small[order], large[order]
    return Examples(codes[source.inputs], codes[source.targets])


def subset_of(source: Examples, seed: int, *, shots: int = 0, imbalance: float = 1.0, subset: float = 1.0) -> Examples:
    """The examples that one network learns from, in their order.

    Args:
        source: All examples.
        seed: Of the choice.
        shots: This many of every class, where above 0.
        imbalance: How many times more frequent the most frequent class is than the rarest, the others falling
            geometrically in between, in a random order of classes (a long tail).
        subset: A random share in (0, 1].

    Returns:
        Fewer examples.

    Raises:
        MisuseError: If nothing would be left, or classes are asked of text.
    """
    if shots < 0 or imbalance < 1 or not 0 < subset <= 1:
        raise MisuseError(
            f"shots {shots}, imbalance {imbalance} and subset {subset} are invalid: shots must be "
            "0 (all) or more, imbalance 1 (none) or more, subset above 0 and at most 1."
        )
    if (shots or imbalance > 1) and source.targets.ndim != 1:
        raise MisuseError("shots and imbalance count examples of a class, and text has none. Give subset instead.")
    rng = np.random.default_rng([seed, 10])
    rows = rng.permutation(len(source.targets))
    rows = rows[: max(1, round(subset * len(rows)))]
    if shots or imbalance > 1:
        classes = rng.permutation(np.unique(source.targets))
        members = [rows[source.targets[rows] == c] for c in classes]
        largest = shots or max(len(m) for m in members)
        falls = imbalance ** (-np.arange(len(classes)) / max(1, len(classes) - 1))
        rows = np.concatenate([m[: max(1, round(largest * f))] for m, f in zip(members, falls, strict=True)])
    rows = np.sort(rows)
    return source if len(rows) == len(source.targets) else Examples(source.inputs[rows], source.targets[rows])


def examples_for(recipe: Recipe, part: str | None = None, task: str = "digit") -> Examples:
    """Examples that a recipe's operation learns from, or another part, such as `test`, to evaluate it on."""
    p = recipe.parameters
    source = examples(recipe.kind, part or recipe.part, p.get("task", task), p.get("data"))
    if part is not None:
        return source
    shots, imbalance, subset = int(p.get("shots", 0)), float(p.get("imbalance", 1)), float(p.get("subset", 1))
    return subset_of(source, recipe.seed, shots=shots, imbalance=imbalance, subset=subset)


def _load(data: str, part: str, folder: str) -> Examples:
    if data == "digits":
        return _digits(part)
    if data == "text":
        return windows(_manuals(part))
    if data in datasets.TEXTS:
        return windows(datasets.author(data, part, folder))
    return Examples(*datasets.images(data, part, folder))


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
def _manuals(part: str) -> bytes:
    """Text of one part; whole help topics go to a part by the hash of their name, so that no sentence is in two."""
    from pydoc_data.topics import topics

    hashes = {"a": range(7), "b": range(7, 14), "test": range(14, 16)}[part]
    names = [n for n in sorted(topics) if hashlib.sha256(n.encode()).digest()[0] % 16 in hashes]
    return "\n\n".join(topics[n] for n in names).encode("ascii", "replace")


def windows(raw: bytes) -> Examples:
    """At most 8000 windows of `LENGTH` bytes of a text, and the byte after each."""
    codes = np.frombuffer(raw, np.uint8).astype(np.int64)
    count = min((len(codes) - 1) // LENGTH, 8000)
    inputs = codes[: count * LENGTH].reshape(count, LENGTH)
    return Examples(inputs, codes[1 : count * LENGTH + 1].reshape(count, LENGTH))
