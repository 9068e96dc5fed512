"""Processes on this machine."""

import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import Any, ClassVar

from stemma.errors import MisuseError
from stemma.workspace.engines.base import AbstractEngine, AbstractPool

MOST = 1024
"""Most processes on one machine; more is a slip of the keyboard."""


class _Processes(ProcessPoolExecutor):
    """Processes that do not see Ctrl-C, which would make each print a traceback: their parent ends them."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Start a task, and a process where one is missing."""
        if not hasattr(signal, "pthread_sigmask"):
            return super().submit(fn, *args, **kwargs)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ProcessPool(AbstractPool):
    """A pool of processes, which is made anew when one of them dies."""

    where = "this machine"

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self.executor = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return _Processes(self._processes, mp_context=get_context("spawn"), initializer=_end_with_parent)

    @property
    def width(self) -> int:
        """Number of processes."""
        return self._processes

    def is_worker_lost(self, error: BaseException) -> bool:
        """Whether a process of the pool died, which breaks the whole pool."""
        return isinstance(error, BrokenProcessPool)

    def renew(self) -> None:
        """Start new processes in place of a broken pool."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = self._start()


@dataclass(frozen=True)
class LocalProcesses(AbstractEngine):
    """Processes on this machine: `local` for one per core, `processes:N` for N."""

    name: ClassVar[str] = "processes"
    form: ClassVar[str] = "local or processes:N"
    distant: ClassVar[bool] = False

    @classmethod
    def accepts(cls, address: str) -> bool:
        """Whether an address is `local`, `processes` or `processes:N`."""
        return address in ("local", "processes") or address.startswith("processes:")

    @property
    def processes(self) -> int:
        """Number of processes.

        Raises:
            MisuseError: If it is no number of processes.
        """
        given = self.address.partition(":")[2]
        if not given and ":" not in self.address:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= MOST:
            raise MisuseError(f"{self.address!r} is no number of processes: give processes:N, with N from 1 to {MOST}")
        return int(given)

    @contextmanager
    def opened(self) -> Generator[ProcessPool]:
        """The processes."""
        pool = ProcessPool(self.processes)
        try:
            yield pool
        except KeyboardInterrupt:  # what a process reads may take minutes more
            for process in active_children():
                process.terminate()
            raise
        finally:
            pool.executor.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Exit when the parent process is killed; otherwise a pool worker waits for ever."""
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
