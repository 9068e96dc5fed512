"""Checkpoints to what the registry records of them, in several processes where wanted."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
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
class Examined:
    """What a worker read of one model: plain values that travel between processes.

    Attributes:
        record: The model.
        tensors: Its tensors.
        fingerprints: Its fingerprints.
        notes: What the reader left out of its file, changed or took for granted.
    """

    record: ModelRecord
    tensors: tuple[TensorRecord, ...]
    fingerprints: tuple[Fingerprint, ...]
    notes: tuple[str, ...] = ()


def fingerprinters() -> tuple[WeightSketch, ...]:
    """The methods whose fingerprints are taken when a model is enrolled; the first serves the search.

    Returns:
        All that need nothing but the weights, no probes, with their default parameters.
    """
    return (WeightSketch(),)


def examine(checkpoint: Checkpoint, license: str | None) -> tuple[Examined, ...] | str:
    """Read and fingerprint the models of one checkpoint; runs in a worker.

    Args:
        checkpoint: Where it lies and what it is called.
        license: As stated.

    Returns:
        Its models, or what is wrong with it.
    """
    try:
        found = []
        for model in open_models(checkpoint.path, checkpoint.name):
            record, tensors = describe(model, license)
            made = tuple(method(model) for method in fingerprinters())
            found.append(Examined(record, tensors, made, model.notes))
    except StemmaError as e:
        return str(e) if str(checkpoint.path) in str(e) else f"{checkpoint.path}: {e}"
    except OSError as e:
        return f"{checkpoint.path} cannot be read: {e.strerror or e}"
    except Exception as e:  # a hostile file may reach any line of any reader, and must not stop the others
        return f"{checkpoint.path} cannot be read ({type(e).__name__}: {e}). If it is sound, please report this"
    return tuple(found)


def examined(checkpoints: Sequence[Checkpoint], license: str | None, jobs: int) -> Iterator[tuple[Examined, ...] | str]:
    """Examine many checkpoints, with several processes where wanted; one that brings its process down is a failure.

    Args:
        checkpoints: Where they lie.
        license: As stated.
        jobs: Processes.

    Yields:
        What `examine` gave, in order.
    """
    if jobs == 1 or len(checkpoints) < 2:
        yield from (examine(c, license) for c in checkpoints)
        return
    waiting, at = deque[tuple[Checkpoint, Future]](), 0
    with _pool(jobs) as pool:
        try:
            while waiting or at < len(checkpoints):
                while at < len(checkpoints) and len(waiting) < 2 * jobs:
                    waiting.append((checkpoints[at], pool.submit(examine, checkpoints[at], license)))
                    at += 1
                yield waiting[0][1].result()
                waiting.popleft()
            return
        except BrokenProcessPool:
            left = [c for c, _ in waiting] + list(checkpoints[at:])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    yield from (_alone(c, license) for c in left)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Leave when the process that wants the answers is killed: a pool's worker would wait for ever."""
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _alone(checkpoint: Checkpoint, license: str | None) -> tuple[Examined, ...] | str:
    """Examine in a process of its own, after some checkpoint brought a shared one down.

    Returns:
        As `examine`.
    """
    with _pool(1) as pool:
        try:
            return pool.submit(examine, checkpoint, license).result()
        except BrokenProcessPool:
            return f"{checkpoint.path}: the process that read it was killed. Is there enough memory?"


def copy_weights(checkpoint: Checkpoint, record: ModelRecord, path: Path) -> None:
    """Write a copy of the weights of a model that was examined.

    Args:
        checkpoint: Where the model lies.
        record: Which of its models.
        path: Target.

    Raises:
        UnreadableModelError: If the source has changed since.
    """
    for model in open_models(checkpoint.path, checkpoint.name):
        if model.name == record.name:
            model.__dict__["digest"] = record.digest
            write_copy(model, path)
            return
    raise UnreadableModelError(f"{checkpoint.path} changed while it was enrolled: try again")
