"""A Dask cluster, through the executor of `distributed`."""

import logging
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stemma.errors import EngineError, MissingExtraError
from stemma.workspace.engines.base import AbstractEngine, AbstractPool
from stemma.workspace.engines.reachable import require_reachable

PATIENCE = 60.0
"""Seconds without any worker after which a run ends: a cluster that restarts its workers is given that long."""

SCHEMES = ("dask", "tcp", "tls", "ucx", "ws", "wss")


class DaskPool(AbstractPool):
    """The workers of a scheduler."""

    def __init__(self, client: Any, where: str) -> None:
        self._client, self.where = client, where
        self.executor = client.get_executor(pure=False)  # or a task that is sent again would be the one that failed
        self._seen = time.monotonic()

    @property
    def width(self) -> int:
        """Threads of all workers, as of now: workers may join and leave."""
        return max(1, sum(int(w["nthreads"]) for w in self._workers().values()))

    def is_worker_lost(self, error: BaseException) -> bool:
        """Whether the scheduler gave a task up because worker after worker died with it."""
        from distributed.scheduler import KilledWorker

        return isinstance(error, KilledWorker)

    def check(self) -> None:
        """Raise if the scheduler is gone, or no worker came back in time.

        Raises:
            EngineError: If so.
        """
        if self._client.status != "running":
            raise EngineError(f"the Dask scheduler at {self.where} is gone. {AGAIN}")
        if self._workers():
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE:
            raise EngineError(f"no worker is left at {self.where}, and none came for {PATIENCE:.0f} s. {AGAIN}")

    def explain(self, error: BaseException) -> str:
        """Why the connection, not a task, failed."""
        from concurrent.futures import CancelledError

        from distributed.comm.core import CommClosedError

        if isinstance(error, (CancelledError, CommClosedError)):
            return f"the connection to the Dask scheduler at {self.where} was lost. {AGAIN}"
        return ""

    def _workers(self) -> dict[str, Any]:
        return self._client.scheduler_info(n_workers=-1).get("workers", {})


AGAIN = "What was finished is kept: the same command goes on from there"


@dataclass(frozen=True)
class DaskCluster(AbstractEngine):
    """A Dask scheduler by its address (`dask://HOST:PORT`, `tcp://HOST:PORT`, `tls://…`) or its scheduler file."""

    name: ClassVar[str] = "dask"
    form: ClassVar[str] = "dask://HOST:PORT, tcp://HOST:PORT or a scheduler file (FILE.json)"
    batched: ClassVar[int] = 8

    @classmethod
    def accepts(cls, address: str) -> bool:
        """Whether an address names a scheduler, or is a file of one."""
        return address.partition("://")[0] in SCHEMES or (address.endswith(".json") and "://" not in address)

    @contextmanager
    def opened(self) -> Generator[DaskPool]:
        """The workers.

        Yields:
            The pool.

        Raises:
            EngineError: If there is no scheduler, or it has no workers.
            MissingExtraError: If `distributed` is not installed.
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingExtraError("running on a Dask cluster", "distributed", "cluster") from error
        for name in ("distributed", "distributed.client"):  # a worker that dies is told by the run itself
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages of other versions: what matters is checked with every task
            try:
                client: Any = Client(**self._target(), timeout=10, set_as_default=False, name="stemma")
            except (OSError, TimeoutError, ValueError) as error:
                why = " ".join(str(error).split())[:200]
                raise EngineError(f"no Dask scheduler answers at {self.address} ({why})") from error
            try:
                self._wait_for_a_worker(client)
                yield DaskPool(client, self.address)
            finally:
                client.close(timeout=5)  # drops what this client asked for: tasks in flight are cancelled

    def _target(self) -> dict[str, str]:
        if "://" not in self.address:
            file = Path(self.address)
            if not file.is_file():
                raise EngineError(
                    f"there is no scheduler file {self.address}. `dask scheduler --scheduler-file` writes it"
                )
            return {"scheduler_file": str(file)}
        scheme, _, rest = self.address.partition("://")
        if scheme in ("dask", "tcp", "tls"):
            require_reachable(rest, self.address, "Dask scheduler")
        return {"address": f"tcp://{rest}" if scheme == "dask" else self.address}

    def _wait_for_a_worker(self, client: Any) -> None:
        try:
            client.wait_for_workers(1, timeout=10)
        except TimeoutError as error:
            raise EngineError(
                f"the Dask scheduler at {self.address} has no workers. Start some with: dask worker {self.address}"
            ) from error
