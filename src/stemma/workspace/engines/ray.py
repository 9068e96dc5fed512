"""A Ray cluster, through a small executor over its tasks."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from stemma.errors import EngineError, MissingExtraError
from stemma.workspace.engines.base import AbstractEngine, AbstractPool
from stemma.workspace.engines.dask import AGAIN, PATIENCE
from stemma.workspace.engines.reachable import require_reachable

RETRIES = 1
"""How often Ray runs a task again whose worker died."""


class RayExecutor(Executor):
    """Runs tasks on Ray; each on one core, again elsewhere where its worker dies."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._run = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        self._running: dict[Future, Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run a function on a worker; its future is Ray's own."""
        reference = self._run.remote(fn, args, kwargs)
        future = reference.future()
        self._running[future] = reference
        future.add_done_callback(lambda done: self._running.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Forget the tasks; with `cancel_futures`, end those that run."""
        for reference in list(self._running.values()) if cancel_futures else ():
            with contextlib.suppress(Exception):  # it may have ended by itself
                self._ray.cancel(reference, force=True)
        if wait and not cancel_futures:
            self._ray.wait(list(self._running.values()), num_returns=len(self._running))


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


class RayPool(AbstractPool):
    """The nodes of a Ray cluster."""

    def __init__(self, ray: Any, where: str) -> None:
        self._ray, self.where = ray, where
        self.executor = RayExecutor(ray)
        self._seen = time.monotonic()

    @property
    def width(self) -> int:
        """Cores of all nodes, as of now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def is_worker_lost(self, error: BaseException) -> bool:
        """Whether a task was given up because worker after worker died with it, or its node did."""
        from ray import exceptions

        lost = (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError,
                exceptions.LocalRayletDiedError, exceptions.ObjectLostError)  # fmt: skip
        return isinstance(error, lost)

    def check(self) -> None:
        """Raise if no node with a core is left.

        Raises:
            EngineError: If so.
        """
        if self._ray.cluster_resources().get("CPU", 0) >= 1:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > PATIENCE:
            raise EngineError(f"no node is left at {self.where}, and none came for {PATIENCE:.0f} s. {AGAIN}")

    def explain(self, error: BaseException) -> str:
        """Why the connection, not a task, failed."""
        if isinstance(error, ConnectionError):
            return f"the connection to Ray at {self.where} was lost. {AGAIN}"
        return ""


@dataclass(frozen=True)
class RayCluster(AbstractEngine):
    """A Ray cluster: `ray:auto` for the one of this machine, `ray://HOST:PORT` through its client server."""

    name: ClassVar[str] = "ray"
    form: ClassVar[str] = "ray:auto or ray://HOST:PORT"
    batched: ClassVar[int] = 8

    @classmethod
    def accepts(cls, address: str) -> bool:
        """Whether an address is one of Ray's."""
        return address.startswith("ray:")

    @contextmanager
    def opened(self) -> Generator[RayPool]:
        """The nodes; a connection that was there before stays.

        Yields:
            The pool.

        Raises:
            EngineError: If there is no cluster.
            MissingExtraError: If `ray` is not installed.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("running on a Ray cluster", "ray", "ray") from error
        from ray._private import worker

        # What Ray says of a worker that died goes to stdout, whatever is set; the run tells it itself.
        vars(worker)["print_to_stdstream"] = lambda *_args, **_kwargs: None
        connected = ray.is_initialized()
        if not connected:
            self._connect(ray)
        pool = RayPool(ray, self.address)
        try:
            yield pool
        finally:
            pool.executor.shutdown(wait=False, cancel_futures=True)
            if not connected:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        address = self.address if self.address.startswith("ray://") else self.address.removeprefix("ray:")
        if address != "auto":
            require_reachable(address.removeprefix("ray://"), self.address, "Ray cluster")
        quiet = {} if address.startswith("ray://") else {"log_to_driver": False, "logging_level": logging.CRITICAL}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=address, configure_logging=False, **quiet)
        except Exception as error:  # each way of not being there raises another kind
            why = " ".join(str(error).split())[:200]
            raise EngineError(f"no Ray cluster answers at {self.address} ({why})") from error
