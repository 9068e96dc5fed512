"""The learned lineage detector: which of many candidates a model was made from, or none of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import numpy as np

from stemma.checkpoints.formats import safetensors
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import ArrayStorage, Tensor, encode
from stemma.errors import MisuseError, UnreadableModelError
from stemma.kinship.learned import batches
from stemma.kinship.learned.weight_samples import sample_weights
from stemma.probes import Probes
from stemma.types import Digest, ModelRef, Spec

if TYPE_CHECKING:
    import torch

PRESETS = ("v2", "paper")
FORMAT = "stemma lineage detector"


@dataclass(frozen=True, slots=True)
class Descent:
    """The answer of the lineage detector.

    Attributes:
        child: The model in question.
        candidates: Its possible parents.
        probabilities: Of each candidate to be the nearest ancestor among them.
        none: Probability that no candidate is an ancestor; together with `probabilities` it sums to 1.
        layers: Number of layers that each candidate shares with the child; a candidate that shares less than half of
            the child's layers has probability 0.
    """

    child: ModelRef
    candidates: tuple[ModelRef, ...]
    probabilities: tuple[float, ...]
    none: float
    layers: tuple[int, ...]

    @property
    def parent(self) -> ModelRef | None:
        """The likeliest candidate; None where `none` is as likely."""
        best = int(np.argmax(self.probabilities)) if self.probabilities else -1
        return self.candidates[best] if best >= 0 and self.probabilities[best] > self.none else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; candidates in descending order of probability."""
        order = sorted(range(len(self.candidates)), key=lambda i: -self.probabilities[i])
        rows = [
            {**asdict(self.candidates[i]), "probability": self.probabilities[i], "layers": self.layers[i]}
            for i in order
        ]
        return {
            "child": asdict(self.child),
            "parent": None if self.parent is None else asdict(self.parent),
            "none": self.none,
            "candidates": rows,
        }


