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

from stemma.checkpoints import budget
from stemma.checkpoints.formats.pickle_records import (
    ALLOWED,
    DTYPES,
    SETTABLE,
    STORAGES,
    DtypeRecord,
    NumpyArray,
    NumpyDtype,
    UnknownObject,
    check_keys,
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


WEIGHTS = {
    **dict.fromkeys((pickle.NEWOBJ[0], pickle.REDUCE[0], pickle.BINPERSID[0], pickle.PERSID[0], pickle.BUILD[0]), 5),
    **dict.fromkeys((pickle.EMPTY_DICT[0], pickle.EMPTY_LIST[0], pickle.EMPTY_SET[0], pickle.FROZENSET[0]), 2),
}
"""What instructions that make objects count against `Limits.pickle`; others count 1."""
MAX_PLACE = 2**32
"""Places of the memo that a pickle may name."""


class _Metered(dict):
    """The functions of the instructions; each look-up charges the instruction."""

    def __init__(self, functions: Any) -> None:
        super().__init__(functions)
        self.costs = [WEIGHTS.get(code, 1) for code in range(256)]
        self.budget = budget.current()
        self.left = self.budget.limits.pickle
        self.next = self.left

    def __getitem__(self, code: int) -> Any:
        self.left -= self.costs[code]
        if self.left < self.next:
            self.next -= budget.CLOCK
            self.budget.clock()
            if self.left < 0:
                self.budget.refuse("its pickle has too many instructions for a checkpoint", "Save it as safetensors")
        return dict.__getitem__(self, code)


class InertUnpickler(pickle._Unpickler):
    """Reads one pickle after another from a stream.

    Attributes:
        path: Named in errors.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(self, stream: io.BufferedIOBase | io.BytesIO, path: Path, storage: Callable[[Any], Any]) -> None:
        pickle._Unpickler.__init__(self, stream, encoding="latin1")
        self.path = path
        self.dispatch = _Metered(InertUnpickler.dispatch)  # ty: ignore[invalid-attribute-access]
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

    def load_put(self) -> None:
        """Keep an object at a place that is written in digits."""
        place = int(self.readline()[:-1])
        if not 0 <= place < MAX_PLACE:
            raise ValueError("an impossible place of the memo")
        self.memo[place] = self.stack[-1]

    def load_setitem(self) -> None:
        """Set an entry of a mapping."""
        value, key = self.stack.pop(), self.stack.pop()
        check_keys([key])
        self.stack[-1][key] = value

    def load_setitems(self) -> None:
        """Set entries of a mapping."""
        items = self.pop_mark()
        check_keys(items[::2])
        target = self.stack[-1]
        for i in range(0, len(items), 2):
            target[items[i]] = items[i + 1]

    def load_dict(self) -> None:
        """Make a mapping of the entries on the stack."""
        items = self.pop_mark()
        check_keys(items[::2])
        self.append({items[i]: items[i + 1] for i in range(0, len(items), 2)})

    def load_additems(self) -> None:
        """Add to a set."""
        items = self.pop_mark()
        check_keys(items)
        target = self.stack[-1]
        for item in items:
            target.add(item)

    def load_frozenset(self) -> None:
        """Make a set of the objects on the stack."""
        items = self.pop_mark()
        check_keys(items)
        self.append(frozenset(items))

    def refuse(self) -> None:
        """Raise for pickle instructions that no checkpoint needs."""
        raise UnsafeFileError(
            f"{self.path} uses a pickle instruction that checkpoints do not need and attacks do; it was not read"
        )

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.PUT[0]] = load_put
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch[pickle.DICT[0]], dispatch[pickle.ADDITEMS[0]] = load_dict, load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
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
