"""The learned parts: how they are trained on zoos, and the small ones that ship with the package."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
