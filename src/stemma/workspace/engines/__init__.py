"""Where stages over many models run: processes here, a Dask cluster, a Ray cluster."""

from stemma.errors import MisuseError
from stemma.workspace.engines.base import AbstractEngine
from stemma.workspace.engines.dask import DaskCluster
from stemma.workspace.engines.local import LocalProcesses
from stemma.workspace.engines.ray import RayCluster

ALL: tuple[type[AbstractEngine], ...] = (LocalProcesses, DaskCluster, RayCluster)


def engine_for(jobs: int, address: str | None) -> AbstractEngine | None:
    """The engine that is asked for.

    Args:
        jobs: As given with `--jobs`.
        address: As given with `--cluster`.

    Returns:
        The engine; None for no other process than this one.

    Raises:
        MisuseError: If both are given, or no engine has such an address.
    """
    if address is None:
        return LocalProcesses(f"processes:{jobs}") if jobs > 1 else None
    if jobs > 1:
        raise MisuseError("--jobs and --cluster both say where the work is done: give one of them")
    kind = next((kind for kind in ALL if kind.accepts(address)), None)
    if kind is None:
        forms = "; ".join(kind.form for kind in ALL)
        raise MisuseError(f"{address!r} is no address of a cluster. There are: {forms}")
    return kind(address)
