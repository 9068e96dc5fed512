"""What a modality does without the others, and what the fused representation is."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masked_passes import Forward, evaluating, logits
from stemma.multimodal.masks import AbstractMask, Batch, hidden
from stemma.multimodal.paired_network import names_taken

BATCH = 256
"""Probes asked at once."""


def in_batches(batch: Batch, ask: Callable[[Batch], torch.Tensor], size: int = BATCH) -> np.ndarray:
    """Answers to many inputs, in evaluation and without gradients.

    Args:
        batch: Tensors by name, one row per probe; what has other lengths is passed on whole.
        ask: From a part of them to a tensor with one row each.
        size: Rows at once.

    Returns:
        All answers in float64.
    """
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
    """What enters the last layer: the representation that all modalities share.

    Args:
        module: The network.
        batch: Tensors by name.
        layer: Name of the layer whose input is taken, or several with commas between them, side by side: where a
            network adds the outputs of several heads, no single one sees everything. The linear layer that is called
            last unless given.
        forward: How the network is asked.

    Returns:
        `[n, width]`, and the name of the layer.

    Raises:
        MisuseError: If there is no such layer.
    """
    ask = forward or (lambda m, b: m(**b))
    known = {name: part for name, part in module.named_modules() if name}
    named = [] if layer is None else [name.strip() for name in layer.split(",")]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise MisuseError(f"the network has no layer {unknown[0]!r}; its parts are {', '.join(list(known)[:12])}")
    watched = {n: known[n] for n in named} or {n: p for n, p in known.items() if isinstance(p, nn.Linear)}
    seen: list[tuple[str, torch.Tensor]] = []

    def keep(name: str) -> Callable[..., None]:
        return lambda part, inputs: seen.append((name, inputs[0]))

    handles = [part.register_forward_pre_hook(keep(name)) for name, part in watched.items()]
    last = ""

    def entering(part: Batch) -> torch.Tensor:
        nonlocal last
        seen.clear()
        ask(module, part)
        if not seen:
            raise MisuseError("the network called no linear layer: name the layer whose input is the representation")
        if len(named) > 1:
            found = dict(seen)
            last = ", ".join(named)
            return torch.cat([found[name].flatten(1) for name in named], 1)
        last, features = seen[-1]
        return features.flatten(1)

    try:
        with evaluating(module):
            return in_batches(batch, entering), last
    finally:
        for handle in handles:
            handle.remove()


def answers(
    module: nn.Module,
    batch: Batch,
    masks: Mapping[str, AbstractMask],
    hide: Sequence[str] = (),
    forward: Forward | None = None,
) -> np.ndarray:
    """What a network answers with some modalities hidden.

    Args:
        module: The network.
        batch: Tensors by name.
        masks: How modalities are hidden.
        hide: Which.
        forward: How the network is asked.

    Returns:
        Logits `[n, …]`.
    """
    ask = forward or (lambda m, b: m(**b))
    with evaluating(module):
        return in_batches(hidden(batch, masks, hide), lambda part: logits(ask(module, part)))


def concept_outputs(module: nn.Module, batch: Batch, modality: str, masks: Mapping[str, AbstractMask]) -> np.ndarray:
    """What a mono-modal concept answers, without the shift of all logits that no softmax sees.

    A concept is either a network of its one modality, trained by itself, or the multimodal network, trained with all
    other modalities hidden: it is called with what its `forward` takes.

    Args:
        module: The concept.
        batch: Tensors by name, of all modalities.
        modality: Its modality.
        masks: How the others are hidden.

    Returns:
        `[n, outputs]`, centred over outputs where there are several.

    Raises:
        MisuseError: If it does not take the modality.
    """
    taken = names_taken(module)
    if taken is not None and modality not in taken:
        raise MisuseError(f"the concept of {modality!r} takes {', '.join(sorted(taken))}: its forward needs that name")
    own = {k: x for k, x in batch.items() if taken is None or k in taken}
    others = [name for name in masks if name != modality and name in own]
    found = answers(module, own, masks, others).reshape(len(batch[modality]), -1)
    return found - found.mean(1, keepdims=True) if found.shape[1] > 1 else found
