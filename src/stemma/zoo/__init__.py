"""Families of real small networks with a known history: for calibration, training, tests and the demo.

Whatever needs torch is imported on first use: the names below are found lazily.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.zoo.collection import Member, Zoo
    from stemma.zoo.demonstration import Demo, demo
    from stemma.zoo.disguises import Step, disguise, original_names, write, write_disguised
    from stemma.zoo.independent import independents
    from stemma.zoo.pedigree import families, family, recipes
    from stemma.zoo.recipe import Recipe, build

__all__ = [
    "Demo", "Member", "Recipe", "Step", "Zoo", "build", "demo", "disguise", "families", "family", "independents",
    "original_names", "recipes", "write", "write_disguised",
]  # fmt: skip

_HOME = {
    "collection": ("Member", "Zoo"),
    "demonstration": ("Demo", "demo"),
    "disguises": ("Step", "disguise", "original_names", "write", "write_disguised"),
    "pedigree": ("families", "family", "recipes"),
    "independent": ("independents",),
    "recipe": ("Recipe", "build"),
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'stemma.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stemma.zoo.{home}"), name)
