"""Families of small real networks with a known history, for calibration, training, tests and the demo.

Whatever needs torch is imported on first use: the names below are found lazily.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.zoo.collection import Member, Zoo
    from stemma.zoo.demo_family import Demo, demo
    from stemma.zoo.disguises import Step, disguise, original_names, write, write_disguised
    from stemma.zoo.evaluation_pairs import EvaluationPair, histories, relations
    from stemma.zoo.independent_networks import independents
    from stemma.zoo.lineages import as_zoo, decoys, flat, forest, mixed, sibling_candidates, tree
    from stemma.zoo.parent_searches import orphans
    from stemma.zoo.pedigree import families, family, recipes
    from stemma.zoo.recipe import Recipe
    from stemma.zoo.recipe_builder import build, build_all

__all__ = [
    "Demo", "EvaluationPair", "Member", "Recipe", "Step", "Zoo", "as_zoo", "build", "build_all", "decoys", "demo",
    "disguise", "families", "family", "flat", "forest", "histories", "independents", "mixed", "original_names",
    "orphans", "recipes", "relations", "sibling_candidates", "tree", "write", "write_disguised",
]  # fmt: skip

_HOME = {
    "evaluation_pairs": ("EvaluationPair", "histories", "relations"),
    "collection": ("Member", "Zoo"),
    "demo_family": ("Demo", "demo"),
    "disguises": ("Step", "disguise", "original_names", "write", "write_disguised"),
    "parent_searches": ("orphans",),
    "pedigree": ("families", "family", "recipes"),
    "independent_networks": ("independents",),
    "lineages": ("as_zoo", "decoys", "flat", "forest", "mixed", "sibling_candidates", "tree"),
    "recipe_builder": ("build", "build_all"),
    "recipe": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    if name == "Case":
        warnings.warn("stemma.zoo.Case is called EvaluationPair now", DeprecationWarning, stacklevel=2)
        name = "EvaluationPair"
    home = next((home for home, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'stemma.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stemma.zoo.{home}"), name)
