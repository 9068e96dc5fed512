"""Does a network that is shown nothing answer like the class frequencies? Only then does a mask hide anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stemma.errors import MisuseError

NEAR = 0.25
"""Largest total variation distance from the class frequencies that counts as near."""


@dataclass(frozen=True)
class MaskCheck:
    """What a network answers when every modality is hidden.

    Attributes:
        distance: Total variation from the class frequencies, 0 to 1.
        near: Whether that is at most 0.25.
        answered: Mean probability of each class.
        frequencies: Share of each class among the labels.
        reason: In one sentence.
    """

    distance: float
    near: bool
    answered: tuple[float, ...]
    frequencies: tuple[float, ...]
    reason: str


def checked(outputs: torch.Tensor, labels: torch.Tensor, masks: Sequence[str]) -> MaskCheck:
    """Compare answers to nothing with the class frequencies.

    A network whose answer to nothing is far from them says something where it should not: its responses carry that
    answer, and hiding by another mask may be better. Early in training this means little.

    Args:
        outputs: `[n, classes]`, the logits with all modalities hidden.
        labels: `[n]`.
        masks: Names of the masks, for the sentence.

    Returns:
        The check.

    Raises:
        MisuseError: If the outputs are no class scores or the labels no classes.
    """
    if outputs.ndim != 2 or labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(outputs):
        raise MisuseError(
            f"masks are checked for outputs [n, classes] and labels [n], not {list(outputs.shape)} and "
            f"{list(labels.shape)}"
        )
    kept = labels[labels >= 0]
    frequencies = torch.bincount(kept, minlength=outputs.shape[1]).double() / max(len(kept), 1)
    answered = outputs.double().softmax(1).mean(0).to(frequencies.device)
    distance = float((answered - frequencies).abs().sum() / 2)
    top = int(answered.argmax())
    how = ", ".join(dict.fromkeys(masks))
    reason = f"hidden by {how}, everything is answered {distance:.2f} from the class frequencies (total variation)" + (
        "" if distance <= NEAR else f", mostly with class {top}: the masks do not hide enough, try mean or permuted"
    )
    return MaskCheck(distance, distance <= NEAR, tuple(answered.tolist()), tuple(frequencies.tolist()), reason)
