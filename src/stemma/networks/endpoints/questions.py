"""Asks a service all probes: what is known is not asked again, a few are asked twice, nothing beyond the budget."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from stemma.errors import EndpointError
from stemma.networks.endpoints.address import Endpoint
from stemma.networks.endpoints.asking import Asking, Budget
from stemma.networks.endpoints.kept_answers import KeptAnswers, input_key
from stemma.networks.endpoints.protocols import Row, ask_chat, ask_classifier

TWICE = 4
"""Inputs that are asked twice, to see whether the answers are decided by the inputs."""

JITTER = 1e-6
"""Difference of scores up to which two answers are the same, for rounding."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a service or of a file.

    Attributes:
        outputs: One row per input: scores `[n, classes]`, or labels `[n, 1]`.
        notes: What a person should know about them.
    """

    outputs: np.ndarray
    notes: tuple[str, ...]


def ask(
    endpoint: Endpoint,
    inputs: np.ndarray,
    budget: Budget,
    tell: Callable[[str], None],
    progress: Progress | None = None,
    **how: object,
) -> Answers:
    """The answers of a service to all inputs.

    Args:
        endpoint: The service.
        inputs: Raw inputs `[n, …]`; UTF-8 bytes padded with zeros for a chat service.
        budget: What may be sent.
        tell: Told what it will cost, before anything is sent.
        progress: Told how many are answered.
        how: Options of `Asking`, for tests.

    Returns:
        The answers.

    Raises:
        EndpointError: If the service fails, answers wrongly, or answers the same input in two ways.
    """
    keys = [input_key(row) for row in inputs]
    first = list(dict.fromkeys(keys))
    rows = {key: inputs[keys.index(key)] for key in first}
    with KeptAnswers(endpoint.identity).opened() as kept:
        again = [f"again {key}" for key in first[:TWICE]]
        missing = [key for key in (*first, *again) if kept.get(key) is None]
        if missing:
            budget.require(len(missing), endpoint.name)
            tell(_estimate(endpoint, [rows[k.removeprefix("again ")] for k in missing], len(first)))
            _ask_missing(endpoint, missing, rows, kept, budget, progress, how)
        found = {key: kept.get(key) for key in (*first, *again)}
    answers = {key: value[0] for key, value in found.items() if value is not None}
    notes = [_when(len(first) - sum(k in rows for k in missing), [v[1] for v in found.values() if v])]
    notes.append(_same_twice(endpoint, [(answers[k.removeprefix("again ")], answers[k]) for k in again]))
    outputs, note = _table(endpoint, [answers[key] for key in keys])
    return Answers(outputs, tuple(n for n in (*notes, note) if n))


def _ask_missing(
    endpoint: Endpoint, missing: list[str], rows: dict[str, np.ndarray], kept: KeptAnswers, budget: Budget,
    progress: Progress | None, how: dict[str, object],
) -> None:  # fmt: skip
    size = 1 if endpoint.protocol == "chat" else endpoint.batch
    ask_some = ask_chat if endpoint.protocol == "chat" else ask_classifier
    # An input and its repetition never share a request: a service might answer within it from memory.
    parts = [[k for k in missing if not k.startswith("again ")], [k for k in missing if k.startswith("again ")]]
    done = 0
    with Asking(endpoint, budget, **how) as asking:  # ty: ignore[invalid-argument-type]
        for part in parts:
            for start in range(0, len(part), size):
                if progress is not None:
                    progress(f"asking {endpoint.name}", done, len(missing))
                batch = part[start : start + size]
                answered = ask_some(asking, np.stack([rows[k.removeprefix("again ")] for k in batch]))
                kept.put(batch, answered)
                done += len(batch)


def _estimate(endpoint: Endpoint, rows: list[np.ndarray], inputs: int) -> str:
    """What asking will cost, as far as that can be told from here."""
    known = f", {inputs - len(rows):,} are known" if inputs > len(rows) else ""
    if endpoint.protocol == "chat":
        words = sum(int(np.count_nonzero(row)) for row in rows) // 4
        return (
            f"asking {endpoint.name}: {len(rows):,} queries of about {words:,} tokens in all, 16 in each answer{known}"
        )
    size = sum(row.nbytes for row in rows) / 1e6 * (5 if endpoint.send == "json" else 1.4)
    return f"asking {endpoint.name}: {len(rows):,} queries, about {size:.1f} MB to send{known}"


def _when(known: int, times: list[float]) -> str:
    if not known:
        return ""
    day = datetime.fromtimestamp(min(times), UTC).date().isoformat()
    return f"{known:,} answers were kept from earlier, the oldest of {day}; the service may have changed since"


def _same_twice(endpoint: Endpoint, pairs: list[tuple[Row, Row]]) -> str:
    other = sum(a[0] != b[0] or len(a[1]) != len(b[1]) or np.argmax(a[1]) != np.argmax(b[1])
                or (a[0] == "labels" and a[1] != b[1]) for a, b in pairs)  # fmt: skip
    if other:
        raise EndpointError(
            f"{endpoint.name} is not deterministic: {other} of {len(pairs)} inputs that were asked twice got another "
            "answer. Switch sampling off (temperature 0), or record a majority of its answers and give --outputs"
        )
    largest = max((float(np.abs(np.subtract(a[1], b[1])).max()) for a, b in pairs), default=0.0)
    if largest > JITTER:
        return f"not quite deterministic: scores of the same input differ by up to {largest:.2g}"
    return ""


def _table(endpoint: Endpoint, answers: list[Row]) -> tuple[np.ndarray, str]:
    kinds = {kind for kind, _ in answers}
    if kinds == {"logits", "labels"} and endpoint.classes:  # now and then no probabilities were told
        answers = [(k, (float(np.argmax(v)),)) if k == "logits" else (k, v) for k, v in answers]
        kinds, mixed = {"labels"}, "not all answers came with probabilities, so that only their labels are compared"
    else:
        mixed = ""
    widths = {len(values) for _, values in answers}
    if len(kinds) > 1 or len(widths) > 1:
        raise EndpointError(f"{endpoint.name} answers in several shapes: {', '.join(sorted(kinds))} of "
                            f"{', '.join(map(str, sorted(widths)))} numbers")  # fmt: skip
    labels = kinds == {"labels"}
    outputs = np.array([values for _, values in answers], np.float64 if labels else np.float32)
    return outputs, mixed