@final
@dataclass(frozen=True)
class LineageDetector:
    """A trained network that compares the same entries of a child and of its candidates to find the parent.

    It compares weights in place: permuted units have to be brought back into order first. Order and names of
    candidates do not matter; `v2` takes any number of them.
    Cost: the first rows of up to `cap` matrices per model, and about a millisecond per candidate.

    Attributes:
        preset: `v2`, or `paper` for the published architecture (one layer, needs probes, closed set unless its null
            token was trained).
        width: Width of the tokens.
        blocks: Transformer blocks of `v2`.
        heads: Attention heads of `v2`.
        cap: Most layers that are compared.
        per_layer: Entries per layer from which lengths and angles are computed.
        crop: Entries per layer, and of the features, that the encoder reads.
        probes: Number of probes used, of those given.
        layer: Name of the layer for `paper`; the largest common one unless given.
        seed: Seed for the choice of entries.
        temperature: Divides the logits; fitted on families that were not used for training.
        shift: Added to the logit of none; fitted with the temperature.
        weights: Weights of the network, by name.
        made: How it was trained, as shown to users.

    Source: Yu and Wang, Neural Lineage, CVPR 2024, arXiv:2406.11129, is preset `paper`; `v2` departs from it in ways
    that docs/methods/detector.md lists.
    """

    preset: str = "v2"
    width: int = 64
    blocks: int = 2
    heads: int = 4
    cap: int = 12
    per_layer: int = 1024
    crop: int = 64
    probes: int = 64
    layer: str = ""
    seed: int = 0
    temperature: float = 1.0
    shift: float = 0.0
    weights: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    made: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    name = "lineage-detector"
    version = 1

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise MisuseError(f"no preset of the detector is called '{self.preset}'. There are: {', '.join(PRESETS)}")
        if min(self.width, self.blocks, self.heads, self.cap, self.per_layer, self.crop, self.probes) < 1:
            raise MisuseError("width, blocks, heads, cap, per_layer, crop and probes must be at least 1")
        if self.width % self.heads:
            raise MisuseError(f"the width ({self.width}) must be a multiple of the number of heads ({self.heads})")
        if not self.temperature > 0:
            raise MisuseError(f"a temperature is above 0, not {self.temperature}")

    @cached_property
    def weights_digest(self) -> Digest:
        """Identity of what was learned."""
        found = hashlib.sha256()
        for name in sorted(self.weights):
            array = np.ascontiguousarray(self.weights[name], "<f4")
            found.update(repr((name, array.shape)).encode() + array.tobytes())
        return Digest("sha256:" + found.hexdigest())

    @property
    def config(self) -> dict[str, Any]:
        """The parameters without what was learned from data as weights."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("weights", "made")}

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters and weights."""
        return Spec(self.name, self.version, {**self.config, "weights": self.weights_digest})

    def untrained(self) -> "torch.nn.Module":
        """A network of this configuration, randomly initialised, in training mode."""
        if self.preset == "paper":
            from stemma.kinship.learned.paper_network import PaperScorer

            return PaperScorer(self.width)
        from stemma.kinship.learned.network import Scorer

        return Scorer(self.width, self.blocks, self.heads)

    @cached_property
    def network(self) -> "torch.nn.Module":
        """The trained network; raises `MisuseError` if the weights do not fit the configuration."""
        import torch

        with torch.random.fork_rng(devices=[]):
            module = self.untrained()
        known = {n: torch.from_numpy(np.array(a, np.float32)) for n, a in self.weights.items()}
        own = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
        if wrong := sorted(own.keys() ^ known.keys()) or [n for n in own if own[n].shape != known[n].shape]:
            raise MisuseError(
                f"the weights of this detector do not fit its configuration (first at '{wrong[0]}'): train one with "
                "`stemma train detector`, or load a file that it wrote"
            )
        module.load_state_dict(known, strict=False)
        return module.eval().requires_grad_(False)

    def __call__(self, child: Model, candidates: Sequence[Model], probes: Probes | None = None) -> Descent:
        """Which candidate a model was made from.

        Args:
            child: The model in question.
            candidates: At least one other model, of any architecture.
            probes: Inputs of all models, best from the child's data; `v2` works without.

        Returns:
            A probability for each candidate, and for none of them.

        Raises:
            MisuseError: If there are no candidates, or preset `paper` has no probes or no common layer.
        """
        if not candidates:
            raise MisuseError("the detector was given no candidates: give at least one model to choose from")
        models = [child, *candidates]
        question = self._paper(models, probes) if self.preset == "paper" else self._v2(models, probes)
        shared = question["shared"].sum(1) if "shared" in question else question["candidates"].astype(int)
        found = self.probabilities(self.logits([question]))[0]
        return Descent(
            child.ref,
            tuple(c.ref for c in candidates),
            tuple(float(p) for p in found[:-1]),
            float(found[-1]),
            tuple(int(n) for n in shared),
        )

    def _v2(self, models: list[Model], probes: Probes | None) -> batches.Arrays:
        seen = sample_weights(models, cap=self.cap, per_layer=self.per_layer, seed=self.seed)
        if probes is not None:
            seen = batches.with_features(seen, models, probes.take(slice(0, self.probes)))
        return batches.v2_question(seen, 0, np.arange(1, len(models)), self.crop)

    def _paper(self, models: list[Model], probes: Probes | None) -> batches.Arrays:
        if probes is None:
            raise MisuseError("preset paper compares features too: give probes, or use preset v2")
        matrices = batches.layer_matrices(models, self.layer or batches.shared_layer(models))
        seen = batches.with_features(
            sample_weights(models, cap=1, per_layer=1, seed=self.seed), models, probes.take(slice(0, self.probes))
        )
        if seen.features is None or not np.all(seen.has_features):
            raise MisuseError("preset paper needs candidates whose features have the child's width: use preset v2")
        return batches.paper_question(matrices, seen.features, 0, np.arange(1, len(models)))

    def logits(self, questions: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Logits before calibration `float64 [questions, candidates + 1]`, the last column for none."""
        import torch

        with torch.no_grad():
            return self.network(batches.stacked(questions)).double().numpy()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of logits; rows sum to 1."""
        x = logits / self.temperature
        x[..., -1] += self.shift
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def save(self, path: Path | str) -> None:
        """Write weights and configuration as one safetensors file.

        Args:
            path: The file; replaced if it is there.
        """
        code = "F16" if self.preset == "v2" else "F32"
        tensors = [
            Tensor(n, code, a.shape, ArrayStorage(partial(_encoded, a, code))) for n, a in sorted(self.weights.items())
        ]
        metadata = {
            "format": FORMAT,
            "version": str(self.version),
            "config": json.dumps(self.config, sort_keys=True),
            "made": json.dumps(dict(self.made), sort_keys=True),
        }
        safetensors.write(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "LineageDetector":
        """Read a detector that `save` wrote.

        Args:
            path: The file.

        Returns:
            The detector; its weights are half precision where the file's are.

        Raises:
            UnreadableModelError: If the file is no lineage detector, or of another version.
        """
        tensors, metadata = safetensors.read(Path(path))
        if metadata.get("format") != FORMAT or metadata.get("version") != str(cls.version):
            raise UnreadableModelError(
                f"{path} is not a lineage detector of version {cls.version}: train one with `stemma train detector`"
            )
        try:
            config, made = json.loads(metadata["config"]), json.loads(metadata["made"])
            weights = {t.name: np.array(t.array()) for t in tensors}
            return cls(**config, weights=MappingProxyType(weights), made=made)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableModelError(f"{path} is a damaged lineage detector: {error}. Train it again") from error


def _encoded(array: np.ndarray, code: str) -> np.ndarray:
    return encode(np.asarray(array, np.float32), code)
