"""Which kinds of PEFT adapters are read, and how; the others are refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from stemma.checkpoints.adapters.adapter import Adapter, Changes
from stemma.checkpoints.adapters.low_rank import lora, vera
from stemma.checkpoints.adapters.products import hadamard, kronecker
from stemma.checkpoints.adapters.rows import DELTA, gains, rescaling, tokens

READ: Mapping[str, Callable[[Adapter], Changes]] = {
    "LORA": lora,
    "ADALORA": lora,
    "VERA": vera,
    "LOHA": hadamard,
    "LOKR": kronecker,
    "IA3": rescaling,
    "LN_TUNING": gains,
    "TRAINABLE_TOKENS": tokens,
}
"""Readers by PEFT's own name of the kind."""

PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
)
"""Kinds that add inputs to their base, or keys and values, and change none of its weights."""


def changes(adapter: Adapter) -> Changes:
    """What an adapter does to its base, as PEFT merges it.

    Args:
        adapter: The adapter.

    Returns:
        The changed and the replaced tensors.

    Raises:
        UnreadableModelError: If it is of a kind that is not read, or inconsistent.
    """
    kind = str(adapter.config.get("peft_type") or "").upper()
    if kind in PROMPTS:
        adapter.refuse(f"a {kind} adapter changes no weight of its base", "give the base instead")
    read = READ.get(kind)
    if read is None:
        adapter.refuse(f"an adapter of the kind '{kind[:40] or 'unknown'}' is not read")
    hollow = next((n for n, t in adapter.tensors.items() if not t.shape or not t.size or not t.is_float), None)
    if hollow is not None:
        adapter.refuse(f"its tensor '{hollow}' is empty or holds no real numbers", "save it again")
    out = read(adapter)
    if read is not tokens and any(n.endswith(f".{DELTA}") for n in out.whole):
        more = tokens(Adapter(adapter.folder, out.whole, adapter.config, adapter.base_config))
        out = replace(out, whole=more.whole, tokens=more.tokens)
    plain = {n.replace(".modules_to_save.", ".").replace(".base_layer.", "."): t for n, t in out.whole.items()}
    return replace(out, whole=plain)
