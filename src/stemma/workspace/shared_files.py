"""Files that are read by other processes: whether these see what is seen here.

Paths, not bytes, travel to workers. A worker that does not see a path, or sees another file there, must not answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.errors import EngineError
from stemma.workspace.engines.run_tasks import host
from stemma.workspace.files_read import files_of


@dataclass(frozen=True, slots=True)
class FileState:
    """A file or folder as it was seen, without reading it.

    Attributes:
        path: Absolute path.
        files: Number of files; None where there is nothing to be seen.
        size: Bytes of all files.
    """

    path: str
    files: int | None
    size: int

    @classmethod
    def of(cls, path: Path | str) -> "FileState":
        """The state of a path now, with what is read beside it."""
        path = Path(path).absolute()
        try:
            sizes = [Path(f).stat().st_size for f in files_of(path)]
        except OSError:
            return cls(str(path), None, 0)
        return cls(str(path), len(sizes), sum(sizes))


@dataclass(frozen=True, slots=True)
class Unseen:
    """What a worker answers that sees something else.

    Attributes:
        host: The worker's machine.
        state: What it sees.
    """

    host: str
    state: FileState


@dataclass(frozen=True)
class WithFiles:
    """A task that is done only where its files are those that were seen here.

    Attributes:
        task: The task; it is given the value alone.
    """

    task: Callable[[Any], Any]

    def __call__(self, given: tuple[Any, tuple[FileState, ...]]) -> Any:
        """The result, or the first file that is seen otherwise."""
        value, expected = given
        for state in expected:
            if (seen := FileState.of(state.path)) != state:
                return Unseen(host(), seen)
        return self.task(value)


def require_seen(result: Any, where: str) -> str:
    """Raise if a worker sees no file, or another one, at a path that is the same here as before.

    Args:
        result: What a worker answered.
        where: The cluster.

    Returns:
        Why there is no result, where the file has changed in the meantime; empty where there is one.

    Raises:
        EngineError: If files are not shared.
    """
    if not isinstance(result, Unseen):
        return ""
    seen, here = result.state, FileState.of(result.state.path)
    if seen == here:
        return f"{seen.path} changed while it was being read. Try again"
    sees = "does not see" if seen.files is None else f"sees another file ({seen.size:,} bytes, here {here.size:,}) at"
    raise EngineError(
        f"the worker on {result.host} {sees} {seen.path}: every worker of {where} must see the same files under the "
        "same paths, for example on a shared disk"
    )
