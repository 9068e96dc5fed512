"""Model DNA: a code of under a kilobyte for the behaviour and training data of a network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.canonical_outputs import PERTURBATIONS, features, log_probabilities, output_form
from stemma.fingerprints.evaluation import TOKEN_BATCH, as_tensor, checked_network
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import SIZE, mean_embedding
from stemma.probes import Probes
from stemma.probes.augmentation import perturb
from stemma.types import Fingerprint, Spec
from stemma.types.asking import asked_plainly
from stemma.types.network import Network

LEVELS = (-1.51, -0.45, 0.45, 1.51)
"""The four values of a quantised channel, in standard deviations (Max 1960, for a normal distribution)."""

BOUNDS = (-0.98, 0.0, 0.98)
"""Where one value changes to the next."""

DRAWS = 3
"""Draws of the noise."""

MAX_VALUES = 3648
"""Largest number of probes times channels: 912 bytes."""

MIN_PROBES = 32
"""Smallest number of probes."""

SCALARS = (
    "classes", "effective rank", "entropy", "top probability", "entropy: noise", "entropy: mixture",
    "entropy: own sample", "top probability: own sample",
)  # fmt: skip
"""Summary statistics of a model's outputs, for display only: the logarithms of the number of classes and of the
effective rank, then means over probes. No test uses them. The last two are 0 without a training sample."""


@final
@dataclass(frozen=True)
class DNA:
    """A compact code of input-output behaviour and, if a sample is given, of training data.

    The model is run on each probe and on seven perturbations of it; features of the outputs that are invariant to
    relabelling, new heads and temperature are encoded to a few channels per probe, two bits each. Codes of the same
    probes and the same encoder are compared by `stemma.kinship.function.model_dna`, without the model. Cost: eight
    forward passes per probe; at most 1 KiB is kept.

    Attributes:
        rows: Largest number of probes used, evenly spaced over those given.
        seed: Seed of the perturbations.
        encoder: Maps features to channels; `FragmentEncoder.untrained()` unless given. Its digest is part of the spec.
        batch: Probes per forward pass; changes results only by rounding.

    Source: the idea of a learned code of data and behaviour is Mu et al., ECAI 2024 (arXiv:2308.02121). Whitened
    responses to perturbations, separate channels per probe instead of pooling, and the rest are this project's.
    """

    rows: int = 384
    seed: int = 0
    encoder: FragmentEncoder = field(
        default_factory=FragmentEncoder.untrained, compare=False, repr=False, metadata={"learnt": True}
    )
    batch: int = field(default=128, compare=False)

    name: ClassVar[str] = "dna"
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise MisuseError(f"seed must be 0 or more, not {self.seed}")
        if self.batch < 1 or self.rows < MIN_PROBES:
            raise MisuseError(f"rows must be {MIN_PROBES} or more and batch 1 or more, not rows={self.rows}, "
                              f"batch={self.batch}")  # fmt: skip
        if self.rows * self.encoder.channels > MAX_VALUES:
            raise MisuseError(
                f"{self.rows} probes and {self.encoder.channels} channels exceed one kilobyte. Use at most "
                f"{MAX_VALUES // self.encoder.channels} probes"
            )

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters and its encoder."""
        return Spec(self.name, self.version, {"rows": self.rows, "seed": self.seed, "encoder": self.encoder.digest})

    def probes(self, probes: Probes) -> Probes:
        """At most `rows` of the probes, evenly spaced."""
        if len(probes) < MIN_PROBES:
            raise MisuseError(f"a DNA needs at least {MIN_PROBES} probes, but only {len(probes)} were given")
        return probes.take(np.linspace(0, len(probes) - 1, min(len(probes), self.rows)).round().astype(int))

    @asked_plainly
    def __call__(self, model: Model, probes: Probes, training_sample: Probes | None = None) -> Fingerprint:
        """The DNA of a model.

        Args:
            model: The model; it is not changed.
            probes: The inputs.
            training_sample: Inputs that it was trained on, if known.

        Returns:
            A fingerprint with `code` `uint8 [probes, channels / 4]`, `scalars` `float16 [8]` (see `SCALARS`), `sample`
            `int8 [64]`, or `[0]` without a training sample, `head` `int64 [2]`, the number of classes and the form of
            the outputs, and `architecture` `uint8 [32]`, or `[0]` of a black box.

        Raises:
            StemmaError: If the model cannot be run, or its outputs are constant.
        """
        form, responses = self._form_and_log_probabilities(model, self.probes(probes))
        found, scalars = _features_and_scalars(model, responses)
        sample = np.zeros(0, np.int8)
        if training_sample is not None:
            sample = mean_embedding(training_sample)
            own = log_probabilities(self._collect_outputs(model, self.probes(training_sample)), form)
            scalars[-2:] = float(_entropy(own).mean()), float(np.exp(own.max(1)).mean())
        values = {
            "code": pack(self.encoder(found)), "scalars": scalars.astype(np.float16), "sample": sample,
            "head": np.array([responses[0].shape[1], form], np.int64),
            "architecture": np.frombuffer(bytes.fromhex(model.architecture), np.uint8),
        }  # fmt: skip
        return Fingerprint(model.network.digest, probes.digest, self.spec, values)

    def fragments(self, model: Model, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
        """Encoder input: features `float32 [probes, features]`, and scalars `float64 [8]`."""
        return _features_and_scalars(model, self.log_probabilities(model, self.probes(probes)))

    @asked_plainly
    def log_probabilities(self, model: Model, selected: Probes) -> list[np.ndarray]:
        """Log-probabilities `[probes, classes]` for the probes as they are and with each of `PERTURBATIONS`."""
        return self._form_and_log_probabilities(model, selected)[1]

    def _form_and_log_probabilities(self, model: Model, selected: Probes) -> tuple[int, list[np.ndarray]]:
        """The form of the outputs for unperturbed probes, and log-probabilities of all outputs."""
        plain = self._collect_outputs(model, selected)
        form = output_form(plain)
        perturbed = [self._collect_outputs(model, Probes.of(x, kind=selected.kind)) for x in self._inputs(selected)]
        return form, [log_probabilities(x, form) for x in (plain, *perturbed)]

    def _inputs(self, selected: Probes) -> Iterator[np.ndarray]:
        """The probes with each of `PERTURBATIONS`; the mixture has no noise, so that it is drawn once."""
        yield from perturb(selected, DRAWS * self.seed)
        for draw in range(1, DRAWS):
            yield from perturb(selected, DRAWS * self.seed + draw)[:2]

    def _collect_outputs(self, model: Model, probes: Probes) -> np.ndarray:
        """Outputs for every probe; for token models, those for the next token."""
        return np.concatenate(list(self._output_batches(checked_network(model, probes), probes)))

    def _output_batches(self, network: Network, probes: Probes) -> Iterator[np.ndarray]:
        import torch

        batch = min(self.batch, TOKEN_BATCH) if probes.kind == "tokens" else self.batch
        for start in range(0, len(probes), batch):
            with torch.no_grad():
                part = network(as_tensor(network, probes.inputs[start : start + batch]))
            part = part[:, -1] if probes.kind == "tokens" and part.ndim == 3 else part
            if not torch.isfinite(part).all():
                raise StemmaError(f"{network.name} returns NaN or infinite values for probes from {start} on")
            yield part.double().cpu().numpy()


def _features_and_scalars(model: Model, responses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found, scalars = describe_outputs(responses)
    if not found.any():
        raise StemmaError(
            f"{model.name} returns the same output for all {len(found)} probes, so it has no DNA. Use other probes"
        )
    return found, scalars


def is_valid(dna: Fingerprint) -> bool:
    """Whether the arrays of a DNA fingerprint have the expected names, shapes and types."""
    v = {n: np.asarray(a) for n, a in dna.values.items()}
    shapes = {"scalars": (len(SCALARS),), "head": (2,)}
    return (
        {"code", "scalars", "sample", "head", "architecture"} <= v.keys()
        and v["code"].dtype == np.uint8 and v["code"].ndim == 2 and min(v["code"].shape) > 0
        and all(v[n].shape == shape for n, shape in shapes.items())
        and v["sample"].shape in ((0,), (SIZE,)) and v["architecture"].shape in ((0,), (32,))
        and bool(np.isfinite(v["scalars"].astype(float)).all())
    )  # fmt: skip


def describe_outputs(responses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features `float32 [probes, features]` and scalars `float64 [8]` (the last two 0) from log-probabilities."""
    plain, changes = responses[0], dict(zip(PERTURBATIONS, responses[1:], strict=True))
    scalars = np.array([
        np.log(plain.shape[1]), _effective_rank(plain), _entropy(plain).mean(), np.exp(plain.max(1)).mean(),
        _entropy(changes["noise"]).mean(), _entropy(changes["mixture"]).mean(), 0.0, 0.0,
    ])  # fmt: skip
    return features(plain, responses[1:]), scalars


def pack(channels: np.ndarray) -> np.ndarray:
    """Standardised channels `[n, k]` quantised to two bits: `uint8 [n, ceil(k / 4)]`."""
    levels = np.digitize(channels, BOUNDS).astype(np.uint8)
    rest = -levels.shape[1] % 4
    levels = np.concatenate([levels, np.zeros((len(levels), rest), np.uint8)], axis=1)
    return levels[:, 0::4] << 6 | levels[:, 1::4] << 4 | levels[:, 2::4] << 2 | levels[:, 3::4]


def unpack(code: np.ndarray) -> np.ndarray:
    """Channels `float32 [n, k]` of a packed code; those that fill up the last byte are constant."""
    levels = np.stack([code >> 6, code >> 4 & 3, code >> 2 & 3, code & 3], axis=-1).reshape(len(code), -1)
    return np.array(LEVELS, np.float32)[levels]


def _entropy(rows: np.ndarray) -> np.ndarray:
    return -(np.exp(rows) * rows).sum(1) / np.log(rows.shape[1])


def _effective_rank(rows: np.ndarray) -> float:
    """Entropy of the spectrum of the centred outputs (the logarithm of their effective rank)."""
    centered = rows - rows.mean(1, keepdims=True)
    sizes = np.square(np.linalg.svd(centered - centered.mean(0), compute_uv=False))
    share = sizes / max(float(sizes.sum()), 1e-300)
    return float(-(share * np.log(np.maximum(share, 1e-300))).sum())
