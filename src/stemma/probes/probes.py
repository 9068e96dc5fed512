"""The probes: inputs with optional labels and baseline."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.types import Digest

KINDS = ("image", "tokens", "audio", "tensor")


@dataclass(frozen=True)
class Modality:
    """One modality of paired probes.

    Attributes:
        name: The network's name for it.
        shape: Of one input.
        kind: `image`, `tokens`, `audio` or `tensor`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """Entries of one input."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Probes:
    """Inputs in raw input space, in a fixed order.

    Attributes:
        inputs: `[n, …]`: images float32 `[n, channels, height, width]`, token ids int64 `[n, length]`, audio
            `[n, samples]`, or any float tensors.
        kind: `image`, `tokens`, `audio` or `tensor`.
        labels: Class of each input, int64 `[n]`, where known.
        baseline: Start of the paths: one input `[…]` or one per probe `[n, …]`; None for the method's default.
        source: Origin, for display.
        labelled: Source of the labels: empty for the truth, else the model whose predictions they are.
        parts: Modalities that are concatenated in `inputs`; empty for one modality.
    """

    inputs: np.ndarray
    kind: str
    labels: np.ndarray | None = None
    baseline: np.ndarray | None = None
    source: str = "given"
    labelled: str = ""
    parts: tuple[Modality, ...] = ()

    @classmethod
    def of(
        cls, inputs: Any, labels: Any = None, baseline: Any = None, *, kind: str | None = None, source: str = "given"
    ) -> "Probes":
        """Probes from arrays or tensors.

        uint8 images `[n, h, w]` or `[n, h, w, c]` become float32 `[n, c, h, w]` in [0, 1]; float arrays pass unchanged
        (halves become float32); integers `[n, length]` are token ids. All arrays are copied and read-only, since the
        digest identifies their content.

        Args:
            inputs: One row per probe.
            labels: Class of each.
            baseline: Start of the paths: one input, or one per probe.
            kind: One of `KINDS`; guessed from dtype and axes unless given.
            source: Origin, for display.

        Returns:
            The probes.

        Raises:
            MisuseError: If there are none, a value is not finite, or arrays, kind, labels and baseline do not match.
        """
        given = _as_array(inputs, "the inputs")
        if given.ndim < 2 or 0 in given.shape:
            raise MisuseError(f"probes must be an array with one row per input, but the shape is {list(given.shape)}")
        array, guessed = _to_raw_space(given)
        _check_kind(kind, guessed, array)
        if not np.isfinite(array).all():
            raise MisuseError("the probes contain NaN or infinite values. Remove these inputs")
        start = None if baseline is None else _baseline(_as_array(baseline, "the baseline"), given, array)
        return cls(_read_only(array), kind or guessed, _labels(labels, len(array)), _read_only(start), source)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    @cached_property
    def digest(self) -> Digest:
        """Identity of inputs, order, labels and baseline, whatever their memory layout and byte order."""
        found = hashlib.sha256(repr(("probes", self.kind, self.labelled)).encode())
        for array in (self.inputs, self.labels, self.baseline):
            if array is None:
                found.update(b"none")
                continue
            plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            found.update(repr((plain.dtype.str, plain.shape)).encode())
            found.update(plain.data)
        if self.parts:
            found.update(repr([(p.name, p.shape, p.kind) for p in self.parts]).encode())
        return Digest("sha256:" + found.hexdigest())

    @cached_property
    def repeated(self) -> int:
        """How many inputs are equal to an earlier one: they add nothing, and make intervals look narrower."""
        distinct = {hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in self.inputs}
        return len(self) - len(distinct)

    def take(self, rows: "Sequence[int] | Sequence[bool] | np.ndarray | slice") -> "Probes":
        """Some of the probes, in the order given.

        Args:
            rows: Positions (negative ones count from the end), one truth value per probe, or a slice.

        Returns:
            Fewer probes.

        Raises:
            MisuseError: If a row does not exist, or there are none.
        """
        index = np.arange(len(self))[rows] if isinstance(rows, slice) else _rows(rows, len(self))
        if not len(index):
            raise MisuseError(f"none of the {len(self)} probes is selected. Select at least one")
        labels = None if self.labels is None else _read_only(self.labels[index])
        own = self.baseline is not None and self.baseline.ndim == self.inputs.ndim
        baseline = _read_only(self.baseline[index]) if own and self.baseline is not None else self.baseline
        return replace(self, inputs=_read_only(self.inputs[index]), labels=labels, baseline=baseline)

    def with_labels(self, labels: Any, labelled: str = "") -> "Probes":
        """The same inputs with other labels.

        Args:
            labels: Class of each input, None for none.
            labelled: The model whose predictions these are; empty for the truth.

        Returns:
            Probes with another digest.
        """
        found = _labels(labels, len(self))
        return replace(self, labels=found, labelled="" if found is None else labelled)


def _as_array(values: Any, what: str) -> np.ndarray:
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu().resolve_conj().resolve_neg()
            if values.is_floating_point() and values.element_size() < 4:  # NumPy has no bfloat16
                values = values.float()
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as e:
        why = " ".join(str(e).split())[:120]
        raise MisuseError(f"{what} are not an array of numbers ({why}). Use one array or dense tensor") from e
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise MisuseError(f"{what} have masked entries. Fill them, or remove these inputs")
    if array.dtype.kind not in "iuf":
        raise MisuseError(f"{what} must be numbers, but the array has dtype {array.dtype}. Use integers or floats")
    return array


def _read_only(array: Any) -> Any:
    # a read-only copy, since the digest identifies its content
    if array is None:
        return None
    own = np.array(array, array.dtype.newbyteorder("="), order="C")
    own.flags.writeable = False
    return own


def _to_raw_space(array: np.ndarray) -> tuple[np.ndarray, str]:
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        if array.ndim == 4 and array.shape[1] <= 4 < array.shape[3]:
            raise MisuseError(
                f"uint8 images must be [n, height, width, channels], not {list(array.shape)}. Move the channels to "
                "the end, or use floats [n, channels, height, width]"
            )
        channels_first = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(channels_first, np.float32) / np.float32(255), "image"
    if array.dtype.kind in "iu":
        if array.ndim != 2:
            raise MisuseError(
                f"integer probes are token ids [n, length], but the shape is {list(array.shape)}. Use uint8 [n, "
                "height, width, channels] for images, floats for anything else"
            )
        if int(array.min()) < 0 or int(array.max()) >= 2**63:
            worst = int(array.min()) if int(array.min()) < 0 else int(array.max())
            raise MisuseError(f"token ids must be non-negative integers, but one is {worst}")
        return array.astype(np.int64), "tokens"
    with np.errstate(over="ignore"):  # values that overflow become infinite and are refused
        floats = array.astype(np.float64 if array.dtype.itemsize >= 8 else np.float32)
    return floats, "image" if array.ndim == 4 else "tensor"


def _check_kind(kind: str | None, guessed: str, array: np.ndarray) -> None:
    if kind is None:
        return
    if kind not in KINDS:
        raise MisuseError(f"unknown kind of probes {kind!r}. Kinds: {', '.join(KINDS)}")
    axes = {"image": 4, "audio": 2}.get(kind, array.ndim)
    if (kind == "tokens") != (guessed == "tokens") or array.ndim != axes:
        raise MisuseError(
            f"probes of kind {kind!r} are not {array.dtype} {list(array.shape)}: images are [n, channels, height, "
            "width], audio is [n, samples], tokens are integers [n, length]"
        )


def _baseline(start: np.ndarray, given: np.ndarray, array: np.ndarray) -> np.ndarray:
    if given.dtype == np.uint8 and start.dtype == np.uint8 and given.ndim > 2 and start.ndim in (2, 3, 4):
        start = _to_raw_space(start if start.ndim == given.ndim else start[None])[0]
        start = start[0] if len(start) == 1 else start
    elif start.dtype.kind != "f" and array.dtype.kind == "f":
        raise MisuseError(
            f"the baseline has dtype {start.dtype}, but the inputs are {array.dtype} in raw units. Use floats"
        )
    elif array.dtype.kind == "i" and (start.dtype.kind == "f" or (start.size and int(start.min()) < 0)):
        raise MisuseError("the baseline of token probes must be token ids (non-negative integers)")
    with np.errstate(over="ignore"):
        start = start.astype(array.dtype)
    if not np.isfinite(start).all():
        raise MisuseError("the baseline contains NaN or infinite values. Use finite values")
    if start.shape not in (array.shape, array.shape[1:]):
        raise MisuseError(
            f"the baseline has the shape {list(start.shape)}, but one input has {list(array.shape[1:])}. Use one "
            "input, or one per probe"
        )
    return start


def _labels(labels: Any, count: int) -> np.ndarray | None:
    if labels is None:
        return None
    found = _as_array(labels, "labels")
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise MisuseError(f"labels must be one integer per probe ({count}), not {found.dtype} {list(found.shape)}")
    if int(found.min()) < 0 or int(found.max()) >= 2**63:
        raise MisuseError(f"labels must be non-negative classes, but they range from {found.min()} to {found.max()}")
    return _read_only(found.astype(np.int64))


def _rows(rows: Any, count: int) -> np.ndarray:
    index = np.asarray(rows)
    if index.dtype == bool and index.shape == (count,):
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise MisuseError(
            f"probes are selected by a list of positions or {count} booleans, not by {index.dtype} {list(index.shape)}"
        )
    if index.size and not (-count <= int(index.min()) and int(index.max()) < count):
        raise MisuseError(
            f"there are {count} probes (0 to {count - 1}), but rows {index.min()} to {index.max()} were requested"
        )
    return index.astype(np.int64)
