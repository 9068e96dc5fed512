"""The folder of a result that is written block by block, and can be continued after a crash."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.tensor import Tensor
from stemma.errors import MisuseError

STATE, INDEX = "progress.json", "model.safetensors.index.json"
"""What is done so far; which file holds which tensor."""


@dataclass(frozen=True, eq=False)
class StreamedFolder:
    """A result while it is written: it lies beside its final place until it is complete.

    Attributes:
        folder: Its final place.
        identity: What it is made of and how; progress of anything else is refused.
        shards: Number of files of weights.
    """

    folder: Path
    identity: Mapping[str, Any]
    shards: int

    @property
    def partial(self) -> Path:
        """Where it lies until it is complete."""
        return self.folder.with_name(f".{self.folder.name}.streamed")

    @property
    def scratch(self) -> Path:
        """What is needed to go on, and is not part of the result."""
        return self.partial / "scratch"

    def begin(self) -> dict[str, Any]:
        """What is done so far, empty at the start; `MisuseError` if it belongs to another run or another one runs."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._lock()
        file = self.scratch / STATE
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text("utf-8"))
            known = {k: found["identity"].get(k) for k in self.identity}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise MisuseError(f"{file} is not the progress of a run: delete {self.partial} to start again") from error
        other = sorted(k for k, v in self.identity.items() if known[k] != v)
        if other:
            raise MisuseError(f"{self.partial} holds an unfinished run with another {' and another '.join(other)}: "
                              "repeat that command to finish it, or delete the folder to start again")  # fmt: skip
        return found["done"]

    def release(self) -> None:
        """Let another run of this process or another one go on."""
        file = _LOCKS.pop(self.partial, None)
        if file is not None:
            file.close()

    def keep(self, done: Mapping[str, Any]) -> None:
        """Keep what is done so far; after a crash the last one that was kept is found."""
        file = self.scratch / STATE
        new = file.with_suffix(".new")
        with new.open("w", encoding="utf-8") as f:
            json.dump({"identity": dict(self.identity), "done": dict(done)}, f)
            f.flush()
            os.fsync(f.fileno())
        new.replace(file)

    def write(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Write one file of weights."""
        path = self.partial / self.file(number)
        safetensors.write(path, sorted(tensors, key=lambda t: t.name), {"format": "pt"})
        with path.open("rb+") as f:
            os.fsync(f.fileno())

    def file(self, number: int) -> str:
        """The name of a file of weights."""
        return f"model-{number + 1:05d}-of-{self.shards:05d}.safetensors"

    def finish_index(self) -> dict[str, Tensor]:
        """Write which file holds which tensor; returns the tensors."""
        for left in self.partial.glob(".*.partial"):
            left.unlink()
        found = [(self.file(i), safetensors.read(self.partial / self.file(i))[0]) for i in range(self.shards)]
        names = {t.name: file for file, tensors in found for t in tensors}
        total = sum(t.nbytes for _, tensors in found for t in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": names}
        (self.partial / INDEX).write_text(json.dumps(content, indent=2) + "\n")
        return {t.name: t for _, tensors in found for t in tensors}

    def complete(self) -> None:
        """Put the folder into its final place; an older result there is replaced."""
        aside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.before")
        shutil.rmtree(self.scratch)
        if self.folder.exists():
            self.folder.rename(aside)
        self.partial.rename(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def _lock(self) -> None:
        with suppress(ImportError):
            import fcntl

            file = (self.scratch / "lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise MisuseError(f"{self.partial} is being written by another process: wait until it ends") from error
            _LOCKS[self.partial] = file


_LOCKS: dict[Path, Any] = {}
"""Open files that hold a lock as long as this process runs."""
