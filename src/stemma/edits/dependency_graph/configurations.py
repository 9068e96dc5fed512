"""What a configuration must say so that the network of a smaller model is built from it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.edits.dependency_graph.groups import Network

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Size:
    """One entry of a configuration that sizes layers.

    Attributes:
        key: Its name.
        weight: Pattern of the weights that it sizes; where it has a group, the entry is a list by that number.
        axis: The axis of those weights.
        per: Name of the entry by which the axis is divided (`head_dim`), empty for 1.
    """

    key: str
    weight: str
    axis: int = 0
    per: str = ""


_HEADS = (
    Size("num_attention_heads", r".*\.self_attn\.q_proj\.weight", 0, "head_dim"),
    Size("num_key_value_heads", r".*\.self_attn\.k_proj\.weight", 0, "head_dim"),
)
_GATED = Size("intermediate_size", r".*\.mlp\.(?:gate|up)_proj\.weight")
_BERT = Size("intermediate_size", r".*\.intermediate\.dense\.weight|.*\.mlp\.fc1\.weight")

SIZES: Mapping[str, tuple[Size, ...]] = {
    "stemma-mlp": (Size("hidden", r"layers\.(\d+)\.weight"),),
    "stemma-cnn": (
        Size("stem", r"stem\.conv\.weight"),
        Size("widths", r"blocks\.(\d+)\.conv2\.weight"),
        Size("inner", r"blocks\.(\d+)\.conv1\.weight"),
    ),
    "stemma-vit": (
        Size("inner", r"blocks\.\d+\.mlp\.fc1\.weight"),
        Size("heads", r"blocks\.\d+\.attn\.o\.weight", 1, "head_dim"),
    ),
    **{kind: (_GATED, *_HEADS) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2")},
    "gpt2": (Size("n_inner", r".*\.mlp\.c_fc\.weight", 1),),
    "gpt_neox": (Size("intermediate_size", r".*\.mlp\.dense_h_to_4h\.weight"),),
    "opt": (Size("ffn_dim", r".*\.fc1\.weight"),),
    "phi": (Size("intermediate_size", r".*\.mlp\.fc1\.weight"),),
    **{kind: (_BERT,) for kind in ("bert", "roberta", "vit", "deit", "electra", "dinov2")},
    "distilbert": (Size("hidden_dim", r".*\.ffn\.lin1\.weight"),),
}
"""Architectures whose configuration can describe a smaller network; of others, a program is written instead."""

NEEDED: Mapping[str, tuple[str, str, str]] = {
    "stemma-vit": ("head_dim", "width", "heads"),
    "llama": ("head_dim", "hidden_size", "num_attention_heads"),
    "mistral": ("head_dim", "hidden_size", "num_attention_heads"),
}
"""Entries that a configuration may leave out, and of which two they are the quotient."""


def alike(config: Mapping[str, Any] | None, net: Network) -> list[tuple[str, ...]]:
    """Groups that must keep equally many units, because one entry of the configuration sizes them all.

    Args:
        config: The model's configuration.
        net: What can be removed.

    Returns:
        Groups together; every group is in one bundle.
    """
    sizes = SIZES.get(str((config or {}).get("model_type")), ())
    single = [s for s in sizes if re.compile(s.weight).groups == 0]
    out: dict[object, list[str]] = {}
    for g in net.groups:
        keys = [s.key for s in single if any(re.fullmatch(s.weight, r.tensor) and r.axis == s.axis for r in g.rows)]
        out.setdefault((keys[0], g.size) if keys else g.name, []).append(g.name)
    return [tuple(names) for names in out.values()]


def describable(config: Mapping[str, Any] | None, net: Network) -> frozenset[str]:
    """Groups that the configuration can size.

    Returns:
        Their names; none where the architecture is not known.
    """
    sizes = SIZES.get(str((config or {}).get("model_type")), ())
    return frozenset(
        g.name for g in net.groups
        if any(re.fullmatch(s.weight, r.tensor) and r.axis == s.axis for s in sizes for r in g.rows)
    )  # fmt: skip


def resized(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any] | None:
    """The configuration of a network with weights of these shapes.

    Args:
        config: As it was.
        shapes: Shape by weight.

    Returns:
        The new configuration; None where the architecture is not known or one entry would need two values.
    """
    kind = str(config.get("model_type"))
    if kind not in SIZES:
        return None
    out = dict(config)
    needed = NEEDED.get(kind)
    if needed is not None and not out.get(needed[0]):
        out[needed[0]] = int(config[needed[1]]) // int(config[needed[2]])
    for size in SIZES[kind]:
        found = [(m, shapes[n][size.axis]) for n in shapes if (m := re.fullmatch(size.weight, n))]
        if not found or (size.per and not out.get(size.per)):
            continue
        if found[0][0].groups():
            by_number = {int(m[1]): n for m, n in found}
            out[size.key] = [by_number[i] for i in sorted(by_number)]
            continue
        values = {n // int(out[size.per]) if size.per else n for _, n in found}
        if len(values) != 1:
            return None
        value = values.pop()
        if size.key in out or value != _implied(config, size.key):
            out[size.key] = value
    return out


def describes(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether the network that a configuration of ours builds has these weights.

    A residual block whose widths became equal would be built without the projection that it has.

    Args:
        config: As `resized` made it.
        shapes: Shape by weight.

    Returns:
        True for architectures that are not ours: they are tried when they are written.
    """
    if not str(config.get("model_type")).startswith("stemma-"):
        return True
    import torch

    from stemma import networks

    with torch.device("meta"):
        built = networks.build(config).state_dict()
    return {n: tuple(t.shape) for n, t in built.items()} == {n: tuple(s) for n, s in shapes.items()}


def _implied(config: Mapping[str, Any], key: str) -> int | None:
    """What an entry that is left out stands for."""
    return 4 * int(config["n_embd"]) if key == "n_inner" and config.get("n_inner") is None else None
