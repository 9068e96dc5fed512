"""What reading one checkpoint may cost, whatever its files claim: one budget for all of its files together.

A file of a few kilobytes can describe terabytes of numbers, millions of tensors or a table that takes hours to read.
Limits on each record do not help against many records. So everything that a reader lists is charged to one budget,
while it is read: `reading` begins it, `current` is where readers charge. No memory is reserved before it is charged.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from stemma.checkpoints.tensor import ArrayStorage, Tensor
from stemma.errors import OverBudgetError


@dataclass(frozen=True)
class Limits:
    """What all files of one checkpoint may cost together.

    Attributes:
        tensors: Tensors. A mixture of 256 experts in 100 layers has 76,800 matrices, twice that with their scales.
        files: Files of a sharded checkpoint. The largest published ones have some hundreds.
        growth: Bytes of all tensors, by bytes on disk. Deflate shrinks weights that are 99 % zeros to a fiftieth, and
            a tensor that 48 layers share is read 48 times.
        free_bytes: Bytes of all tensors that need no file behind them: hashed in less than a second.
        held_bytes: Bytes beyond those on disk of tensors that cannot be read in slices and stay in memory.
        text: Bytes of names, headers and lists. 200,000 tensors take 30 MB in a safetensors header.
        entries: Entries of tables, lists and graphs.
        json: Weight of a JSON text: 1 for a comma, 3 for a list or an object. A tensor of a safetensors header has 14.
        pickle: Weight of a pickle: 1 for an instruction, more for those that make objects. A tensor takes about 50.
        odd_keys: Keys of pickled mappings that are pairs: CPython's hash of pairs has collisions that anyone can find.
        seconds: Processor seconds of whatever no other limit catches …
        seconds_per_megabyte: … and more of them by the size of the files.
    """

    tensors: int = 200_000
    files: int = 10_000
    growth: int = 64
    free_bytes: int = 256 << 20
    held_bytes: int = 128 << 20
    text: int = 40_000_000
    entries: int = 4_000_000
    json: int = 3_000_000
    pickle: int = 12_000_000
    odd_keys: int = 4_096
    seconds: float = 4.0
    seconds_per_megabyte: float = 0.25


LIMITS = Limits()
"""The limits of every reader."""

CLOCK = 2_048
"""Entries after which the clock is read."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class Budget:
    """What reading one checkpoint has cost so far.

    Attributes:
        path: The file or folder, named in errors.
        limits: What it may cost.
        disk: Bytes of the files that were opened.
    """

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        self.path, self.limits = path, limits
        self.disk = 0
        self._files: dict[tuple[int, int], int] = {}
        self._tensors = self._bytes = self._held = self._text = self._entries = self._odd = 0
        self._checked = 0
        self._begun, self._used, self._next_look = time.monotonic(), time.thread_time(), 0.0

    def opened(self, stat: os.stat_result, size: int = 0) -> None:
        """Charge a file, or the larger one on a server that it stands for; what is opened twice counts once."""
        identity = (stat.st_dev, stat.st_ino)
        charged = self._files.get(identity, 0)
        self._files[identity] = max(stat.st_size, size, charged)
        self.disk += self._files[identity] - charged
        if len(self._files) > self.limits.files:
            self.refuse(f"it has more than {self.limits.files:,} files", "Save it in larger shards")

    def count(self, tensors: int) -> None:
        """Raise if so many tensors would be too many; nothing is charged."""
        if self._tensors + tensors > self.limits.tensors:
            self.refuse(
                f"it lists {self._tensors + tensors:,} tensors, more than the {self.limits.tensors:,} that one "
                "checkpoint may have",
                "Save fewer, larger tensors, or in several models",
            )  # fmt: skip

    def charge(self, tensors: Iterable[Tensor]) -> None:
        """Charge the tensors of one file."""
        listed = list(tensors)
        self.count(len(listed))
        self._tensors += len(listed)
        self._bytes += sum(t.nbytes for t in listed)
        self._held += sum(t.nbytes for t in listed if isinstance(t.storage, ArrayStorage))
        self.expands(0)
        if self._held > self.limits.held_bytes + 2 * self.disk:
            self.refuse(
                f"its tensors would take {self._held:,} bytes of memory from {self.disk:,} on disk",
                "Save them as safetensors",
            )

    def expands(self, more: int) -> None:
        """Raise if so many more bytes of tensors would be too many; nothing is charged."""
        if self._bytes + more > self.limits.free_bytes + self.limits.growth * self.disk:
            self.refuse(
                f"its tensors expand to {self._bytes + more:,} bytes or more from {self.disk:,} on disk: possible "
                "decompression bomb",
                "Save every tensor with its own bytes, for example as safetensors",
            )

    def text(self, size: int) -> None:
        """Charge bytes of names, headers and lists."""
        self._text += size
        if self._text > self.limits.text:
            self.refuse(
                f"its names, headers and lists have more than {self.limits.text:,} bytes",
                "Remove what is not needed from its metadata, and save it again",
            )

    def entries(self, count: int = 1) -> None:
        """Charge entries of tables, lists and graphs, and look at the clock at times."""
        self._entries += count
        if self._entries > self.limits.entries:
            self.refuse(f"its tables have more than {self.limits.entries:,} entries", "Save it as safetensors")
        if self._entries - self._checked >= CLOCK:
            self._checked = self._entries
            self.clock()

    def odd_key(self) -> None:
        """Charge a key of a pickled mapping that is a pair."""
        self._odd += 1
        if self._odd > self.limits.odd_keys:
            self.refuse(
                f"its pickle has more than {self.limits.odd_keys:,} keys that are tuples", "Save its state_dict"
            )

    def clock(self) -> None:
        """Raise if reading took more processor time than any file of this size needs."""
        allowed, now = self.limits.seconds + self.limits.seconds_per_megabyte * self.disk / 1e6, time.monotonic()
        if now - self._begun < allowed or now < self._next_look:
            return  # no thread uses more processor time than passes; asking for it is slow on some systems
        self._next_look = now + 0.2
        if time.thread_time() - self._used > allowed:
            self.refuse(
                f"listing its tensors takes more than {allowed:.0f} processor seconds, too many for its size",
                "Save it again, for example as safetensors",
            )

    def refuse(self, why: str, instead: str) -> NoReturn:
        """Raise an OverBudgetError that names the checkpoint, what is wrong and what to do."""
        raise OverBudgetError(f"{self.path}: {why}. {instead}")


