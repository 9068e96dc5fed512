"""Samples of what is to be forgotten: which class they are, and generic inputs made of them."""

import numpy as np

from stemma.edits.editable_network import Asked
from stemma.errors import MisuseError
from stemma.probes import Probes


def recognised(asked: Asked, forget: Probes) -> tuple[int, float]:
    """The class that samples belong to, and how many of them the network gives to it.

    Returns:
        The class and the share.

    Raises:
        MisuseError: If the network does not give most of them to one class.
    """
    answers = asked.answers(forget.inputs)
    if answers.ndim != 2:
        raise MisuseError(
            f"{asked.network.name} answers with shape {list(answers.shape[1:])}: a class can be forgotten where there "
            "is one score per class"
        )
    top = answers.argmax(1).numpy()
    source = top if forget.labels is None else forget.labels
    values, counts = np.unique(source, return_counts=True)
    chosen = int(values[counts.argmax()])
    share = float((top == chosen).mean())
    if share < 0.5:
        raise MisuseError(
            f"{asked.network.name} gives only {share:.0%} of the forget samples to one class ({chosen}): it does not "
            "recognise them, so there is nothing to forget"
        )
    return chosen, share


def scrambled(forget: Probes, seed: int = 0, block: int = 4) -> Probes:
    """Generic inputs made of samples: their blocks of pixels exchanged, within and between samples, some inverted.

    Args:
        forget: Images.
        seed: Of the exchange.
        block: Pixels along a block's edge.

    Returns:
        As many inputs; of vectors, each number is exchanged between samples.

    Raises:
        MisuseError: If the samples are neither images nor vectors.
    """
    x = forget.inputs
    draw = np.random.default_rng([seed, 17])
    if x.ndim == 2 and x.dtype.kind == "f":
        return Probes.of(draw.permuted(x, axis=0), kind=forget.kind, source=f"numbers of {forget.source}")
    if forget.kind != "image":
        raise MisuseError("other inputs are made of images and vectors only: give some for other kinds")
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
