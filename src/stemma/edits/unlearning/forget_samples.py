"""Forget samples: the class that they belong to, and generic inputs made by shuffling their blocks."""

import numpy as np

from stemma.edits.editable_network import EditableNetwork
from stemma.errors import MisuseError
from stemma.probes import Probes


def target_class(editable: EditableNetwork, forget: Probes) -> tuple[int, float]:
    """The class of the forget samples, and the fraction of them that the network assigns to it."""
    # `MisuseError` if the network does not assign most of them to one class.
    name, outputs = editable.network.name, editable.outputs(forget.inputs)
    if outputs.ndim != 2:
        raise MisuseError(
            f"{name} returns outputs of shape {list(outputs.shape[1:])}: unlearning a class needs one score per class"
        )
    top = outputs.argmax(1).numpy()
    source = top if forget.labels is None else forget.labels
    values, counts = np.unique(source, return_counts=True)
    chosen = int(values[counts.argmax()])
    share = float((top == chosen).mean())
    if share < 0.5:
        raise MisuseError(
            f"{name} assigns only {share:.0%} of the forget samples to one class ({chosen}): give samples of one class "
            "that it recognises"
        )
    return chosen, share


def shuffled_blocks(forget: Probes, seed: int = 0, block: int = 4) -> Probes:
    """Generic inputs made of samples: blocks of pixels exchanged within and between images, some images inverted."""
    # Of vectors, each entry is exchanged between samples; `MisuseError` for any other kind.
    x = forget.inputs
    draw = np.random.default_rng([seed, 17])
    if x.ndim == 2 and x.dtype.kind == "f":
        return Probes.of(draw.permuted(x, axis=0), kind=forget.kind, source=f"numbers of {forget.source}")
    if forget.kind != "image":
        raise MisuseError("retain inputs can be synthesised from images and vectors only: give retain inputs")
    n, channels, height, width = x.shape
    h, w = height // block, width // block
    tiles = x[:, :, : h * block, : w * block].reshape(n, channels, h, block, w, block).transpose(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(n * h * w, channels, block, block)[draw.permutation(n * h * w)]
    tiles = tiles.reshape(n, h, w, channels, block, block).transpose(0, 3, 1, 4, 2, 5)
    out = np.array(x)
    out[:, :, : h * block, : w * block] = tiles.reshape(n, channels, h * block, w * block)
    flip = draw.random(n) < 0.3
    out[flip] = out.max() + out.min() - out[flip]
    return Probes.of(out, kind="image", source=f"blocks of {forget.source}")
