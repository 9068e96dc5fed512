"""What becomes of an output head that the base ties to its embedding, and so does not keep.

Where an adapter replaces one of the two, PEFT's merge unties them. Where it trains rows of the embedding, both keep
them. Where a change of low rank is on one of the two, the adapter as it runs and PEFT's merge are different networks:
the merge adds the change to the one tensor that both share. Such an adapter is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, Tokens
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import EMBEDDING, OUTPUT

SPEAKS = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
"""Architectures that have a head beside their embedding."""

HEADS = {"whisper": "proj_out.weight"}
"""What heads are called that are not called `lm_head`, by what configs call the architecture."""

UNTIE = "load the base with tie_word_embeddings=False, merge the adapter into that and give the result"


def settle(
    adapter: Adapter, base: Mapping[str, Tensor], changes: Changes
) -> tuple[Changes, dict[str, Tensor], Mapping[str, Any]]:
    """Decide what the adapter does to a tied head.

    Args:
        adapter: The adapter.
        base: The base's tensors.
        changes: What the adapter changes.

    Returns:
        The changes without those that a tie makes superfluous; tensors that the merged model has and the base lacks;
        and the merged model's config.

    Raises:
        UnreadableModelError: If a change of low rank is on one of two tied tensors, or tokens of both differ.
    """
    config = adapter.base_config
    embedding = _first(EMBEDDING, base)
    named = _first(OUTPUT, [*changes.whole, *changes.changed, *changes.tokens])
    if embedding is None or _first(OUTPUT, base) or not (named or SPEAKS.search(_architecture(config))):
        return changes, {}, config
    near = _near(embedding, [*changes.whole, *changes.changed, *changes.tokens])
    if named in changes.changed or near in changes.changed:
        one, other = ("head", "embedding") if named in changes.changed else ("embedding", "head")
        adapter.refuse(
            f"it changes the {one} by low rank, which its base ties to the {other}: PEFT's merge changes both, and "
            "the adapter as it runs one of them",
            UNTIE,
        )
    head = named or HEADS.get(str(config.get("model_type")), "lm_head.weight")
    tokens = _of_both(adapter, dict(changes.tokens), head, near)
    whole = dict(changes.whole)
    new, old = whole.pop(head, None), whole.get(near)
    settled = replace(changes, whole=whole, tokens=tokens)
    if new is None and old is None:
        return settled, {}, config
    if new is not None and old is not None:
        ensured = bool(adapter.config.get("ensure_weight_tying"))
        if ensured or (new.shape == old.shape and np.array_equal(new.array(), old.array())):
            return settled, {}, config
    kept = base[embedding] if new is None else new
    untied = {**config, "tie_word_embeddings": False} if config else config
    return settled, {head: Tensor(head, kept.dtype, kept.shape, kept.storage)}, untied


def _of_both(adapter: Adapter, tokens: dict[str, Tokens], head: str, near: str) -> dict[str, Tokens]:
    """Trained tokens of a tied embedding are the head's too; PEFT keeps them once or twice."""
    of_head, of_embedding = tokens.pop(head, None), tokens.get(near)
    if of_head is None:
        return tokens
    alike = of_embedding is not None and of_embedding.index == of_head.index
    if of_embedding is None or not alike or not np.array_equal(of_embedding.rows.array(), of_head.rows.array()):
        adapter.refuse("it trains other tokens of the head than of the embedding that its base ties to it", UNTIE)
    return tokens


def _first(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    return next((n for n in names if pattern.search(n)), None)


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else ""


def _near(embedding: str, names: Iterable[str]) -> str:
    return next((n for n in names if n == embedding or n.endswith(f".{embedding}") or embedding.endswith(f".{n}")), "")
