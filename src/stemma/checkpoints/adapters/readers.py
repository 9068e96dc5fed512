"""Supported PEFT adapter types and their readers."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from stemma.checkpoints.adapters.adapter import Adapter, Changes
from stemma.checkpoints.adapters.low_rank import lora, vera
from stemma.checkpoints.adapters.lycoris import loha, lokr
from stemma.checkpoints.adapters.rows import DELTA, ia3, ln_tuning, trainable_tokens

READERS: Mapping[str, Callable[[Adapter], Changes]] = {
    "LORA": lora,
    "ADALORA": lora,
    "VERA": vera,
    "LOHA": loha,
    "LOKR": lokr,
    "IA3": ia3,
    "LN_TUNING": ln_tuning,
    "TRAINABLE_TOKENS": trainable_tokens,
}
"""Readers by PEFT type."""

PROMPT_METHODS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
)
"""PEFT types that add inputs, keys or values and change no weights."""


def read_changes(adapter: Adapter) -> Changes:
    """The tensors that an adapter changes or replaces, as PEFT merges it."""
    kind = str(adapter.config.get("peft_type") or "").upper()
    if kind in PROMPT_METHODS:
        adapter.refuse(f"a {kind} adapter changes no weights of its base", "use the base model instead")
    read = READERS.get(kind)
    if read is None:
        adapter.refuse(f"adapters of type '{kind[:40] or 'unknown'}' are not supported")
    invalid = next((n for n, t in adapter.tensors.items() if not t.shape or not t.size or not t.is_float), None)
    if invalid is not None:
        adapter.refuse(f"its tensor '{invalid}' is empty or not of a floating-point type", "save it again")
    out = read(adapter)
    if read is not trainable_tokens and any(n.endswith(f".{DELTA}") for n in out.replaced):
        token_changes = trainable_tokens(Adapter(adapter.folder, out.replaced, adapter.config, adapter.base_config))
        out = replace(out, replaced=token_changes.replaced, tokens=token_changes.tokens)
    plain = {n.replace(".modules_to_save.", ".").replace(".base_layer.", "."): t for n, t in out.replaced.items()}
    return replace(out, replaced=plain)
