"""How results show themselves in a notebook: drawn by whoever registers, because a result only holds values."""

from collections.abc import Callable
from typing import Any

_drawer: list[Callable[[], Any]] = []


def register(drawer: Callable[[], Any]) -> None:
    """Say who draws results.

    Args:
        drawer: Gives what has the functions `fragment` and `plot`; called when a result is first shown.
    """
    _drawer[:] = [drawer]


def fragment(result: Any) -> str:
    """A result as a piece of HTML for a notebook.

    Args:
        result: A trace, comparison, lineage or distance.

    Returns:
        Markup with a style of its own and without scripts.
    """
    return _drawer[0]().fragment(result)


def plot(result: Any, axes: Any) -> Any:
    """A result drawn with matplotlib.

    Args:
        result: A trace, comparison, lineage or distance.
        axes: Where it is drawn; new axes if None.

    Returns:
        The axes.
    """
    return _drawer[0]().plot(result, axes)
