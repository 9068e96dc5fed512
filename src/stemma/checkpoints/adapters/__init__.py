"""Adapters: what they change in their base, as PEFT merges them, or one sentence why they are not read."""

from stemma.checkpoints.adapters.open import WEIGHTS, is_adapter, open_adapter
from stemma.checkpoints.adapters.without_base import refuse_alone

__all__ = ["WEIGHTS", "is_adapter", "open_adapter", "refuse_alone"]
