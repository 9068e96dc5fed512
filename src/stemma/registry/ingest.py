"""Read and fingerprint checkpoints for the registry, optionally in several processes."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

from stemma.checkpoints.load import Checkpoint
from stemma.errors import StemmaError, UnreadableModelError
from stemma.fingerprints.weight_sketch import WeightSketch
from stemma.networks.load import open_models
from stemma.registry.model_records import describe, write_copy
from stemma.registry.records import ModelRecord, TensorRecord
from stemma.types import Fingerprint


@dataclass(frozen=True, slots=True)
class IngestedModel:
    """A model read by a worker, as plain values for another process.

    Attributes:
        record: The model.
        tensors: Its tensors.
        fingerprints: Its fingerprints.
        notes: What the reader omitted or changed.

    """

    record: ModelRecord
    tensors: tuple[TensorRecord, ...]
    fingerprints: tuple[Fingerprint, ...]
    notes: tuple[str, ...] = ()


def fingerprinters() -> tuple[WeightSketch, ...]:
    """The methods that fingerprint a model when it is added (from weights only); the first is used for search."""
    return (WeightSketch(),)


def ingest(checkpoint: Checkpoint, license: str | None) -> tuple[IngestedModel, ...] | str:
    """Read and fingerprint the models of one checkpoint, in a worker; returns them, or an error message."""
    try:
        found = []
        for model in open_models(checkpoint.path, checkpoint.name):
            record, tensors = describe(model, license)
            fingerprints = tuple(method(model) for method in fingerprinters())
            found.append(IngestedModel(record, tensors, fingerprints, model.notes))
    except StemmaError as e:
        return str(e) if str(checkpoint.path) in str(e) else f"{checkpoint.path}: {e}"
    except OSError as e:
        return f"{checkpoint.path} cannot be read: {e.strerror or e}"
    except Exception as e:  # a damaged or hostile file may raise anything, and must not stop the others
        return f"{checkpoint.path} cannot be read ({type(e).__name__}: {e}). If the file is valid, please report this"
    return tuple(found)


def ingest_all(
    checkpoints: Sequence[Checkpoint], license: str | None, jobs: int
) -> Iterator[tuple[IngestedModel, ...] | str]:
    """Read many checkpoints in order, in several processes; a checkpoint that crashes its process is an error."""
    if jobs == 1 or len(checkpoints) < 2:
        yield from (ingest(c, license) for c in checkpoints)
        return
    running, at = deque[tuple[Checkpoint, Future]](), 0
    with _pool(jobs) as pool:
        try:
            while running or at < len(checkpoints):
                while at < len(checkpoints) and len(running) < 2 * jobs:
                    with _interrupts_kept_from_workers():
                        running.append((checkpoints[at], pool.submit(ingest, checkpoints[at], license)))
                    at += 1
                yield running[0][1].result()
                running.popleft()
            return
        except BrokenProcessPool:
            remaining = [c for c, _ in running] + list(checkpoints[at:])
        except KeyboardInterrupt:  # what a worker reads may take minutes more
            for worker in active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    yield from (_ingest_in_own_process(c, license) for c in remaining)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


@contextlib.contextmanager
def _interrupts_kept_from_workers() -> Generator[None]:
    """Processes that start here do not see Ctrl-C, which would make each print a traceback: the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Exit when the parent process is killed; otherwise a pool worker waits for ever."""
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _ingest_in_own_process(checkpoint: Checkpoint, license: str | None) -> tuple[IngestedModel, ...] | str:
    """Read a checkpoint in its own process, after a shared one crashed."""
    with _pool(1) as pool:
        try:
            return pool.submit(ingest, checkpoint, license).result()
        except BrokenProcessPool:
            return f"{checkpoint.path}: the process that read it was killed, perhaps for lack of memory"


def copy_weights(checkpoint: Checkpoint, record: ModelRecord, path: Path) -> None:
    """Write a copy of the weights of a model that was read; raises if the source has changed since."""
    for model in open_models(checkpoint.path, checkpoint.name):
        if model.name == record.name:
            model.__dict__["digest"] = record.digest
            write_copy(model, path)
            return
    raise UnreadableModelError(f"{checkpoint.path} changed while it was being added. Try again")
