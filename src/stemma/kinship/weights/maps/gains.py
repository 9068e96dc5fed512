"""Gains of a normalisation multiplied into the matrices that read it: what is left can be rotated."""

import re
from functools import partial

import numpy as np

from stemma.models.arrays import from_arrays
from stemma.models.model import Model, RowStorage, Tensor

FOLDS: tuple[tuple[str, str], ...] = (
    (r"^(.*layers\.\d+\.)input_layernorm\.weight$", r"self_attn\.(q|k|v)_proj\.weight$"),
    (r"^(.*layers\.\d+\.)post_attention_layernorm\.weight$", r"mlp\.(gate|up)_proj\.weight$"),
    (r"^()(?:model\.)?norm\.weight$", r"^lm_head\.weight$"),
    (r"^(blk\.\d+\.)attn_norm\.weight$", r"attn_(q|k|v)\.weight$"),
    (r"^(blk\.\d+\.)ffn_norm\.weight$", r"ffn_(gate|up)\.weight$"),
    (r"^()output_norm\.weight$", r"^output\.weight$"),
)
"""Gains of a normalisation (first, with its layer) that may be folded into the matrices that read it (second)."""


def folded(model: Model) -> Model | None:
    """A model with the gains of its normalisations in the matrices that read them, computed as rows are asked for.

    Args:
        model: Any model.

    Returns:
        A view of it; None where no gain is known to be read by any matrix.
    """
    factors: dict[str, str] = {}
    for name, tensor in model.weights.items():
        for gain, readers in FOLDS:
            layer = re.match(gain, name)
            if layer is None or len(tensor.shape) != 1:
                continue
            for other, matrix in model.weights.items():
                fits = len(matrix.shape) == 2 and matrix.shape[1] == tensor.shape[0]
                if fits and other.startswith(layer.group(1)) and re.search(readers, other):
                    factors[other] = name
    if not factors:
        return None
    tensors: dict[str, Tensor] = dict(model.weights)
    for name, gain in factors.items():
        own = model.weights[name]
        make = partial(_rows, own, np.asarray(model.weights[gain].array(), np.float32))
        tensors[name] = Tensor(name, "F32", own.shape, RowStorage(make, own.shape))
    return from_arrays(tensors, model.name, dict(model.config) if model.config else None)


def _rows(tensor: Tensor, gain: np.ndarray, start: int, stop: int) -> np.ndarray:
    return np.asarray(tensor.rows(start, stop), np.float32) * gain
