"""Processor time of one call beside that of another: what code costs, however fast or busy the machine is."""

import gc
import resource
import time
from collections.abc import Callable

ROUNDS = 9


def _seconds(call: Callable[[], object]) -> float:
    """Of this process and of those it waited for, without the collector, whose cost depends on what else is alive."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    gc.disable()
    try:
        before = used()
        call()
        return used() - before
    finally:
        gc.enable()


def times_as_long(call: Callable[[], object], reference: Callable[[], object], limit: float) -> float:
    """How many times the processor time of `reference` the `call` takes.

    Both run in turn, and of each the least counts, which is what it costs where nothing else disturbs it. Rounds end
    as soon as the ratio is no larger than `limit`.
    """
    calls, references = [], []
    for _ in range(ROUNDS):
        references.append(_seconds(reference))
        calls.append(_seconds(call))
        if min(calls) <= limit * min(references):
            break
    return min(calls) / min(references)
