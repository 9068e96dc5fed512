"""Output heads that the base ties to its embedding and does not store separately.

If an adapter replaces one of the two, PEFT's merge unties them. If it trains rows of the embedding, both get them. If
a low-rank update is on one of the two, the merged and the unmerged model differ, because the merge changes the shared
tensor; such an adapter is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, Tokens
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import EMBEDDING, OUTPUT

GENERATIVE = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
"""Architectures with an output head over tokens."""

HEADS = {"whisper": "proj_out.weight"}
"""Name of the head by `model_type`, where it is not `lm_head`."""

UNTIE = "load the base with tie_word_embeddings=False, merge the adapter into it and use the merged model"


def resolve_tied_head(
    adapter: Adapter, base: Mapping[str, Tensor], changes: Changes
) -> tuple[Changes, dict[str, Tensor], Mapping[str, Any]]:
    """Resolve an output head tied to the embedding: remaining changes, added tensors, config of the merged model."""
    config = adapter.base_config
    embedding = _first_match(EMBEDDING, base)
    named = _first_match(OUTPUT, [*changes.replaced, *changes.changed, *changes.tokens])
    if embedding is None or _first_match(OUTPUT, base) or not (named or GENERATIVE.search(_architecture(config))):
        return changes, {}, config
    embedding_name = _matching_name(embedding, [*changes.replaced, *changes.changed, *changes.tokens])
    if named in changes.changed or embedding_name in changes.changed:
        one, other = ("head", "embedding") if named in changes.changed else ("embedding", "head")
        adapter.refuse(
            f"its low-rank update is on the {one}, which the base ties to the {other}: merged with PEFT it changes "
            "both, "
            "unmerged only one",
            UNTIE,
        )
    head = named or HEADS.get(str(config.get("model_type")), "lm_head.weight")
    tokens = _merge_token_rows(adapter, dict(changes.tokens), head, embedding_name)
    whole = dict(changes.replaced)
    new, old = whole.pop(head, None), whole.get(embedding_name)
    resolved = replace(changes, replaced=whole, tokens=tokens)
    if new is None and old is None:
        return resolved, {}, config
    if new is not None and old is not None:
        ensured = bool(adapter.config.get("ensure_weight_tying"))
        if ensured or (new.shape == old.shape and np.array_equal(new.array(), old.array())):
            return resolved, {}, config
    kept = base[embedding] if new is None else new
    untied = {**config, "tie_word_embeddings": False} if config else config
    return resolved, {head: Tensor(head, kept.dtype, kept.shape, kept.storage)}, untied


def _merge_token_rows(adapter: Adapter, tokens: dict[str, Tokens], head: str, embedding_name: str) -> dict[str, Tokens]:
    """Token rows without a second copy for the tied head; PEFT stores them once or twice."""
    of_head, of_embedding = tokens.pop(head, None), tokens.get(embedding_name)
    if of_head is None:
        return tokens
    same_rows = of_embedding is not None and of_embedding.index == of_head.index
    if of_embedding is None or not same_rows or not np.array_equal(of_embedding.rows.array(), of_head.rows.array()):
        adapter.refuse("its trained token rows differ between the embedding and the head, which the base ties", UNTIE)
    return tokens


def _first_match(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    return next((n for n in names if pattern.search(n)), None)


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else ""


def _matching_name(embedding: str, names: Iterable[str]) -> str:
    return next((n for n in names if n == embedding or n.endswith(f".{embedding}") or embedding.endswith(f".{n}")), "")
