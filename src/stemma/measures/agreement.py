"""Agreement of top answers and accuracies, shown next to every distance."""

from dataclasses import dataclass

import numpy as np

from stemma.probes import Probes


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two models on the same probes.

    Attributes:
        alike: Share of probes (of positions, for sequences) with the same top answer; None if the models have different
            numbers of answers.
        accuracy_a: Accuracy of the first model; None without true labels.
        accuracy_b: Accuracy of the second.
    """

    alike: float | None
    accuracy_a: float | None
    accuracy_b: float | None


def agreement(a: np.ndarray, b: np.ndarray, probes: Probes, *, scores: bool = True) -> Agreement:
    """Agreement of top answers and accuracies from outputs `[n, classes]` (or `[n, length, tokens]`) of two models.

    Args:
        a: Outputs of the first model.
        b: Outputs of the second.
        probes: The inputs.
        scores: Whether both answer with class scores; hidden states have no top answer.

    Returns:
        The share of equal top answers, and the accuracies.
    """
    choices = [top_answers(out, probes.kind) if scores else None for out in (a, b)]
    same = share_equal(*choices) if a.shape[1:] == b.shape[1:] else None
    return Agreement(same, *(accuracy(c, out.shape[-1], probes) for out, c in zip((a, b), choices, strict=True)))


def top_answers(outputs: np.ndarray, kind: str) -> np.ndarray | None:
    """Index of the largest score, `[n]` or `[n, length]`; None if outputs are not scores."""
    scores = outputs.ndim == 2 or (kind == "tokens" and outputs.ndim == 3)
    return outputs.argmax(-1) if scores and outputs.shape[-1] > 1 else None


def share_equal(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    """Share of equal choices; None if one model makes none."""
    return None if a is None or b is None else float((a == b).mean())


def accuracy(choice: np.ndarray | None, classes: int, probes: Probes) -> float | None:
    """Accuracy on the labels; None without true labels, or with labels of unknown classes."""
    if choice is None or choice.ndim != 1 or probes.labels is None or probes.labelled:
        return None
    return float((choice == probes.labels).mean()) if int(probes.labels.max()) < classes else None
