"""Layer order from layer names, and whether the numbers in names are meaningful."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stemma.architectures.structure import MisfitError

RANKS = {
    -1: {"stem", "convstem", "convfirst", "first", "convin", "inputconv"},
    0: {"", "conv", "convd", "depthwiseconvd", "separableconvd", "layer", "layers", "block", "blocks", "features",
        "feature", "body", "net", "network", "model", "module", "main", "seq", "sequential", "convs", "convlayer",
        "dw", "pw", "encoder", "enc", "backbone", "trunk", "base", "functional", "convolution", "f", "w", "lin",
        "mlp", "op", "unit", "units", "stage", "stages", "hidden"},
    1: {"decoder", "dec", "neck"},
    2: {"fc", "head", "classifier", "linear", "dense", "logits", "output", "last", "convlast", "convout", "tail",
        "top", "prediction", "predictions", "out", "final", "up"},
}  # fmt: skip
"""Words of module names (letters only) by their position in a network; numbers order words of one rank."""

_TFLITE_MODULE = re.compile(r"([^/;]+)/BiasAdd/ReadVariableOp/resource")


@dataclass(frozen=True)
class Layer:
    """A weight with at least two axes.

    Attributes:
        tensor: Its name.
        module: Its module.
        ins: Input axis.
        outs: Output axis; equal to `ins` for a depthwise kernel.
        pointwise: Whether its kernel is 1×1 (a dense layer is not).
        channels_last: Whether flattened feature maps before it are channels-last; None if names and layout disagree.
    """

    tensor: str
    module: str
    ins: int
    outs: int
    pointwise: bool
    channels_last: bool | None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders numbers inside names by value."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, len(t.lstrip("0")), t.lstrip("0")) if "0" <= t[0] <= "9" else (1, 0, t) for t in pieces)


def split_name(name: str) -> tuple[str, str]:
    """Module and leaf (lower case) of a tensor's name, as torch, Keras, TFLite and bare variables are named."""
    slash = "/" in name
    if slash and (m := _TFLITE_MODULE.search(name)):
        return m[1], "bias"
    text = name.split(";")[0].removesuffix(":0")
    if slash and (m := re.fullmatch(r"(?:.*/)?([^/]+)/(Conv2D|MatMul|depthwise)", text)):
        return m[1], m[2].lower()
    if text[-1:].isdecimal() and (m := re.fullmatch(r"([A-Za-z]+)_?(\d+)", text)):
        return m[2], m[1].lower()
    head, _, leaf = text.replace("/", ".").rpartition(".")
    pieces = head.split(".")
    half = len(pieces) // 2
    if len(pieces) % 2 == 0 and pieces[:half] == pieces[half:]:
        head = ".".join(pieces[:half])
    return head, leaf.lower()


def pieces(module: str) -> list[str]:
    """The parts of a module's name between dots and slashes."""
    return module.replace("/", ".").split(".")


def flattens_channels_last(leaf: str, window: tuple[int, int] | None) -> bool | None:
    """Whether the framework flattens feature maps channels-last; None if leaf name and kernel layout disagree."""
    if leaf == "weight" and window in {(2, 3), None}:
        return False
    named = "kernel" in leaf or leaf in {"matmul", "conv2d", "depthwise"}
    return True if named and window in {(0, 1), (1, 2), None} else None


def numbers_give_order(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the numbers in the layers' names give their order."""
    words = {letters(piece) for layer in layers for piece in pieces(layer.module)} - {""}
    if any(len(word) > 1 and word in ranked for word in words for ranked in RANKS.values()):
        return True
    # an unknown word, or a number padded with zeros, is a code
    coded = any(re.search(r"(?<!\d)0\d", layer.module) for layer in layers) or bool(words)
    return not coded and have_paired_vectors(layers, shapes)


def shapes_give_order(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether shapes alone identify the first and the last layer: those with sizes that no other layer has."""
    ins = [shapes[layer.tensor][layer.ins] for layer in layers]
    outs = [shapes[layer.tensor][layer.outs] for layer in layers]
    chained = all(a == b for a, b in zip(outs[:-1], ins[1:], strict=True))
    first, last = ins[0], outs[-1]
    alone = ins.count(first) == outs.count(last) == 1 and first not in outs and last not in ins
    return chained and alone and first != last


@lru_cache(maxsize=1 << 14)
def letters(piece: str) -> str:
    """The letters of a name part, lower case: `conv` for `conv1`."""
    return "" if piece.isdecimal() else re.sub(r"[^a-z]", "", piece.lower())


def have_paired_vectors(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether bare variables (`f3`, `b3`) come in pairs: every layer but the last has a vector of the same number."""
    vectors = {(split_name(n)[0], s[0]) for n, s in shapes.items() if len(s) == 1}
    return all((layer.module, shapes[layer.tensor][layer.outs]) in vectors for layer in layers[:-1])


def layer_sort_key(layer: Layer, shared: set[str]) -> tuple[object, ...]:
    """Sort key of a layer: by words, then numbers; `shared` are name parts that all inner layers have."""
    plain = layer.module.replace("depthwise_conv", "conv")
    if re.search(r"conv\dd$", plain):
        plain += "_0"
    key: list[object] = []
    for piece in pieces(plain):
        word = letters(piece)
        rank = next((r for r, words in RANKS.items() if word in words), 0 if piece in shared else None)
        if rank is None:
            raise MisfitError(f"unknown word {word} in {layer.tensor}")
        key.append(
            (rank, natural_key(re.sub(r"^\D*?(?=\d+$|$)", "", piece.replace("conv2d_", "")) if rank == 0 else piece))
        )
    return tuple(key), "depthwise" in layer.module
