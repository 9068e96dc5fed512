"""The learned parts: how they are trained on zoos, and the small ones that ship with the package."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.ancestry.parenthood import Parenthood
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.kinship.learned.detector import LineageDetector

PRETRAINED = Path(__file__).parent / "pretrained"
"""Where the files of trained parts lie."""


def shipped_detector() -> "LineageDetector":
    """The lineage detector that ships with the package.

    Returns:
        The detector; `made` says how it was trained.
    """
    from stemma.kinship.learned.detector import LineageDetector

    return LineageDetector.load(PRETRAINED / "lineage_detector.safetensors")


@lru_cache(maxsize=1)
def shipped_parenthood() -> "Parenthood":
    """The model of parents that ships with the package, with the model of pairs inside.

    Returns:
        The model; `trees.about` says how it was trained and calibrated.
    """
    from stemma.ancestry.boosted_trees import BoostedTrees
    from stemma.ancestry.direction import Direction
    from stemma.ancestry.parenthood import Parenthood

    direction = Direction(BoostedTrees.load(PRETRAINED / "direction.safetensors"))
    return Parenthood(direction, BoostedTrees.load(PRETRAINED / "parenthood.safetensors"))


@lru_cache(maxsize=2)
def shipped_dna(kind: str = "image") -> "FragmentEncoder":
    """The encoder of Model DNA that ships with the package.

    Args:
        kind: Of the probes: `tokens` has an encoder of its own, everything else that of pictures.

    Returns:
        The encoder with its classifier; `about` says how it was trained.
    """
    from stemma.fingerprints.fragment_encoder import FragmentEncoder

    return FragmentEncoder.load(PRETRAINED / f"dna_{'text' if kind == 'tokens' else 'images'}.safetensors")
