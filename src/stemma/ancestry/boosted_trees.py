"""Boosted decision trees stored as arrays: fitted with scikit-learn, evaluated with NumPy, saved as safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.tensor import ArrayStorage, Tensor, dtype_code
from stemma.errors import MisuseError, UnreadableModelError

_TABLE = ("feature", "threshold", "left", "right", "value", "root", "output", "baseline")


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """Trees whose leaves add up to one score per output.

    Attributes:
        feature: Column that a node tests; -1 for a leaf. `int32 [nodes]`.
        threshold: Values up to this go left. `float32 [nodes]`.
        left: Left child of a node. `int32 [nodes]`.
        right: Right child of a node. `int32 [nodes]`.
        value: Value of a leaf. `float32 [nodes]`.
        root: First node of each tree. `int32 [trees]`.
        output: Output that each tree adds to. `int32 [trees]`.
        baseline: Score without any tree. `float32 [outputs]`.
        about: Names of the features, and how the trees were fitted.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    root: np.ndarray
    output: np.ndarray
    baseline: np.ndarray
    about: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(self.about["features"])

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Sum of the leaves that each row `[n, features]` falls into, `float64 [n, outputs]`."""
        rows = np.asarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise MisuseError(f"these trees use {len(self.names)} features, but got an array of shape {rows.shape}")
        node = np.broadcast_to(self.root, (len(rows), len(self.root)))
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                break
            tested = np.take_along_axis(rows, np.maximum(feature, 0), axis=1)
            child = np.where(tested <= self.threshold[node], self.left[node], self.right[node])
            node = np.where(inner, child, node)
        leaves = self.value[node].astype(np.float64)
        out = np.tile(self.baseline.astype(np.float64), (len(rows), 1))
        for k in range(len(self.baseline)):
            out[:, k] += leaves[:, self.output == k].sum(axis=1)
        return out

    def save(self, path: Path) -> None:
        """Write the trees into a `.safetensors` file."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _TABLE}
        tensors = [
            Tensor(n, dtype_code(a.dtype) or "F32", a.shape, ArrayStorage(lambda a=a: a)) for n, a in arrays.items()
        ]
        safetensors.write(path, tensors, {"about": json.dumps(dict(self.about), sort_keys=True)})

    @staticmethod
    def load(path: Path) -> "BoostedTrees":
        """Read the trees that `save` wrote."""
        tensors, metadata = safetensors.read(path)
        arrays = {t.name: t.array() for t in tensors}
        try:
            return BoostedTrees(*(arrays[name] for name in _TABLE), json.loads(metadata["about"]))
        except (KeyError, ValueError) as e:
            raise UnreadableModelError(
                f"{path} holds no boosted trees ({e} is missing): give a file that `stemma train` wrote"
            ) from e