def _weight(raw: bytes) -> int:
    return 3 * (raw.count(b"{") + raw.count(b"[")) + raw.count(b",")


_CURRENT: ContextVar[Budget | None] = ContextVar("budget", default=None)


def current() -> Budget:
    """The budget of the checkpoint that is being read; one of its own for a reader that is called alone."""
    return _CURRENT.get() or Budget(Path("the file"))


@contextlib.contextmanager
def reading(path: Path) -> Generator[Budget]:
    """Begin the budget of a checkpoint; inside another one, its files are charged to that one.

    Args:
        path: The file or folder, named in errors.

    Yields:
        The budget.
    """
    known = _CURRENT.get()
    if known is not None:
        yield known
        return
    budget = Budget(path)
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def parse(raw: bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None, most: int | None = None) -> Any:
    """JSON that a file holds, unless it has too many parts; its bytes are charged before they are read (`text`).

    Args:
        raw: The text in UTF-8.
        hook: As `object_pairs_hook` of `json.loads`.
        most: Weight that it may have, by default `Limits.json`.

    Returns:
        The content.

    Raises:
        OverBudgetError: If it has too many parts.
        ValueError: If it is not JSON.
        RecursionError: If it is nested too deeply.
    """
    budget = current()
    most = budget.limits.json if most is None else most
    if _weight(raw) > most and _weight(_STRINGS.sub(b"", raw)) > most:
        budget.refuse("a list in its files has too many entries", "Save it again, for example as safetensors")
    return json.loads(raw, object_pairs_hook=hook)
