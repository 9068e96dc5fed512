"""The methods under their published names; each is a frozen dataclass of its own parameters.

| name | paper | use |
|---|---|---|
| `ModelGiF` | Song et al., ICCV 2023 | `stemma.distance(a, b, probes, ModelGiF())`, `stemma.matrix(models, probes)` |
| `ModelDNA` | Mu et al., ECAI 2024 | `ModelDNA()(model, probes)`: a code of less than a kilobyte |
| `NeuralLineage` | Yu and Wang, CVPR 2024, learning-free | `NeuralLineage().best_parent(candidates, child, probes)` |
| `LineageDetector` | Yu and Wang, CVPR 2024, learned | `LineageDetector.load(file)(child, candidates)` |
| `ModHiFiPruning` | Kashyap et al., NeurIPS 2025 | `ModHiFiPruning(keep_ratio=.7)(model, probes)` |
| `ModHiFiUnlearning` | Kashyap et al., NeurIPS 2025 | `ModHiFiUnlearning()(model, forget)` |
| `AdaptiveGradientModulation` | Li et al., ICCV 2023 | a loss for any training loop |
| `UnlearningTest` | after Jia et al., ICLR 2022 | `UnlearningTest()(original, unlearned, forget, retrained)` |

Where a method has a published form that is not Stemma's default, `official()` gives it. Every name is loaded on first
use, with torch where the method needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.edits.pruning.pruning import Pruning as ModHiFiPruning
    from stemma.edits.unlearning.unlearning import Unlearning as ModHiFiUnlearning
    from stemma.fingerprints.dna import DNA as ModelDNA
    from stemma.fingerprints.gradient_field import GradientField as ModelGiF
    from stemma.kinship.function.finetuning_approximation import FineTuningApproximation as NeuralLineage
    from stemma.kinship.learned.detector import LineageDetector
    from stemma.multimodal.adaptive_gradient_modulation import AdaptiveGradientModulation
    from stemma.verification.unlearning import UnlearningTest

__all__ = [
    "AdaptiveGradientModulation",
    "LineageDetector",
    "ModHiFiPruning",
    "ModHiFiUnlearning",
    "ModelDNA",
    "ModelGiF",
    "NeuralLineage",
    "UnlearningTest",
]

_HOME = {
    "ModelGiF": ("fingerprints.gradient_field", "GradientField"),
    "ModelDNA": ("fingerprints.dna", "DNA"),
    "NeuralLineage": ("kinship.function.finetuning_approximation", "FineTuningApproximation"),
    "LineageDetector": ("kinship.learned.detector", "LineageDetector"),
    "ModHiFiPruning": ("edits.pruning.pruning", "Pruning"),
    "ModHiFiUnlearning": ("edits.unlearning.unlearning", "Unlearning"),
    "AdaptiveGradientModulation": ("multimodal.adaptive_gradient_modulation", "AdaptiveGradientModulation"),
    "UnlearningTest": ("verification.unlearning", "UnlearningTest"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stemma.methods' has no attribute '{name}'. There are: {', '.join(__all__)}")
    module, called = _HOME[name]
    return getattr(importlib.import_module(f"stemma.{module}"), called)


def __dir__() -> list[str]:
    return list(__all__)
