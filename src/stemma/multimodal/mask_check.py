"""Check of masks: is the output near the class frequencies when every modality is hidden?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stemma.errors import MisuseError

NEAR = 0.25
"""Largest total variation distance from the class frequencies that counts as near."""


@dataclass(frozen=True)
class MaskCheck:
    """The output of a network with every modality hidden.

    Attributes:
        distance: Total variation distance from the class frequencies, 0 to 1.
        near: Whether that is at most 0.25.
        answered: Mean probability of each class.
        frequencies: Fraction of each class among the labels.
        reason: One sentence.
    """

    distance: float
    near: bool
    answered: tuple[float, ...]
    frequencies: tuple[float, ...]
    reason: str


def check_hidden_output(outputs: torch.Tensor, labels: torch.Tensor, masks: Sequence[str]) -> MaskCheck:
    """Compare logits `[n, classes]` for hidden inputs with the frequencies of labels `[n]`."""
    # A network whose output for nothing is far from them attributes that output to its modalities: another mask may
    # be better. Early in training this means little.
    if outputs.ndim != 2 or labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(outputs):
        raise MisuseError(
            f"a mask check needs outputs [n, classes] and integer labels [n], but the shapes are {list(outputs.shape)} "
            f"and {list(labels.shape)}"
        )
    kept = labels[labels >= 0]
    frequencies = torch.bincount(kept, minlength=outputs.shape[1]).double() / max(len(kept), 1)
    answered = outputs.double().softmax(1).mean(0).to(frequencies.device)
    distance = float((answered - frequencies).abs().sum() / 2)
    top = int(answered.argmax())
    how = ", ".join(dict.fromkeys(masks))
    reason = f"with everything hidden by {how}, total variation from the class frequencies is {distance:.2f}" + (
        "" if distance <= NEAR else f" (mostly class {top}): the masks do not hide enough, try mean or permuted"
    )
    return MaskCheck(distance, distance <= NEAR, tuple(answered.tolist()), tuple(frequencies.tolist()), reason)
