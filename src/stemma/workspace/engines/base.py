"""The abstract engine: where tasks run, and what a `concurrent.futures.Executor` does not tell of them."""

import abc
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

Task = Callable[[Any], Any]
"""A pure function of one small value that can be pickled; so is what it returns."""


class AbstractPool(abc.ABC):
    """Workers that are there now.

    An executor takes tasks; the rest of what a run needs to know is here: how many tasks make sense at once, whether
    an error means that a worker died, and whether there are workers at all.
    """

    executor: Executor
    where: str = "here"

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Number of tasks that run at once."""

    @abc.abstractmethod
    def is_worker_lost(self, error: BaseException) -> bool:
        """Whether an error means that the process that ran a task died."""

    def submit(self, task: Task, value: Any) -> Future:
        """Run a task on one value.

        Args:
            task: The task.
            value: What it is given.

        Returns:
            The future, which may hold an error already.

        Raises:
            Exception: What the engine raises, unless it says that a worker died.
        """
        try:
            return self.executor.submit(task, value)
        except Exception as error:
            if not self.is_worker_lost(error):
                raise
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def check(self) -> None:
        """Raise `EngineError` if nothing can come any more; called while nothing comes."""
        return

    def renew(self) -> None:
        """Make the pool usable again after a worker died, where it does not heal itself."""
        return

    def explain(self, error: BaseException) -> str:
        """Why the cluster, not a task, failed with this error; empty where it is the task's own."""
        return ""


@dataclass(frozen=True)
class AbstractEngine(abc.ABC):
    """A place where tasks run, by its address.

    Attributes:
        address: As it is typed after `--cluster`.
    """

    address: str

    name: ClassVar[str]
    form: ClassVar[str]
    distant: ClassVar[bool] = True
    """Whether workers may be on other machines, which see other files."""
    batched: ClassVar[int] = 1
    """Small tasks that travel together: what a task costs to send is worth that many."""

    @classmethod
    @abc.abstractmethod
    def accepts(cls, address: str) -> bool:
        """Whether an address is one of this engine."""

    @abc.abstractmethod
    def opened(self) -> AbstractContextManager[AbstractPool]:
        """Workers, for as long as the context lasts; what is not done at its end is cancelled.

        Raises:
            EngineError: If there are none.
            MissingExtraError: If the package that speaks to them is not installed.
        """
