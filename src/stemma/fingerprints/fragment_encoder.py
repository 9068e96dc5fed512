"""The learned part of a model's DNA: from the features of one answer to a few channels, the same for every probe."""

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
from stemma.fingerprints.canonical_outputs import FEATURES, standardised

FORMAT = "stemma-dna"


@dataclass(frozen=True, eq=False)
class FragmentEncoder:
    """A linear map of the features and, where it has hidden units, what they add.

    It knows no probe, no class and no architecture, so it serves any probes.

    Attributes:
        linear: `float32 [features, channels]`.
        inner: `float32 [features + 1, hidden]`, the last row is the bias; hidden may be 0.
        outer: `float32 [hidden, channels]`.
        classifier: Arrays of the provenance classifier that was learnt with it, by name; empty where there is none.
        about: What it was learnt from, and the figures on families of its own.
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
                f"an encoder takes {len(FEATURES)} features and gives channels, but its arrays have shapes "
                f"{list(self.linear.shape)}, {list(self.inner.shape)} and {list(self.outer.shape)}"
            )
        if not all(np.isfinite(a).all() for a in (self.linear, self.inner, self.outer, *self.classifier.values())):
            raise MisuseError("an encoder's numbers are finite, but some of these are not")
        wanted = {"kin.inner": 2, "kin.bias": 1, "kin.outer": 1, "kin.linear": 1, "kin.offset": 1}
        judge = {n: a.ndim for n, a in self.classifier.items() if n in wanted}
        if judge and (judge != wanted or self.classifier["kin.inner"].shape[0] != self.channels
                      or self.classifier["kin.linear"].shape != (self.channels,)
                      or self.classifier["kin.inner"].shape[1:] != self.classifier["kin.outer"].shape
                      or self.classifier["kin.bias"].shape != self.classifier["kin.outer"].shape):  # fmt: skip
            raise MisuseError("the classifier of this encoder lacks arrays or has other shapes than its channels")

    @property
    def channels(self) -> int:
        """Numbers per probe."""
        return self.linear.shape[1]

    @cached_property
    def digest(self) -> str:
        """Identity of what makes the codes; codes of encoders that differ in it cannot be compared."""
        found = hashlib.sha256()
        for array in (self.linear, self.inner, self.outer):
            found.update(repr(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return "sha256:" + found.hexdigest()

    @cached_property
    def judge(self) -> str:
        """Identity of encoder and classifier together: what a test judges by."""
        found = hashlib.sha256(self.digest.encode())
        for name, array in sorted(self.classifier.items()):
            found.update(repr((name, array.shape)).encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return "sha256:" + found.hexdigest()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Channels of every probe, standardised within the model.

        Args:
            features: `[n, features]`, as `stemma.fingerprints.canonical_outputs.features` gives them.

        Returns:
            `float32 [n, channels]`.
        """
        x = np.asarray(features, np.float32)
        hidden = np.tanh(x @ self.inner[:-1] + self.inner[-1])
        return standardised((x @ self.linear + hidden @ self.outer).astype(np.float64)).astype(np.float32)

    @classmethod
    def untrained(cls) -> "FragmentEncoder":
        """The four features that tell most by themselves: two for transferred models, two for distilled ones.

        Returns:
            An encoder without learned parts.
        """
        chosen = ("whitened move: noise", "entropy", "leverage", "whitened distance to probe +1")
        linear = np.zeros((len(FEATURES), len(chosen)), np.float32)
        linear[[FEATURES.index(name) for name in chosen], range(len(chosen))] = 1
        return cls.of(linear)

    @classmethod
    def of(cls, linear: np.ndarray) -> "FragmentEncoder":
        """A linear encoder.

        Args:
            linear: `[features, channels]`.

        Returns:
            The encoder.
        """
        f, k = linear.shape
        return cls(np.asarray(linear, np.float32), np.zeros((f + 1, 0), np.float32), np.zeros((0, k), np.float32))

    def save(self, path: Path | str) -> None:
        """Write it as one safetensors file.

        Args:
            path: The file; replaced if it is there.
        """
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
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The encoder.

        Raises:
            UnreadableModelError: If the file is none, or of other features.
        """
        tensors, metadata = safetensors.read(Path(path))
        if metadata.get("format") != FORMAT:
            raise UnreadableModelError(f"{path} holds no DNA encoder: train one with `stemma train dna`")
        if metadata.get("features") != json.dumps(FEATURES):
            raise UnreadableModelError(f"{path} is a DNA encoder of another version of Stemma: train it again")
        try:
            arrays = {t.name: np.array(t.array(), np.float32) for t in tensors}
            rest = {n.removeprefix("classifier."): a for n, a in arrays.items() if n.startswith("classifier.")}
            about = dict(json.loads(metadata["about"]))
            return cls(arrays["linear"], arrays["inner"], arrays["outer"], rest, about)
        except (KeyError, TypeError, ValueError, IndexError, RecursionError, MisuseError) as error:
            raise UnreadableModelError(f"{path} is a damaged DNA encoder: {error}. Train it again") from error
