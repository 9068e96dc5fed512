"""Families of real small networks with a known history: for calibration, training, tests and the demo.

Whatever needs torch is imported on first use: the names below are found lazily.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.zoo.disguises import Step, disguise, original_names, write, write_disguised
    from stemma.zoo.independent import independents

__all__ = ["Step", "disguise", "independents", "original_names", "write", "write_disguised"]

_HOME = {
    "Step": "disguises",
    "disguise": "disguises",
    "independents": "independent",
    "original_names": "disguises",
    "write": "disguises",
    "write_disguised": "disguises",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stemma.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stemma.zoo.{_HOME[name]}"), name)
