"""Old names of parameters and attributes, accepted for one release with a warning that gives the new name."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stemma.errors import MisuseError

T = TypeVar("T", bound=Callable[..., Any])


def accept_old_names(**new_by_old: str) -> Callable[[T], T]:
    """Let a function, or the constructor of a class, take keyword arguments under their old names as well.

    A class also keeps its old attributes readable, and lists the names in `renamed_fields`.

    Args:
        new_by_old: The new name of every old one.

    Returns:
        A decorator; the function or class raises `MisuseError` where one value is given under both names.
    """

    def decorate(target: T) -> T:
        if not isinstance(target, type):
            return _translated(target, new_by_old)
        kind: Any = target
        kind.__init__ = _translated(kind.__init__, new_by_old)
        kind.renamed_fields = dict(new_by_old)
        for old, new in new_by_old.items():
            setattr(kind, old, renamed_attribute(old, new))
        return target

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads an attribute under its old name."""

    def read(owner: Any) -> Any:
        warn_renamed(old, new, 3)
        return getattr(owner, new)

    return property(read, doc=f"Old name of `{new}`.")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name is deprecated; `stacklevel` is that of the code that used it."""
    warnings.warn(f"'{old}' is deprecated and will be removed in the next release: use '{new}'", DeprecationWarning,
                  stacklevel)  # fmt: skip


def current_names(kind: type, given: Mapping[str, Any], *, warn: bool = False) -> dict[str, Any]:
    """Parameters under the present names of a class's fields, where a record or a user has old ones."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        new = getattr(kind, "renamed_fields", {}).get(name, name)
        if new in out or (new != name and new in given):
            raise MisuseError(f"'{name}' is the old name of '{new}', and both were given: give '{new}' only")
        if new != name and warn:
            warn_renamed(name, new)
        out[new] = value
    return out


def _translated(function: Any, new_by_old: Mapping[str, str]) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for old in new_by_old.keys() & kwargs.keys():
            new = new_by_old[old]
            if new in kwargs:
                raise MisuseError(f"'{old}' is the old name of '{new}', and both were given: give '{new}' only")
            warn_renamed(old, new)
            kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return wrapper
