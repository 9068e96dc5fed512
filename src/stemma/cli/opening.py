"""Opens the registry that the options name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.workspace import Workspace


def open_workspace(
    url: str | None,
    jobs: int = 1,
    progress: Callable[..., None] | None = None,
    prepare: "Callable[[Model], Model] | None" = None,
) -> "Workspace":
    """The workspace of a registry.

    Args:
        url: As given with `--registry`; the default registry if None.
        jobs: Processes that read models at once.
        progress: Called with what is being done, how much is done and of how much.
        prepare: Gives every model that is opened its network, where the files alone do not say how it is run.

    Returns:
        A workspace; the registry is made on first use.
    """
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    return Workspace(Registry(url), jobs=jobs, progress=progress, prepare=prepare)
