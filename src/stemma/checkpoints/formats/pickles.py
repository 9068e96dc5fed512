"""A reader of pickles that runs nothing: every name a pickle asks for is a stand-in, or refused.

Classes that are not known here (a network's own, a framework's) become `Thing`s: inert records that keep the state the
pickle gives them, so that tensors inside can be listed. Names that no checkpoint needs and attacks do are refused.

The interpreter is the standard library's pure Python one. The C one reserves memory by the numbers in the file (a memo
index of 2^32 takes 64 GB); here a memo is a dict. What a pickle "calls" are constructors of inert records below.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints.formats.stand_ins import ALLOWED, DTYPES, SETTABLE, STORAGES, Array, Dtype, Kind, Thing
from stemma.errors import UnreadableModelError, UnsafeFileError

MAX_DEPTH = 64
MAX_CLASSES = 10_000
"""Foreign names that one pickle may use."""
RUNS = frozenset(
    {
        "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "imp", "pty", "commands",
        "ctypes", "webbrowser", "pip", "code", "codeop", "bdb", "pdb", "timeit", "cProfile", "profile", "trace",
        "doctest", "pydoc", "builtins", "__builtin__", "pickle", "_pickle", "marshal", "urllib", "http", "requests",
        "asyncio", "multiprocessing", "tempfile", "platform", "signal", "ssl", "smtplib", "ftplib", "telnetlib",
    }
)  # fmt: skip
"""Modules that no checkpoint takes anything from, but for what `ALLOWED` lists: asking for them is an attack …"""
INSIDE = ("os.", "importlib.", "urllib.", "http.", "asyncio.", "multiprocessing.", "ctypes.", "pip.", "requests.")
"""… and likewise what lies inside these."""


class DamagedPickleError(UnreadableModelError):
    """The bytes are no pickle, or one that is cut off or inconsistent."""


class Reader(pickle._Unpickler):
    """Reads one pickle after another from a stream.

    Attributes:
        path: Named in errors.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, stream: io.BufferedIOBase | io.BytesIO, path: Path, storage: Callable[[Any], Any]) -> None:
        pickle._Unpickler.__init__(self, stream, encoding="latin1")
        self.path = path
        self._storage = storage
        self.foreign: dict[tuple[str, str], type[Thing]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Args:
            module: As in the pickle.
            name: As in the pickle.

        Returns:
            Something inert.

        Raises:
            UnsafeFileError: If it is a name that attacks use and checkpoints do not, or there are too many names.
        """
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if name in STORAGES and module in ("torch", "torch.cuda", "torch.storage"):
            return Kind(STORAGES[name])
        if name in DTYPES and module == "torch":
            return Kind(DTYPES[name])
        shown = f"{module}.{name}"[:120]
        if module in RUNS or module.startswith(INSIDE) or not module or len(self.foreign) >= MAX_CLASSES:
            raise UnsafeFileError(
                f"{self.path} asks for {shown!r} when it is loaded, which could run code; nothing was run. "
                "Save the network's state_dict alone, or as safetensors"
            )
        if (module, name) not in self.foreign:
            self.foreign[module, name] = type("Foreign", (Thing,), {"label": shown})
        return self.foreign[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage by its identifier.

        Args:
            pid: As in the pickle.

        Returns:
            What the file's reader makes of it.
        """
        return self._storage(pid)

    def load_build(self) -> None:
        """Give an object its state: only to the stand-ins that have one.

        Raises:
            TypeError: If it has none.
        """
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, SETTABLE):
            raise TypeError("a state for something that has none")
        if isinstance(target, (Array, Thing)):
            target.state = state
        elif (
            isinstance(target, Dtype)
            and isinstance(state, tuple)
            and len(state) > 1
            and state[1] in ("<", ">", "|", "=")
        ):
            target.order = state[1]

    def refuse(self) -> None:
        """For instructions that no checkpoint needs.

        Raises:
            UnsafeFileError: Always.
        """
        raise UnsafeFileError(f"{self.path} uses a pickle instruction that no checkpoint needs; it was not read")

    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8,
                  pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX):  # fmt: skip
        dispatch[_code[0]] = refuse


def read(
    stream: io.BufferedIOBase | io.BytesIO, path: Path, storage: Callable[[Any], Any], seen: set[str] | None = None
) -> Any:
    """Read one pickle.

    Args:
        stream: Where it begins; it stays behind the pickle's end.
        path: Named in errors.
        storage: Makes something of a persistent identifier.
        seen: Takes up the names of foreign classes that the pickle asked for.

    Returns:
        Builtin containers, numbers and text, and the records of `stand_ins`.

    Raises:
        DamagedPickleError: If the pickle is damaged.
        UnreadableModelError: If it asks for what could run code, or describes a storage in an impossible way.
    """
    try:
        reader = Reader(stream, path, storage)
        tree = reader.load()
        if seen is not None:
            seen.update(kind.label for kind in reader.foreign.values())
        return tree
    except UnreadableModelError:
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything, and nothing it raises is a bug of ours
        raise DamagedPickleError(f"{path} holds a damaged pickle ({type(e).__name__}). Truncated download?") from e
