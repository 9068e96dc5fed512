"""Runs one pure function over many values on an engine: in order, bounded in flight, each value once.

Only the caller writes results. A worker that dies costs time, not results; a value that kills its worker fails alone.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import stemma
from stemma.errors import EngineError
from stemma.workspace.engines.base import AbstractEngine, AbstractPool, Task

AHEAD = 2
"""Tasks in flight per task that runs: enough that no worker waits, few enough that little is lost."""

SMALL = 8 << 20
"""Bytes that travel together at most: what a worker reads in some hundredths of a second."""

PULSE = 2.0
"""Seconds without a result after which it is asked whether there are still workers."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What stands for the result of a value whose worker died each time.

    Attributes:
        why: What happened, as the end of a sentence.
    """

    why: str = "the process that worked on it was killed, perhaps for lack of memory"


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """What a worker answers that would compute something else.

    Attributes:
        host: The worker's machine.
        version: Its version of Stemma.
    """

    host: str
    version: str


def run(
    engine: AbstractEngine, task: Task, values: Iterable[Any], size: Callable[[Any], int] | None = None
) -> Iterator[Any]:
    """The results of a task for many values, in order.

    Args:
        engine: Where it runs.
        task: A pure function of a module that workers can import.
        values: What it is called with, one after the other.
        size: Bytes that a value stands for; small ones then travel together. Each travels alone without.

    Yields:
        One result per value, or `Lost`.

    Raises:
        EngineError: If the workers cannot do the work at all.
    """
    with engine.opened() as pool:
        yield from _Run(pool, task).over(_batches(values, engine.batched, size))


@contextmanager
def spread_over(engine: AbstractEngine) -> Generator[Callable[[Task, Iterable[Any]], Iterator[Any]]]:
    """A `map` that runs on an engine, which is opened once for many calls.

    Args:
        engine: Where tasks run.

    Yields:
        The map. A value that kills its worker is an `EngineError`.
    """
    with engine.opened() as pool:

        def spread(task: Task, values: Iterable[Any]) -> Iterator[Any]:
            for result in _Run(pool, task).over(_batches(values, 1, None)):
                if isinstance(result, Lost):
                    raise EngineError(f"a part of the work cannot be done at {engine.address}: {result.why}")
                yield result

        yield spread


@dataclass
class _Run:
    """One run: tasks in flight, in the order of their values."""

    pool: AbstractPool
    task: Task
    flying: deque[tuple[list[Any], Future]] = field(default_factory=deque)

    def over(self, batches: Iterator[list[Any]]) -> Iterator[Any]:
        try:
            while True:
                self.fill(batches)
                if not self.flying:
                    return
                batch, future = self.flying.popleft()
                results = self.result(future)
                yield from self.one_by_one(batch) if isinstance(results, Lost) else results
        finally:
            for _, future in self.flying:
                future.cancel()

    def fill(self, batches: Iterator[list[Any]]) -> None:
        """Send batches until enough are in flight."""
        for batch in islice(batches, max(0, AHEAD * self.pool.width - len(self.flying))):
            self.flying.append((batch, self.send(batch)))

    def send(self, batch: list[Any]) -> Future:
        return self.pool.submit(partial(call, self.task, stemma.__version__), batch)

    def one_by_one(self, batch: list[Any]) -> Iterator[Any]:
        """What was lost is run again value by value, with nothing else in flight that could be blamed or harmed."""
        flying, self.flying = self.flying, deque()
        finished = [(other, self.result(future)) for other, future in flying]
        for value in batch:
            yield self.alone(value)
        for other, results in finished:  # a pool that breaks takes all its tasks along
            yield from (self.alone(v) for v in other) if isinstance(results, Lost) else results

    def alone(self, value: Any) -> Any:
        self.pool.renew()
        results = self.result(self.send([value]))
        if isinstance(results, Lost):
            self.pool.renew()
            return results
        return results[0]

    def result(self, future: Future) -> list[Any] | Lost:
        """The results of one batch, however long it takes, as long as there are workers."""
        while not wait([future], PULSE, FIRST_COMPLETED).done:
            self.pool.check()
        try:
            found = future.result()
        except BaseException as error:
            if isinstance(error, Exception) and self.pool.is_worker_lost(error):
                return Lost()
            if why := self.pool.explain(error) or _missing_stemma(error, self.pool.where):
                raise EngineError(why) from error
            raise
        if isinstance(found, OtherVersion):
            raise EngineError(
                f"the worker on {found.host} has Stemma {found.version}, and here is {stemma.__version__}: install the "
                f"same version on every worker of {self.pool.where}"
            )
        return found


def _batches(values: Iterable[Any], most: int, size: Callable[[Any], int] | None) -> Iterator[list[Any]]:
    """Values in groups: as many as the engine likes, as long as they are small together."""
    batch, total = [], 0
    for value in values:
        weighs = SMALL if size is None else size(value)
        if batch and (total + weighs > SMALL or len(batch) >= most):
            yield batch
            batch, total = [], 0
        batch.append(value)
        total += weighs
    if batch:
        yield batch


def call(task: Task, version: str, batch: list[Any]) -> list[Any] | OtherVersion:
    """Run a task on a worker, for a few values.

    Args:
        task: The task.
        version: The version of Stemma of whoever asks.
        batch: The values.

    Returns:
        A result per value; or that this worker has another version.
    """
    if stemma.__version__ != version:
        return OtherVersion(host(), stemma.__version__)
    _use_one_thread()
    return [task(value) for value in batch]


def host() -> str:
    """The name of this machine and the process, for messages."""
    import socket

    return f"{socket.gethostname()} (process {os.getpid()})"


def _use_one_thread() -> None:
    """One thread per task: workers are as many as there are cores, and would only get into each other's way."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _missing_stemma(error: BaseException, where: str) -> str:
    if "No module named 'stemma" in str(error):
        return f"a worker of {where} has no Stemma: install stemma-ml {stemma.__version__} on every worker"
    return ""
