"""Model DNA: what a network does and what it was trained on, as a code of less than a kilobyte."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.canonical_outputs import CHANGED, features, form_of, log_probabilities
from stemma.fingerprints.evaluation import as_tensor, questioned
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.fingerprints.training_sample import SIZE, embedded
from stemma.probes import Probes
from stemma.probes.augmentation import changed
from stemma.types import Fingerprint, Spec
from stemma.types.network import Network

STEP = 0.5
"""Width of one of the sixteen levels that a channel is kept in, in standard deviations."""

FEWEST = 32
"""Probes below which nothing is told apart."""

SCALARS = (
    "classes", "effective rank", "entropy", "top probability", "entropy: noise", "entropy: mixture",
    "entropy: own sample", "top probability: own sample",
)  # fmt: skip
"""Numbers about the whole of a model's answers, for people to read: the logarithms of the number of classes and of the
effective rank, then means over probes. No test uses them. The last two are 0 without a training sample."""


@final
@dataclass(frozen=True)
class DNA:
    """A compact code of input-output behaviour and, where a sample is given, of training data.

    Each probe is put to the model as it is and changed in three ways; features of the answers that no relabelling, new
    head or temperature alters are encoded to a few channels per probe, four bits each. Codes of the same probes and
    the same encoder are compared by `stemma.kinship.function.model_dna`, without the model. Cost: four forward passes
    per probe; at most 1 KiB is kept.

    Attributes:
        rows: Most probes that are used, evenly spaced over those given.
        seed: Of the changes to the probes.
        encoder: The learned part; `FragmentEncoder.untrained()` unless given. Its digest is part of the spec.
        batch: Probes asked at once; changes no number beyond rounding.

    Source: the idea of a learned code of data and behaviour is Mu et al., ECAI 2024 (arXiv:2308.02121). Whitened
    responses to changes, keeping probes apart instead of pooling them, and all else here is this project's.
    """

    rows: int = 384
    seed: int = 0
    encoder: FragmentEncoder = field(
        default_factory=FragmentEncoder.untrained, compare=False, repr=False, metadata={"learnt": True}
    )
    batch: int = field(default=128, compare=False)

    name: ClassVar[str] = "dna"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise MisuseError(f"a seed is 0 or more, not {self.seed}")
        if self.batch < 1 or self.rows < FEWEST:
            raise MisuseError(f"a DNA is of {FEWEST} probes or more, asked 1 or more at once: rows={self.rows}, "
                              f"batch={self.batch}")  # fmt: skip
        if self.rows * self.encoder.channels > 1824:
            raise MisuseError(
                f"{self.rows} probes and {self.encoder.channels} channels do not fit into a kilobyte: at most "
                f"{1824 // self.encoder.channels} probes do"
            )

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters and its encoder."""
        return Spec(self.name, self.version, {"rows": self.rows, "seed": self.seed, "encoder": self.encoder.digest})

    def probes(self, probes: Probes) -> Probes:
        """Those of the probes that are used.

        Args:
            probes: All of them.

        Returns:
            At most `rows`, evenly spaced.

        Raises:
            MisuseError: If there are too few.
        """
        if len(probes) < FEWEST:
            raise MisuseError(f"a DNA needs at least {FEWEST} probes, but {len(probes)} were given: give more")
        return probes.take(np.linspace(0, len(probes) - 1, min(len(probes), self.rows)).round().astype(int))

    def __call__(self, model: Model, probes: Probes, training_sample: Probes | None = None) -> Fingerprint:
        """The DNA of a model.

        Args:
            model: The model; it is not changed.
            probes: What it is asked.
            training_sample: Inputs that it was trained on, where known.

        Returns:
            A fingerprint with `code` `uint8 [probes, channels / 2]`, `scalars` `float16 [8]` (see `SCALARS`),
            `sample` `int8 [64]`, or `[0]` without a training sample, `head` `int64 [2]`, the number of classes and the
            form of the answers, and `architecture` `uint8 [32]`, or `[0]` of a black box.

        Raises:
            StemmaError: If the model cannot be asked, or answers everything alike.
        """
        form, asked = self._asked_in_form(model, self.probes(probes))
        found, scalars = _told(model, asked)
        sample = np.zeros(0, np.int8)
        if training_sample is not None:
            sample = embedded(training_sample)
            own = log_probabilities(self._raw(model, self.probes(training_sample)), form)
            scalars[-2:] = float(_entropy(own).mean()), float(np.exp(own.max(1)).mean())
        values = {
            "code": packed(self.encoder(found)), "scalars": scalars.astype(np.float16), "sample": sample,
            "head": np.array([asked[0].shape[1], form], np.int64),
            "architecture": np.frombuffer(bytes.fromhex(model.architecture), np.uint8),
        }  # fmt: skip
        return Fingerprint(model.network.digest, probes.digest, self.spec, values)

    def fragments(self, model: Model, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
        """What the encoder sees.

        Args:
            model: The model.
            probes: What it is asked.

        Returns:
            Features `float32 [probes, features]` and scalars `float64 [8]`.

        Raises:
            StemmaError: If the model cannot be asked, or answers everything alike.
        """
        return _told(model, self.asked(model, self.probes(probes)))

    def asked(self, model: Model, few: Probes) -> list[np.ndarray]:
        """What a model answers to probes as they are and changed.

        Args:
            model: The model.
            few: The probes that are used.

        Returns:
            Four arrays of log-probabilities `[probes, classes]`.
        """
        return self._asked_in_form(model, few)[1]

    def _asked_in_form(self, model: Model, few: Probes) -> tuple[int, list[np.ndarray]]:
        """The form of the answers, which is that of the answers to unchanged probes, and all log-probabilities."""
        plain = self._raw(model, few)
        form = form_of(plain)
        after = [self._raw(model, Probes.of(x, kind=few.kind)) for x in changed(few, self.seed)]
        return form, [log_probabilities(x, form) for x in (plain, *after)]

    def _raw(self, model: Model, probes: Probes) -> np.ndarray:
        """Answers to every probe; of token models those about the token after the last."""
        return np.concatenate(list(self._answers(questioned(model, probes), probes)))

    def _answers(self, network: Network, probes: Probes) -> Iterator[np.ndarray]:
        import torch

        for start in range(0, len(probes), self.batch):
            with torch.no_grad():
                part = network(as_tensor(network, probes.inputs[start : start + self.batch]))
            part = part[:, -1] if probes.kind == "tokens" and part.ndim == 3 else part
            if not torch.isfinite(part).all():
                raise StemmaError(f"{network.name} answers NaN or infinite values to the probes from {start} on")
            yield part.double().cpu().numpy()


def _told(model: Model, asked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found, scalars = described(asked)
    if not found.any():
        raise StemmaError(f"{model.name} answers all {len(found)} probes alike: there is nothing to make a DNA of")
    return found, scalars


def sound(dna: Fingerprint) -> bool:
    """Whether the values of a DNA are what they should be.

    Args:
        dna: Perhaps read from somewhere.

    Returns:
        The answer.
    """
    v = {n: np.asarray(a) for n, a in dna.values.items()}
    shapes = {"scalars": (len(SCALARS),), "head": (2,)}
    return (
        {"code", "scalars", "sample", "head", "architecture"} <= v.keys()
        and v["code"].dtype == np.uint8 and v["code"].ndim == 2 and min(v["code"].shape) > 0
        and all(v[n].shape == shape for n, shape in shapes.items())
        and v["sample"].shape in ((0,), (SIZE,)) and v["architecture"].shape in ((0,), (32,))
        and bool(np.isfinite(v["scalars"].astype(float)).all())
    )  # fmt: skip


def described(asked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features and scalars of a model's answers.

    Args:
        asked: Log-probabilities of the probes, and of the probes changed in each way of `CHANGED`.

    Returns:
        Features `float32 [probes, features]` and scalars `float64 [8]`, the last two 0.
    """
    plain, changes = asked[0], dict(zip(CHANGED, asked[1:], strict=True))
    scalars = np.array([
        np.log(plain.shape[1]), _effective_rank(plain), _entropy(plain).mean(), np.exp(plain.max(1)).mean(),
        _entropy(changes["noise"]).mean(), _entropy(changes["mixture"]).mean(), 0.0, 0.0,
    ])  # fmt: skip
    return features(plain, asked[1:]), scalars


def packed(channels: np.ndarray) -> np.ndarray:
    """Standardised channels in four bits each.

    Args:
        channels: `[n, k]`.

    Returns:
        `uint8 [n, ceil(k / 2)]`.
    """
    levels = np.clip(np.floor(channels / STEP) + 8, 0, 15).astype(np.uint8)
    if levels.shape[1] % 2:
        levels = np.concatenate([levels, np.full((len(levels), 1), 8, np.uint8)], axis=1)
    return (levels[:, 0::2] << 4) | levels[:, 1::2]


def unpacked(code: np.ndarray) -> np.ndarray:
    """Channels of a code: the middle of each level.

    Args:
        code: As `packed` gives it.

    Returns:
        `float32 [n, k]`, k even.
    """
    levels = np.stack([code >> 4, code & 15], axis=-1).reshape(len(code), -1)
    return ((levels.astype(np.float32) - 8) + 0.5) * np.float32(STEP)


def _entropy(rows: np.ndarray) -> np.ndarray:
    return -(np.exp(rows) * rows).sum(1) / np.log(rows.shape[1])


def _effective_rank(rows: np.ndarray) -> float:
    """Exponential of the entropy of the spectrum of the centred answers, as a logarithm."""
    centred = rows - rows.mean(1, keepdims=True)
    sizes = np.square(np.linalg.svd(centred - centred.mean(0), compute_uv=False))
    share = sizes / max(float(sizes.sum()), 1e-300)
    return float(-(share * np.log(np.maximum(share, 1e-300))).sum())
