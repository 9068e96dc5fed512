"""Opens the registry that is asked for."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from stemma.application.document import Progress

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.workspace import Workspace


def open_workspace(
    url: str | None,
    jobs: int = 1,
    progress: Progress | None = None,
    prepare: "Callable[[Model], Model] | None" = None,
    cluster: str | None = None,
) -> "Workspace":
    """The workspace of a registry (the default one if the URL is None), which is made on first use."""
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    return Workspace(Registry(url), jobs=jobs, progress=progress, prepare=prepare, cluster=cluster)
