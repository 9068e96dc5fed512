"""What the names of layers say about their order, and when a number in a name says nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
"""Words of module names, with letters only, by where they stand in a network; numbers order those of one rank."""

_TFLITE_MODULE = re.compile(r"([^/;]+)/BiasAdd/ReadVariableOp/resource")


@dataclass(frozen=True)
class Layer:
    """A weight with at least two axes.

    Attributes:
        tensor: Its name.
        module: The module it belongs to.
        ins: Axis that it reads with.
        outs: Axis that it writes with; equal to `ins` for a depthwise kernel.
        pointwise: Whether its kernel is 1×1 (a dense layer is not).
        channels_last: Whether feature maps that are flattened before it keep channels last; None where names and
            layout do not agree on a framework.
    """

    tensor: str
    module: str
    ins: int
    outs: int
    pointwise: bool
    channels_last: bool | None


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders numbers inside names by value.

    Args:
        name: Any name.

    Returns:
        The key.
    """
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, len(t.lstrip("0")), t.lstrip("0")) if "0" <= t[0] <= "9" else (1, 0, t) for t in pieces)


def split_name(name: str) -> tuple[str, str]:
    """Module and leaf of a tensor's name, for the naming habits of torch, Keras, TFLite and bare variables.

    Args:
        name: A tensor's name.

    Returns:
        The module, and the leaf (lower case).
    """
    if m := _TFLITE_MODULE.search(name):
        return m[1], "bias"
    text = name.split(";")[0].removesuffix(":0")
    if m := re.fullmatch(r"(?:.*/)?([^/]+)/(Conv2D|MatMul|depthwise)", text):
        return m[1], m[2].lower()
    if m := re.fullmatch(r"([A-Za-z]+)_?(\d+)", text):
        return m[2], m[1].lower()
    head, _, leaf = text.replace("/", ".").rpartition(".")
    pieces = head.split(".")
    half = len(pieces) // 2
    if len(pieces) % 2 == 0 and pieces[:half] == pieces[half:]:
        head = ".".join(pieces[:half])
    return head, leaf.lower()


def flattened_last(leaf: str, window: tuple[int, int] | None) -> bool | None:
    """How a framework flattens feature maps: torch channel by channel, TensorFlow and JAX position by position.

    Args:
        leaf: Last part of the layer's name.
        window: Window axes of the network's kernels, None where it has none with four axes.

    Returns:
        None where the leaf's name is one framework's and the layout of the kernels another's (a converted file).
    """
    if leaf == "weight" and window in {(2, 3), None}:
        return False
    named = "kernel" in leaf or leaf in {"matmul", "conv2d", "depthwise"}
    return True if named and window in {(0, 1), (1, 2), None} else None


def numbered(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the numbers in the layers' names order them.

    They do beside a word for a layer (`conv1`, `layers.0`), and where one number stands for several parameters
    (`0.weight` and `0.bias`; `f1`, `b1` and `alpha1`). A bare code (`t0007`, `tensor_12.w`) may have been handed out in
    any order.

    Returns:
        False for codes.
    """
    words = {word_of(piece) for layer in layers for piece in re.split(r"[./]", layer.module)} - {""}
    if any(len(word) > 1 and word in ranked for word in words for ranked in RANKS.values()):
        return True
    # a word that is not known, or a number padded with zeros, is a code
    coded = any(re.search(r"(?<!\d)0\d", layer.module) for layer in layers) or bool(words)
    return not coded and paired(layers, shapes)


def forced(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether shapes alone name the first and the last layer of the chain: those of sizes that nothing else has.

    Between them an order of layers of one width may still be wrong; they hide the same sizes in any order.

    Returns:
        False where another order of the layers would chain too and show other axes to the outside.
    """
    ins = [shapes[layer.tensor][layer.ins] for layer in layers]
    outs = [shapes[layer.tensor][layer.outs] for layer in layers]
    chained = all(a == b for a, b in zip(outs[:-1], ins[1:], strict=True))
    first, last = ins[0], outs[-1]
    alone = ins.count(first) == outs.count(last) == 1 and first not in outs and last not in ins
    return chained and alone and first != last


def word_of(piece: str) -> str:
    """The letters of a part of a name.

    Args:
        piece: Such as `conv1`.

    Returns:
        Lower case, such as `conv`.
    """
    return re.sub(r"[^a-z]", "", piece.lower())


def paired(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether bare variables (`f3`, `b3`) come in pairs, so that their numbers mean something.

    Returns:
        True if every layer but the last has a vector of the same number and as many entries as it writes.
    """
    vectors = {(split_name(n)[0], s[0]) for n, s in shapes.items() if len(s) == 1}
    return all((layer.module, shapes[layer.tensor][layer.outs]) in vectors for layer in layers[:-1])


def place(layer: Layer, shared: set[str]) -> tuple[object, ...]:
    """Where a layer stands: by words, then numbers (a depthwise kernel after its namesake).

    Args:
        layer: The layer.
        shared: Parts of the name that all layers but the outermost have, whatever they mean.

    Returns:
        A sort key.

    Raises:
        MisfitError: If a word is not known, so that the order would be a guess.
    """
    plain = layer.module.replace("depthwise_conv", "conv")
    if re.search(r"conv\dd$", plain):
        plain += "_0"
    key: list[object] = []
    for piece in re.split(r"[./]", plain):
        word = word_of(piece)
        rank = next((r for r, words in RANKS.items() if word in words), 0 if piece in shared else None)
        if rank is None:
            raise MisfitError(f"unknown word {word} in {layer.tensor}")
        key.append(
            (rank, natural(re.sub(r"^\D*?(?=\d+$|$)", "", piece.replace("conv2d_", "")) if rank == 0 else piece))
        )
    return tuple(key), "depthwise" in layer.module
