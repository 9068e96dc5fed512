"""Entries of configurations that size layers, and the configuration of a smaller model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class SizeEntry:
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
    SizeEntry("num_attention_heads", r".*\.self_attn\.q_proj\.weight", 0, "head_dim"),
    SizeEntry("num_key_value_heads", r".*\.self_attn\.k_proj\.weight", 0, "head_dim"),
)
_GATED = SizeEntry("intermediate_size", r".*\.mlp\.(?:gate|up)_proj\.weight")
_BERT = SizeEntry("intermediate_size", r".*\.intermediate\.dense\.weight|.*\.mlp\.fc1\.weight")

SIZES: Mapping[str, tuple[SizeEntry, ...]] = {
    "stemma-mlp": (SizeEntry("hidden", r"layers\.(\d+)\.weight"),),
    "stemma-cnn": (
        SizeEntry("stem", r"stem\.conv\.weight"),
        SizeEntry("widths", r"blocks\.(\d+)\.conv2\.weight"),
        SizeEntry("inner", r"blocks\.(\d+)\.conv1\.weight"),
    ),
    "stemma-vit": (
        SizeEntry("inner", r"blocks\.\d+\.mlp\.fc1\.weight"),
        SizeEntry("heads", r"blocks\.\d+\.attn\.o\.weight", 1, "head_dim"),
    ),
    **{kind: (_GATED, *_HEADS) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2")},
    "mixtral": _HEADS,
    "qwen2_moe": (
        SizeEntry("shared_expert_intermediate_size", r".*\.mlp\.shared_expert\.(?:gate|up)_proj\.weight"),
        *_HEADS,
    ),
    "gpt2": (SizeEntry("n_inner", r".*\.mlp\.c_fc\.weight", 1),),
    "gpt_neox": (SizeEntry("intermediate_size", r".*\.mlp\.dense_h_to_4h\.weight"),),
    "opt": (SizeEntry("ffn_dim", r".*\.fc1\.weight"),),
    "phi": (SizeEntry("intermediate_size", r".*\.mlp\.fc1\.weight"),),
    **{kind: (_BERT,) for kind in ("bert", "roberta", "vit", "deit", "electra", "dinov2")},
    "distilbert": (SizeEntry("hidden_dim", r".*\.ffn\.lin1\.weight"),),
}
"""Architectures whose configuration can describe a smaller network; of others, a program is written instead."""

DERIVED_ENTRIES: Mapping[str, tuple[str, str, str]] = {
    "stemma-vit": ("head_dim", "width", "heads"),
    "llama": ("head_dim", "hidden_size", "num_attention_heads"),
    "mistral": ("head_dim", "hidden_size", "num_attention_heads"),
    "mixtral": ("head_dim", "hidden_size", "num_attention_heads"),
    "qwen2_moe": ("head_dim", "hidden_size", "num_attention_heads"),
}
"""Entries that a configuration may leave out, and of which two they are the quotient."""


def entries(kind: str) -> tuple[str, ...]:
    """The entries that an architecture's configuration sizes its layers by."""
    return tuple(key for size in SIZES.get(kind, ()) for key in (size.key, size.per) if key)


def tied_groups(config: Mapping[str, Any] | None, graph: DependencyGraph) -> list[tuple[str, ...]]:
    """Sets of groups that must keep equally many units, because one entry of the configuration sizes them all."""
    sizes = SIZES.get(str((config or {}).get("model_type")), ())
    single = [s for s in sizes if re.compile(s.weight).groups == 0]
    out: dict[object, list[str]] = {}
    for g in graph.groups:
        keys = [s.key for s in single if any(re.fullmatch(s.weight, r.tensor) and r.axis == s.axis for r in g.rows)]
        out.setdefault((keys[0], g.size) if keys else g.name, []).append(g.name)
    return [tuple(names) for names in out.values()]


def resizable_groups(config: Mapping[str, Any] | None, graph: DependencyGraph) -> frozenset[str]:
    """Names of the groups that the configuration can size; none where the architecture is not known."""
    sizes = SIZES.get(str((config or {}).get("model_type")), ())
    return frozenset(
        g.name for g in graph.groups
        if any(re.fullmatch(s.weight, r.tensor) and r.axis == s.axis for s in sizes for r in g.rows)
    )  # fmt: skip


def resized_config(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any] | None:
    """The configuration for weights of these shapes; None if unknown, or if one entry would need two values."""
    kind = str(config.get("model_type"))
    if kind not in SIZES:
        return None
    out = dict(config)
    needed = DERIVED_ENTRIES.get(kind)
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


def builds_shapes(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether the network that a configuration of ours builds has these shapes; True for other architectures."""
    # A residual block whose widths became equal would be built without the projection that it has. Other architectures
    # are tried when they are written.
    if not str(config.get("model_type")).startswith("stemma-"):
        return True
    import torch

    from stemma import networks

    with torch.device("meta"):
        built = networks.build(config).state_dict()
    return {n: tuple(t.shape) for n, t in built.items()} == {n: tuple(s) for n, s in shapes.items()}


def _implied(config: Mapping[str, Any], key: str) -> int | None:
    """The value that an omitted entry stands for."""
    return 4 * int(config["n_embd"]) if key == "n_inner" and config.get("n_inner") is None else None
