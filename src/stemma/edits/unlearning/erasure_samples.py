"""Forget samples and kept ones, as an erasure takes them: classes apart, a part held back for measuring."""

from dataclasses import dataclass

import numpy as np

from stemma.edits.editable_network import EditableNetwork
from stemma.errors import MisuseError
from stemma.probes import Probes

HELD_BACK = 0.25
"""Share of the samples that is held back for measuring."""

MIN_HELD, MIN_KEPT = 8, 16
"""Samples of the forget set that have to be left to measure on, and kept samples that are needed at all."""

MIN_SHARE = 0.2
"""Share of unlabelled forget samples from which a class that the network answers is one of those to be forgotten."""


@dataclass(frozen=True, eq=False)
class ForgetSplit:
    """What is fitted on and what is measured on.

    Attributes:
        classes: The classes to be forgotten; empty for a set of samples.
        recognised: The share of the forget samples that the network answers with one of them; of a set 1.
        groups: Forget samples to fit on, by class.
        kept: Kept samples to fit on.
        asked_forget: Forget samples to measure on.
        asked_kept: Kept samples to measure on.
        held_forget: How many of `asked_forget` were held back from the fit: 0 if they are those of the fit.
        held_kept: The same of `asked_kept`.
    """

    classes: tuple[int, ...]
    recognised: float
    groups: tuple[np.ndarray, ...]
    kept: np.ndarray
    asked_forget: Probes
    asked_kept: Probes
    held_forget: int
    held_kept: int


def split_samples(
    editable: EditableNetwork, forget: Probes, retain: Probes, *, classes: bool, seed: int
) -> ForgetSplit:
    """Which classes are to be forgotten, and which samples are fitted and measured on.

    Args:
        editable: The network before the edit.
        forget: Samples of one class or several; of any kind without `classes`.
        retain: Samples of what is kept; those that the network takes for a forgotten class are left out.
        classes: Whether classes are forgotten.
        seed: Of the samples that are held back.

    Returns:
        The samples.

    Raises:
        MisuseError: If the network has no score per class, does not recognise the samples, or nothing is kept.
    """
    name, outputs = editable.network.name, editable.outputs(forget.inputs)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise MisuseError(f"{name} returns outputs of shape {list(outputs.shape[1:])}: unlearning needs one score per "
                          "class")  # fmt: skip
    top = outputs.argmax(1).numpy()
    chosen, recognised = _classes(name, forget, top, outputs.shape[1]) if classes else ((), 1.0)
    rows = _kept_rows(editable, forget, retain, chosen)
    fit_kept, asked_kept, held_kept = _held(rows, seed, MIN_KEPT)
    groups, asked, held = [], [], 0
    source = top if forget.labels is None else np.asarray(forget.labels)
    for members in [np.flatnonzero(source == c) for c in chosen] or [np.arange(len(forget))]:
        fit, ask, count = _held(members, seed + 1, MIN_HELD)
        groups.append(forget.inputs[fit])
        asked.append(ask)
        held += count
    ask = forget.take(np.sort(np.concatenate(asked)))
    kept = retain.inputs[fit_kept]
    return ForgetSplit(chosen, recognised, tuple(groups), kept, ask, retain.take(asked_kept), held, held_kept)


def _classes(name: str, forget: Probes, top: np.ndarray, count: int) -> tuple[tuple[int, ...], float]:
    """The classes of the forget samples, by their labels, else by the network's answers."""
    values, counts = np.unique(top if forget.labels is None else forget.labels, return_counts=True)
    if forget.labels is None:
        enough = counts >= max(MIN_SHARE * len(top), 1)
        values = values[enough] if enough.any() else values[counts.argmax()][None]
    chosen = tuple(int(c) for c in values)
    if any(not 0 <= c < count for c in chosen):
        raise MisuseError(f"the forget samples are labelled {', '.join(map(str, chosen))}, but {name} has the classes "
                          f"0 to {count - 1}: give the labels that it answers with")  # fmt: skip
    if len(chosen) == count:
        raise MisuseError(f"the forget samples are of all {count} classes of {name}: nothing would be kept. Give "
                          "samples of some classes, or -P samples=true for a set of samples")  # fmt: skip
    recognised = float(np.isin(top, chosen).mean())
    own = (
        1.0 if forget.labels is None else min(float((top == forget.labels)[forget.labels == c].mean()) for c in chosen)
    )
    if min(recognised, own) < 0.5:
        raise MisuseError(f"{name} recognises only {min(recognised, own):.0%} of the forget samples as class "
                          f"{', '.join(map(str, chosen))}: give samples of classes that it recognises, with the right "
                          "labels, or -P samples=true for a set of samples")  # fmt: skip
    return chosen, recognised


def _kept_rows(editable: EditableNetwork, forget: Probes, retain: Probes, chosen: tuple[int, ...]) -> np.ndarray:
    """Kept samples that are neither among the forget ones nor of a class to be forgotten."""
    if forget.inputs.shape[1:] != retain.inputs.shape[1:]:
        raise MisuseError(f"forget samples have the shape {list(forget.inputs.shape[1:])} and kept ones "
                          f"{list(retain.inputs.shape[1:])}: give both in one shape")  # fmt: skip
    barred = {np.ascontiguousarray(x).tobytes() for x in forget.inputs}
    new = np.array([np.ascontiguousarray(x).tobytes() not in barred for x in retain.inputs])
    new &= ~np.isin(editable.outputs(retain.inputs).argmax(1).numpy(), chosen)
    if retain.labels is not None:
        new &= ~np.isin(retain.labels, chosen)
    if new.sum() < MIN_KEPT:
        raise MisuseError(f"only {int(new.sum())} of {len(retain)} kept samples are neither forget samples nor taken "
                          f"for a class to be forgotten; {MIN_KEPT} are needed: give more of the others")  # fmt: skip
    return np.flatnonzero(new)


def _held(rows: np.ndarray, seed: int, least: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows to fit on, rows to measure on, and how many of these were held back; the same ones where there are few."""
    count = int(HELD_BACK * len(rows))
    if count < least:
        return rows, rows, 0
    order = np.random.default_rng([seed, len(rows)]).permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count]), count
