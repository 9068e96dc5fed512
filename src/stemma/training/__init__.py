"""The learned parts: training on zoos, and the pretrained models that ship with the package."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.ancestry.parent_model import ParentModel
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.kinship.learned.detector import LineageDetector

PRETRAINED = Path(__file__).parent / "pretrained"
"""Folder of the pretrained files."""


def shipped_detector() -> "LineageDetector":
    """The lineage detector that ships with the package; `made` says how it was trained."""
    from stemma.kinship.learned.detector import LineageDetector

    return LineageDetector.load(PRETRAINED / "lineage_detector.safetensors")


@lru_cache(maxsize=1)
def shipped_parent_model() -> "ParentModel":
    """The parent model that ships with the package; `trees.about` says how it was trained and calibrated."""
    from stemma.ancestry.boosted_trees import BoostedTrees
    from stemma.ancestry.direction import DirectionModel
    from stemma.ancestry.parent_model import ParentModel

    direction = DirectionModel(BoostedTrees.load(PRETRAINED / "direction.safetensors"))
    return ParentModel(direction, BoostedTrees.load(PRETRAINED / "parenthood.safetensors"))


@lru_cache(maxsize=2)
def shipped_dna(kind: str = "image") -> "FragmentEncoder":
    """The encoder of Model DNA for probes of this kind: a learned file if one ships, else the code without weights.

    Args:
        kind: Of the probes.

    Returns:
        The encoder. No learned one ships: it lost in one way of deriving children where its training had not seen the
        kind of input (`benchmarks/dna_outside.py`).
    """
    from stemma.fingerprints.fragment_encoder import FragmentEncoder

    path = PRETRAINED / f"dna_{'text' if kind == 'tokens' else 'images'}.safetensors"
    return FragmentEncoder.load(path) if path.exists() else FragmentEncoder.untrained()
