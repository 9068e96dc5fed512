"""Adapters: what they change in their base, as PEFT merges them, or one sentence why they are not read."""

from stemma.models.adapters.alone import refuse_alone
from stemma.models.adapters.opening import WEIGHTS, is_adapter, open_adapter

__all__ = ["WEIGHTS", "is_adapter", "open_adapter", "refuse_alone"]
