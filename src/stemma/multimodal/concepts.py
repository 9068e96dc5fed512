"""Unimodal concepts (networks of one modality) and the fused representation of a multimodal network."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masked_passes import Forward, evaluation_mode, logits
from stemma.multimodal.masks import AbstractMask, Batch, hidden
from stemma.multimodal.paired_network import names_taken

BATCH = 256
"""Batch size."""


def in_batches(batch: Batch, ask: Callable[[Batch], torch.Tensor], size: int = BATCH) -> np.ndarray:
    """Outputs in float64 for many inputs, batch by batch; entries without a row per probe are passed on whole."""
    count = max(len(x) for x in batch.values())
    out = []
    with torch.no_grad():
        for at in range(0, count, size):
            part = {k: x[at : at + size] if len(x) == count else x for k, x in batch.items()}
            out.append(ask(part).double().cpu().numpy())
    return np.concatenate(out)


def fused_representation(
    module: nn.Module, batch: Batch, layer: str | None = None, forward: Forward | None = None
) -> tuple[np.ndarray, str]:
    """The input `[n, width]` of the last layer, which all modalities share, and the name of that layer."""
    # By default the linear layer that runs last; several names, with commas between them, are concatenated: where a
    # network adds the outputs of several heads, no single one has all features.
    ask = forward or (lambda m, b: m(**b))
    known = {name: part for name, part in module.named_modules() if name}
    named = [] if layer is None else [name.strip() for name in layer.split(",")]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise MisuseError(f"the network has no layer {unknown[0]!r}. Its layers are {', '.join(list(known)[:12])}")
    watched = {n: known[n] for n in named} or {n: p for n, p in known.items() if isinstance(p, nn.Linear)}
    inputs_seen: list[tuple[str, torch.Tensor]] = []

    def record_input(name: str) -> Callable[..., None]:
        return lambda part, inputs: inputs_seen.append((name, inputs[0]))

    handles = [part.register_forward_pre_hook(record_input(name)) for name, part in watched.items()]
    last = ""

    def entering(part: Batch) -> torch.Tensor:
        nonlocal last
        inputs_seen.clear()
        ask(module, part)
        if not inputs_seen:
            raise MisuseError("the network has no linear layer: name the layer whose input is the fused representation")
        if len(named) > 1:
            found = dict(inputs_seen)
            last = ", ".join(named)
            return torch.cat([found[name].flatten(1) for name in named], 1)
        last, features = inputs_seen[-1]
        return features.flatten(1)

    try:
        with evaluation_mode(module):
            return in_batches(batch, entering), last
    finally:
        for handle in handles:
            handle.remove()


def masked_outputs(
    module: nn.Module,
    batch: Batch,
    masks: Mapping[str, AbstractMask],
    hide: Sequence[str] = (),
    forward: Forward | None = None,
) -> np.ndarray:
    """Logits `[n, …]` of a network with some modalities hidden, in evaluation mode."""
    ask = forward or (lambda m, b: m(**b))
    with evaluation_mode(module):
        return in_batches(hidden(batch, masks, hide), lambda part: logits(ask(module, part)))


def concept_outputs(module: nn.Module, batch: Batch, modality: str, masks: Mapping[str, AbstractMask]) -> np.ndarray:
    """Outputs `[n, outputs]` of a unimodal concept, centred over outputs where there are several."""
    # A concept is either a network of its one modality, trained by itself, or the multimodal network, trained with
    # all other modalities hidden: it is called with what its `forward` takes. A softmax ignores the shift that is
    # removed.
    taken = names_taken(module)
    if taken is not None and modality not in taken:
        raise MisuseError(
            f"the concept of {modality!r} takes {', '.join(sorted(taken))}: its forward has to take {modality!r}"
        )
    own = {k: x for k, x in batch.items() if taken is None or k in taken}
    others = [name for name in masks if name != modality and name in own]
    found = masked_outputs(module, own, masks, others).reshape(len(batch[modality]), -1)
    return found - found.mean(1, keepdims=True) if found.shape[1] > 1 else found
