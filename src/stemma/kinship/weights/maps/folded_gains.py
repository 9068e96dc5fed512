"""Gains of normalisations folded into the matrices that read them, means removed: what is left can be rotated."""

import re
from functools import cache, partial

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.maps.blocks import SLICE
from stemma.networks.load import from_arrays

FOLDS: tuple[tuple[str, str], ...] = (
    (
        r"^(.*layers\.\d+\.)input_layernorm\.weight$",
        r"(self_attn\.(q|k|v|qkv)_proj|attention\.query_key_value)\.weight$",
    ),
    (
        r"^(.*layers\.\d+\.)post_attention_layernorm\.weight$",
        r"(mlp\.(gate|up|gate_up)_proj|mlp\.dense_h_to_4h|gate|experts\.\d+\.(w1|w3|gate_proj|up_proj))\.weight$",
    ),
    (r"^()(?:model\.)?norm\.weight$", r"^(lm_head|score|head)\.weight$"),
    (r"^(.*blk\.\d+\.)attn_norm\.weight$", r"attn_(q|k|v)\.weight$"),
    (r"^(.*blk\.\d+\.)ffn_norm\.weight$", r"ffn_(gate|up)\.weight$"),
    (r"^()output_norm\.weight$", r"^output\.weight$"),
    (r"^(.*h\.\d+\.)ln_1\.weight$", r"attn\.c_attn\.weight$"),
    (r"^(.*h\.\d+\.)ln_2\.weight$", r"mlp\.c_fc\.weight$"),
    (r"^()(?:transformer\.)?ln_f\.weight$", r"^lm_head\.weight$"),
    (r"^(.*\d+\.)layernorm_before\.weight$", r"attention\.(attention\.)?(query|key|value|[qkv]_proj)\.weight$"),
    (r"^(.*\d+\.)layernorm_after\.weight$", r"(intermediate\.dense|mlp\.fc1)\.weight$"),
    (r"^()(?:vit\.|deit\.)?layernorm\.weight$", r"(classifier|pooler\.dense)\.weight$"),
    (r"^(blocks\.\d+\.)norm1\.weight$", r"attn\.(qkv|q|k|v)\.weight$"),
    (r"^(blocks\.\d+\.)norm2\.weight$", r"mlp\.fc1\.weight$"),
    (r"^(.*layers\.\d+\.)(?:layer_norm1|self_attn_layer_norm)\.weight$", r"self_attn\.(q|k|v)_proj\.weight$"),
    (r"^(.*layers\.\d+\.)(?:layer_norm2|final_layer_norm)\.weight$", r"fc1\.weight$"),
    (r"^()(?:gpt_neox\.)?final_layer_norm\.weight$", r"^(embed_out|lm_head)\.weight$"),
    (
        r"^(.*block\.\d+\.layer\.\d+\.)layer_norm\.weight$",
        r"((SelfAttention|EncDecAttention)\.(q|k|v)|wi(_\d)?)\.weight$",
    ),
)
"""Gains of a normalisation (first, with its layer) that may be folded into the matrices that read it (second)."""


def fold_gains(model: Model) -> Model | None:
    """A lazy view of the model with folded gains, means removed along streams; None where no gain is known."""
    known, factors, centred = structure(model), {}, False
    streams = {g.name for g in known.groups if g.rotatable}
    along = {n: next((k for k, x in enumerate(known.axes[n]) if x.group in streams), None) for n in model.weights}
    widths = {n: t.shape[k] for n, t in model.weights.items() if len(t.shape) == 2 and (k := along[n]) is not None}
    for name, tensor in model.weights.items():
        for gain, readers in FOLDS if len(tensor.shape) == 1 else ():
            layer = re.match(gain, name)
            if layer is None:
                continue
            centred |= f"{name.removesuffix('weight')}bias" in model.weights
            for other, width in widths.items():
                if width == tensor.shape[0] and other.startswith(layer.group(1)) and re.search(readers, other):
                    factors[other] = name
    if not factors:
        return None
    tensors: dict[str, Tensor] = dict(model.weights)
    for name, own in matrices(model).items():
        axis, gain = along.get(name), factors.get(name)
        if axis is None or not (gain or centred):
            continue
        factor = None if gain is None else np.asarray(model.weights[gain].array(), np.float32)
        make = partial(_rows, own, axis, factor, _mean(own, factor) if centred and axis == 0 else None, centred)
        tensors[name] = Tensor(name, "F32", own.shape, RowStorage(make, own.shape))
    return from_arrays(tensors, model.name, dict(model.config) if model.config else None)


def _rows(tensor: Tensor, axis: int, gain: np.ndarray | None, mean, centred: bool, start: int, stop: int) -> np.ndarray:
    x = np.asarray(tensor.rows(start, stop), np.float32)
    if gain is not None:
        x = x * (gain[start:stop, None] if axis == 0 else gain)
    if not centred:
        return x
    return x - (mean() if axis == 0 else x.mean(axis=axis, keepdims=True))


def _mean(tensor: Tensor, gain: np.ndarray | None):
    """The mean over all rows, computed when first needed."""

    @cache
    def mean() -> np.ndarray:
        step = max(1, SLICE // max(1, tensor.size // tensor.shape[0]))
        total = np.zeros(tensor.shape[1:])
        for start in range(0, tensor.shape[0], step):
            x = np.asarray(tensor.rows(start, min(start + step, tensor.shape[0])), np.float32)
            weights = np.ones(len(x)) if gain is None else gain[start : start + len(x)]
            total += np.tensordot(weights, x, axes=(0, 0))
        return (total / tensor.shape[0]).astype(np.float32)

    return mean
