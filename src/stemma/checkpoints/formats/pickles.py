"""A pickle reader that runs nothing: every name a pickle refers to becomes an inert record, or is refused.

Unknown classes (a network's own, a framework's) become `UnknownObject`s, which keep the state that the pickle sets, so
that the tensors inside can be listed. Names that attacks use and checkpoints do not need are refused.

The interpreter is the standard library's pure Python one: the C one allocates memory by numbers in the file (a memo
index of 2^32 takes 64 GB), the Python one keeps the memo in a dict.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from stemma.checkpoints.formats.pickle_records import (
    ALLOWED,
    DTYPES,
    SETTABLE,
    STORAGES,
    DtypeRecord,
    NumpyArray,
    NumpyDtype,
    UnknownObject,
)
from stemma.errors import UnreadableModelError, UnsafeFileError

MAX_DEPTH = 64
MAX_CLASSES = 10_000
"""Unknown names that one pickle may use."""
FORBIDDEN_MODULES = frozenset(
    {
        "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "imp", "pty", "commands",
        "ctypes", "webbrowser", "pip", "code", "codeop", "bdb", "pdb", "timeit", "cProfile", "profile", "trace",
        "doctest", "pydoc", "builtins", "__builtin__", "pickle", "_pickle", "marshal", "urllib", "http", "requests",
        "asyncio", "multiprocessing", "tempfile", "platform", "signal", "ssl", "smtplib", "ftplib", "telnetlib",
    }
)  # fmt: skip
"""Modules that no checkpoint needs, except for names in `ALLOWED`: using them is an attack …"""
FORBIDDEN_PREFIXES = (
    "os.",
    "importlib.",
    "urllib.",
    "http.",
    "asyncio.",
    "multiprocessing.",
    "ctypes.",
    "pip.",
    "requests.",
)
"""… and so is anything in their submodules."""


class DamagedPickleError(UnreadableModelError):
    """The bytes are not a pickle, or one that is truncated or inconsistent."""


class InertUnpickler(pickle._Unpickler):
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
        self.foreign: dict[tuple[str, str], type[UnknownObject]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The inert record for a class or function name; raises UnsafeFileError for names that could run code."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if name in STORAGES and module in ("torch", "torch.cuda", "torch.storage"):
            return DtypeRecord(STORAGES[name])
        if name in DTYPES and module == "torch":
            return DtypeRecord(DTYPES[name])
        shown = f"{module}.{name}"[:120]
        if (
            module in FORBIDDEN_MODULES
            or module.startswith(FORBIDDEN_PREFIXES)
            or not module
            or len(self.foreign) >= MAX_CLASSES
        ):
            raise UnsafeFileError(
                f"{self.path} refers to {shown!r}, which could run code when loaded; nothing was run. "
                "Save only the state_dict, or use safetensors"
            )
        if (module, name) not in self.foreign:
            self.foreign[module, name] = type("Foreign", (UnknownObject,), {"label": shown})
        return self.foreign[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """The storage with a persistent identifier."""
        return self._storage(pid)

    def load_build(self) -> None:
        """Set the state of a record; raises for objects that take none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, SETTABLE):
            raise TypeError("a state for something that has none")
        if isinstance(target, (NumpyArray, UnknownObject)):
            target.state = state
        elif (
            isinstance(target, NumpyDtype)
            and isinstance(state, tuple)
            and len(state) > 1
            and state[1] in ("<", ">", "|", "=")
        ):
            target.order = state[1]

    def refuse(self) -> None:
        """Raise for pickle instructions that no checkpoint needs."""
        raise UnsafeFileError(
            f"{self.path} uses a pickle instruction that checkpoints do not need and attacks do; it was not read"
        )

    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8,
                  pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX):  # fmt: skip
        dispatch[_code[0]] = refuse


def read(
    stream: io.BufferedIOBase | io.BytesIO,
    path: Path,
    storage: Callable[[Any], Any],
    unknown_classes: set[str] | None = None,
) -> Any:
    """Read one pickle into containers, numbers, text and inert records; `unknown_classes` collects class names."""
    try:
        reader = InertUnpickler(stream, path, storage)
        tree = reader.load()
        if unknown_classes is not None:
            unknown_classes.update(kind.label for kind in reader.foreign.values())
        return tree
    except UnreadableModelError:
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise DamagedPickleError(
            f"{path} holds a damaged pickle ({type(e).__name__}). Was the download truncated?"
        ) from e
