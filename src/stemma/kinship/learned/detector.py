"""The learned lineage detector: what a model was made from, which candidates are related, or none of them."""

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
from stemma.kinship.increments import trained_batches
from stemma.kinship.learned import batches
from stemma.kinship.learned.bounds import bounded
from stemma.kinship.learned.evidence import RELATED, Evidence
from stemma.kinship.learned.weight_samples import sample_weights
from stemma.probes import Probes
from stemma.types import Digest, ModelRef, Spec

if TYPE_CHECKING:
    import torch

PRESETS = ("v3", "paper")
FORMAT = "stemma lineage detector"

LATER_COUNTER_FACTOR = 0.1
"""Factor on the probability of a parent whose batch counter is higher than its child's."""

NAMED = 0.55
"""Probability above which a candidate is called the parent."""


@dataclass(frozen=True, slots=True)
class Descent:
    """The answer of the lineage detector.

    `probabilities`, `unordered` and `none` sum to 1.

    Attributes:
        child: The model in question.
        candidates: Its possible parents.
        probabilities: Of each candidate to be the nearest ancestor among them.
        unordered: Probability that candidates are related to the child, but that none is its ancestor, or that
            nothing shows which came first.
        none: Probability that no candidate is related to it at all.
        related: Probability of each candidate to be related to the child, in whatever order.
        layers: Number of layers in which each candidate was found related to the child, and was compared.
    """

    child: ModelRef
    candidates: tuple[ModelRef, ...]
    probabilities: tuple[float, ...]
    unordered: float
    none: float
    related: tuple[float, ...]
    layers: tuple[int, ...]

    @property
    def parent(self) -> ModelRef | None:
        """The likeliest candidate, if it is likelier than not; None where the order is unknown or nothing related."""
        best = int(np.argmax(self.probabilities)) if self.probabilities else -1
        return self.candidates[best] if best >= 0 and self.probabilities[best] > NAMED else None

    @property
    def relatives(self) -> tuple[ModelRef, ...]:
        """Candidates that are related to the child, the most probable parents first."""
        kept = [i for i in self._order if self.related[i] >= RELATED]
        return tuple(self.candidates[i] for i in kept)

    @property
    def answer(self) -> str:
        """`parent`, `related` (relatives, but no parent can be named) or `none`."""
        return "parent" if self.parent is not None else "related" if self.relatives else "none"

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.candidates)), key=lambda i: (-self.probabilities[i], -self.related[i]))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; candidates in descending order of probability."""
        rows = [
            {
                **asdict(self.candidates[i]),
                "probability": self.probabilities[i],
                "related": self.related[i],
                "layers": self.layers[i],
            }
            for i in self._order
        ]
        return {
            "child": asdict(self.child),
            "answer": self.answer,
            "parent": None if self.parent is None else asdict(self.parent),
            "unordered": self.unordered,
            "none": self.none,
            "candidates": rows,
        }


@final
@dataclass(frozen=True)
class LineageDetector:
    """A trained network that compares the same entries of a child and of its candidates to find the parent.

    It compares weights in place: permuted units have to be brought back into order first. Order and names of
    candidates do not matter; `v3` takes any number of them. Layers that are not related are left out.
    Cost: the first rows of up to `cap` matrices per model; of the related candidates the nearest eight are compared
    with one another, about a second together.

    Attributes:
        preset: `v3`, or `paper` for the published architecture (one layer, needs probes, closed set unless its null
            token was trained).
        width: Width of the layers.
        cap: Most layers that are compared.
        per_layer: Entries per layer that are compared.
        probes: Number of probes that `paper` uses, of those given.
        layer: Name of the layer for `paper`; the largest common one unless given.
        seed: Seed for the choice of entries.
        temperature: Divides the logits; fitted on families that were not used for training.
        shift: Added to the last logit (unordered, or none of `paper`); fitted with the temperature.
        weights: Weights of the network, by name.
        made: How it was trained, as shown to users.

    Source: Yu and Wang, Neural Lineage, CVPR 2024, arXiv:2406.11129, is preset `paper`; `v3` departs from it in ways
    that docs/methods/detector.md lists.
    """

    preset: str = "v3"
    width: int = 32
    cap: int = 12
    per_layer: int = 4096
    probes: int = 64
    layer: str = ""
    seed: int = 0
    temperature: float = 1.0
    shift: float = 0.0
    weights: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    made: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    name = "lineage-detector"
    version = 2

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise MisuseError(f"no preset of the detector is called '{self.preset}'. There are: {', '.join(PRESETS)}")
        if min(self.width, self.cap, self.per_layer, self.probes) < 1:
            raise MisuseError("width, cap, per_layer and probes must be at least 1")
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

        return Scorer(self.width)

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
        """Which candidate a model was made from, and which are related.

        Args:
            child: The model in question.
            candidates: At least one other model, of any architecture.
            probes: Inputs of all models, best from the child's data; only `paper` uses them.

        Returns:
            A probability for each candidate to be the parent, for an order that is unknown, and for none of them.

        Raises:
            MisuseError: If there are no candidates, or preset `paper` has no probes or no common layer.
        """
        if not candidates:
            raise MisuseError("the detector was given no candidates: give at least one model to choose from")
        models = [child, *candidates]
        refs = tuple(c.ref for c in candidates)
        if self.preset == "paper":
            question = self._paper(models, probes)
            found = tuple(float(p) for p in self.probabilities(self.logits([question]))[0])
            layers = tuple(int(n) for n in question["candidates"])
            return Descent(child.ref, refs, found[:-1], 0.0, found[-1], found[:-1], layers)
        seen = sample_weights(models, cap=self.cap, per_layer=self.per_layer, seed=self.seed)
        others = np.arange(1, len(models))
        question = batches.v3_question(Evidence(seen), 0, others, batches.copies(seen, 0, others))
        related = tuple(float(p) for p in question["related"])
        known, layers = max(related), tuple(int(n) for n in question["layers"])
        if known < RELATED:
            return Descent(child.ref, refs, (0.0,) * len(refs), known, 1 - known, related, layers)
        found = bounded(self.probabilities(self.logits([question]))[0], question)
        found = self._weighted_by_counters(found, models) * known
        return Descent(
            child.ref, refs, tuple(float(p) for p in found[:-1]), float(found[-1]), 1 - known, related, layers
        )

    @staticmethod
    def _weighted_by_counters(found: np.ndarray, models: Sequence[Model]) -> np.ndarray:
        """A parent was hardly trained on more batches than its child; counters may be reset, so a doubt is left."""
        own, *counts = map(trained_batches, models)
        out = found * np.append([LATER_COUNTER_FACTOR if own and n > own else 1.0 for n in counts], 1.0)
        out[-1] += 1 - out.sum()
        return out

    def _paper(self, models: list[Model], probes: Probes | None) -> batches.Arrays:
        if probes is None:
            raise MisuseError("preset paper compares features too: give probes, or use preset v3")
        matrices = batches.layer_matrices(models, self.layer or batches.shared_layer(models))
        seen = batches.with_features(
            sample_weights(models, cap=1, per_layer=1, seed=self.seed), models, probes.take(slice(0, self.probes))
        )
        if seen.features is None or not np.all(seen.has_features):
            raise MisuseError("preset paper needs candidates whose features have the child's width: use preset v3")
        return batches.paper_question(matrices, seen.features, 0, np.arange(1, len(models)))

    def logits(self, questions: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Logits before calibration `float64 [questions, candidates + 1]`, the last column for unordered, or none."""
        import torch

        width = max(len(q["candidates"]) for q in questions) + 1
        out = np.full((len(questions), width), -np.inf)
        out[:, -1] = 0.0  # nothing to weigh
        weighed = [i for i, q in enumerate(questions) if self.preset == "paper" or len(q["place"])]
        if not weighed:
            return out
        with torch.no_grad():
            found = self.network(batches.stacked([questions[i] for i in weighed]))
        if self.preset == "paper":
            return found.double().numpy()
        for i, row in zip(weighed, found[0].double().numpy(), strict=True):
            place = questions[i]["place"]
            out[i, place], out[i, -1] = row[: len(place)], row[-1]
        return out

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
        code = "F16" if self.preset == "v3" else "F32"
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
