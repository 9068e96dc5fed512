"""PEFT adapters, merged with their base model."""

from stemma.checkpoints.adapters.open import CONFIG, WEIGHTS, base_of, is_adapter, open_adapter
from stemma.checkpoints.adapters.without_base import refuse_without_base

__all__ = ["CONFIG", "WEIGHTS", "base_of", "is_adapter", "open_adapter", "refuse_without_base"]
