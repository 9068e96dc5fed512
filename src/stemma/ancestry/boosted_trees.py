"""Boosted decision trees as a table: fitted with scikit-learn, evaluated with NumPy alone, stored as safetensors."""

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
        feature: Column that a node looks at; -1 for a leaf. `int32 [nodes]`.
        threshold: Values up to this go left. `float32 [nodes]`.
        left: Node to go to. `int32 [nodes]`.
        right: The other one.
        value: Of a leaf. `float32 [nodes]`.
        root: First node of each tree. `int32 [trees]`.
        output: Score that each tree adds to. `int32 [trees]`.
        baseline: Score without any tree. `float32 [outputs]`.
        about: Names of the features, and how the trees were made.
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
        """The features, in order."""
        return tuple(self.about["features"])

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Sum of the leaves that each row falls into.

        Args:
            rows: `[n, features]`.

        Returns:
            `float64 [n, outputs]`.

        Raises:
            MisuseError: If the rows have another number of features.
        """
        rows = np.asarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise MisuseError(f"these trees look at {len(self.names)} features, got an array of shape {rows.shape}")
        at = np.broadcast_to(self.root, (len(rows), len(self.root)))
        while True:
            feature = self.feature[at]
            inner = feature >= 0
            if not inner.any():
                break
            looked = np.take_along_axis(rows, np.maximum(feature, 0), axis=1)
            below = np.where(looked <= self.threshold[at], self.left[at], self.right[at])
            at = np.where(inner, below, at)
        leaves = self.value[at].astype(np.float64)
        out = np.tile(self.baseline.astype(np.float64), (len(rows), 1))
        for k in range(len(self.baseline)):
            out[:, k] += leaves[:, self.output == k].sum(axis=1)
        return out

    def save(self, path: Path) -> None:
        """Write the table.

        Args:
            path: A `.safetensors` file.
        """
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _TABLE}
        tensors = [
            Tensor(n, dtype_code(a.dtype) or "F32", a.shape, ArrayStorage(lambda a=a: a)) for n, a in arrays.items()
        ]
        safetensors.write(path, tensors, {"about": json.dumps(dict(self.about), sort_keys=True)})

    @staticmethod
    def load(path: Path) -> "BoostedTrees":
        """Read a table that `save` wrote.

        Args:
            path: The file.

        Returns:
            The trees.

        Raises:
            UnreadableModelError: If it is something else.
        """
        tensors, metadata = safetensors.read(path)
        found = {t.name: t.array() for t in tensors}
        try:
            return BoostedTrees(*(found[name] for name in _TABLE), json.loads(metadata["about"]))
        except (KeyError, ValueError) as e:
            raise UnreadableModelError(f"{path} holds no boosted trees: {e} is missing. Was it made by train?") from e
