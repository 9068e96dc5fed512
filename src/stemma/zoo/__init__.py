"""Families of real small networks with a known history: for calibration, training, tests and the demo.

Whatever needs torch is imported on first use: the names below are found lazily.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.zoo.cases import Case, histories, relations
    from stemma.zoo.collection import Member, Zoo
    from stemma.zoo.demonstration import Demo, demo
    from stemma.zoo.disguises import Step, disguise, original_names, write, write_disguised
    from stemma.zoo.independent import independents
    from stemma.zoo.lineages import as_zoo, decoys, flat, forest, mixed, orphans, sibling_candidates, tree
    from stemma.zoo.pedigree import families, family, recipes
    from stemma.zoo.recipe import Recipe, build, build_all

__all__ = [
    "Case", "Demo", "Member", "Recipe", "Step", "Zoo", "as_zoo", "build", "build_all", "decoys", "demo", "disguise",
    "families", "family", "flat", "forest", "histories", "independents", "mixed", "original_names", "orphans",
    "recipes", "relations", "sibling_candidates", "tree", "write", "write_disguised",
]  # fmt: skip

_HOME = {
    "cases": ("Case", "histories", "relations"),
    "collection": ("Member", "Zoo"),
    "demonstration": ("Demo", "demo"),
    "disguises": ("Step", "disguise", "original_names", "write", "write_disguised"),
    "pedigree": ("families", "family", "recipes"),
    "independent": ("independents",),
    "lineages": ("as_zoo", "decoys", "flat", "forest", "mixed", "orphans", "sibling_candidates", "tree"),
    "recipe": ("Recipe", "build", "build_all"),
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'stemma.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stemma.zoo.{home}"), name)
