"""Multimodal networks: contributions of modalities, competition between them, and balanced training.

Every name below is fetched on first use, so that importing this loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.multimodal.adaptive_gradient_modulation import AdaptiveGradientModulation as AdaptiveGradientModulation
    from stemma.multimodal.adaptive_gradient_modulation import Modulated as Modulated
    from stemma.multimodal.competition_strength import CompetitionTest as CompetitionTest
    from stemma.multimodal.contribution import ContributionTest as ContributionTest
    from stemma.multimodal.masks import AttentionMask as AttentionMask
    from stemma.multimodal.masks import Learned as Learned
    from stemma.multimodal.masks import Mean as Mean
    from stemma.multimodal.masks import Permuted as Permuted
    from stemma.multimodal.masks import TokenPad as TokenPad
    from stemma.multimodal.masks import Zero as Zero
    from stemma.multimodal.modulation_rule import Modulation as Modulation
    from stemma.multimodal.responses import shapley_responses as shapley_responses
    from stemma.multimodal.strength_test import StrengthTest as StrengthTest

_HOME = {
    "AdaptiveGradientModulation": "adaptive_gradient_modulation",
    "Modulated": "adaptive_gradient_modulation",
    "Modulation": "modulation_rule",
    "shapley_responses": "responses",
    "ContributionTest": "contribution",
    "CompetitionTest": "competition_strength",
    "StrengthTest": "strength_test",
    "Zero": "masks",
    "Mean": "masks",
    "Learned": "masks",
    "Permuted": "masks",
    "AttentionMask": "masks",
    "TokenPad": "masks",
}

__all__ = [*_HOME]


_RENAMED = {"LeaningTest": "ContributionTest"}
"""Old names, accepted for one release."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from stemma.deprecation import warn_renamed

        warn_renamed(name, _RENAMED[name])
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"module 'stemma.multimodal' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stemma.multimodal.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
