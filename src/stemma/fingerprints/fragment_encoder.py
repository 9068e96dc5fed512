"""The learned part of model DNA: encodes the features of each probe into a few channels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.tensor import ArrayStorage, Tensor
from stemma.errors import MisuseError, UnreadableModelError
from stemma.fingerprints.canonical_outputs import FEATURES, standardise

FORMAT = "stemma-dna"


@dataclass(frozen=True, eq=False)
class FragmentEncoder:
    """A linear map of the features plus, if it has hidden units, a hidden layer.

    It does not depend on probes, classes or architectures, so it can be used with any probes.

    Attributes:
        linear: `float32 [features, channels]`.
        inner: `float32 [features + 1, hidden]`, the last row is the bias; hidden may be 0.
        outer: `float32 [hidden, channels]`.
        classifier: Arrays of the provenance classifier learnt with it, by name; may be empty.
        about: Its training data, and its results on held-out families.
    """

    linear: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    classifier: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = [a.shape for a in (self.linear, self.inner, self.outer)]
        f, k, hidden = len(FEATURES), shapes[0][-1:], shapes[1][-1:]
        if not k or min(k) < 1 or shapes != [(f, *k), (f + 1, *hidden), (*hidden, *k)]:
            raise MisuseError(
                f"the encoder must map {len(FEATURES)} features to channels, but its arrays have the shapes "
                f"{list(self.linear.shape)}, {list(self.inner.shape)} and {list(self.outer.shape)}"
            )
        if not all(np.isfinite(a).all() for a in (self.linear, self.inner, self.outer, *self.classifier.values())):
            raise MisuseError("the encoder contains NaN or infinite numbers")
        expected = {"kin.inner": 2, "kin.bias": 1, "kin.outer": 1, "kin.linear": 1, "kin.offset": 1}
        full_digest = {n: a.ndim for n, a in self.classifier.items() if n in expected}
        if full_digest and (full_digest != expected or self.classifier["kin.inner"].shape[0] != self.channels
                      or self.classifier["kin.linear"].shape != (self.channels,)
                      or self.classifier["kin.inner"].shape[1:] != self.classifier["kin.outer"].shape
                      or self.classifier["kin.bias"].shape != self.classifier["kin.outer"].shape):  # fmt: skip
            raise MisuseError("the classifier of this encoder has missing arrays or wrong shapes")

    @property
    def channels(self) -> int:
        """Numbers per probe."""
        return self.linear.shape[1]

    @cached_property
    def digest(self) -> str:
        """Identity of the encoder; codes of encoders with different digests cannot be compared."""
        found = hashlib.sha256()
        for array in (self.linear, self.inner, self.outer):
            found.update(repr(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return "sha256:" + found.hexdigest()

    @cached_property
    def full_digest(self) -> str:
        """Identity of encoder and classifier together."""
        found = hashlib.sha256(self.digest.encode())
        for name, array in sorted(self.classifier.items()):
            found.update(repr((name, array.shape)).encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return "sha256:" + found.hexdigest()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Channels `float32 [n, channels]` of features `[n, features]`, standardised over the probes."""
        x = np.asarray(features, np.float32)
        hidden = np.tanh(x @ self.inner[:-1] + self.inner[-1])
        return standardise((x @ self.linear + hidden @ self.outer).astype(np.float64)).astype(np.float32)

    @classmethod
    def untrained(cls) -> "FragmentEncoder":
        """An encoder of eight features, with no weights: six for transferred and two for distilled models.

        They were chosen one after another on networks of pictures, tables and sounds (`benchmarks/dna_outside.py`).

        Returns:
            The encoder.
        """
        chosen = (
            "move of log-probabilities: noise", "move of log-probabilities: small noise 3",
            "Hellinger distance to probe +7", "whitened move: noise 3", "whitened move: noise 2",
            "whitened move: small noise", "Hellinger move: small noise 2", "entropy",
        )  # fmt: skip
        linear = np.zeros((len(FEATURES), len(chosen)), np.float32)
        linear[[FEATURES.index(name) for name in chosen], range(len(chosen))] = 1
        return cls.of(linear)

    @classmethod
    def of(cls, linear: np.ndarray) -> "FragmentEncoder":
        """A linear encoder from `[features, channels]`."""
        f, k = linear.shape
        return cls(np.asarray(linear, np.float32), np.zeros((f + 1, 0), np.float32), np.zeros((0, k), np.float32))

    def save(self, path: Path | str) -> None:
        """Write the encoder as one safetensors file."""
        arrays = {"linear": self.linear, "inner": self.inner, "outer": self.outer}
        arrays |= {f"classifier.{n}": a for n, a in self.classifier.items()}
        tensors = [
            Tensor(n, "F32", a.shape, ArrayStorage(lambda a=a: np.ascontiguousarray(a, np.float32)))
            for n, a in sorted(arrays.items())
        ]
        about = json.dumps(dict(self.about), sort_keys=True)
        safetensors.write(Path(path), tensors, {"format": FORMAT, "features": json.dumps(FEATURES), "about": about})

    @classmethod
    def load(cls, path: Path | str) -> "FragmentEncoder":
        """The encoder in a file written by `save`."""
        tensors, metadata = safetensors.read(Path(path))
        if metadata.get("format") != FORMAT:
            raise UnreadableModelError(f"{path} is not a DNA encoder. Train one with `stemma train dna`")
        if metadata.get("features") != json.dumps(FEATURES):
            raise UnreadableModelError(f"{path} is a DNA encoder of another version of Stemma. Train it again")
        try:
            arrays = {t.name: np.array(t.array(), np.float32) for t in tensors}
            classifier = {n.removeprefix("classifier."): a for n, a in arrays.items() if n.startswith("classifier.")}
            about = dict(json.loads(metadata["about"]))
            return cls(arrays["linear"], arrays["inner"], arrays["outer"], classifier, about)
        except (KeyError, TypeError, ValueError, IndexError, RecursionError, MisuseError) as error:
            raise UnreadableModelError(f"{path} is a damaged DNA encoder: {error}. Train it again") from error
