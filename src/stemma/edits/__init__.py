"""Edits of models: structured pruning and class unlearning, each with a plan before and a receipt after."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.edits.artefacts.trainable import load as load
    from stemma.edits.pruning.pruning import Pruning as Pruning
    from stemma.edits.unlearning.erasure import Erasure as Erasure
    from stemma.edits.unlearning.unlearning import Unlearning as Unlearning

ALL = ("Pruning", "Erasure", "Unlearning")
"""Names of the edits; each is loaded, with torch, on first use."""

_HOME = {
    "Pruning": "pruning.pruning",
    "Unlearning": "unlearning.unlearning",
    "Erasure": "unlearning.erasure",
    "load": "artefacts.trainable",
}


def __getattr__(name: str) -> Any:
    if name == "save":
        return importlib.import_module("stemma.edits.artefacts.save")
    if name not in _HOME:
        raise AttributeError(f"module 'stemma.edits' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stemma.edits.{_HOME[name]}"), name)
