"""Modality contributions: which modality a trained network relies on, measured on paired probes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.multimodal.paired_network import module_of, side_by_side
from stemma.probes import Probes
from stemma.probes.modalities import split_modalities
from stemma.types import Axis, Evidence, ModelRef, Null, Spec, Verdict, jsonable

if TYPE_CHECKING:
    from stemma.multimodal.masks import AbstractMask

MASKS = ("zero", "mean", "permuted")
"""Ways to hide a modality of floats; token ids are padded with 0, or permuted."""

FEWEST = 64
"""Fewest probes for a reliable share."""

CONSTANT_TOLERANCE = 1e-6
"""Largest standard deviation of constant outputs over probes, relative to their size: rounding."""


@dataclass(frozen=True)
class Measured:
    """A figure over probes.

    Attributes:
        value: The figure.
        interval: 95 %, bootstrap over probes.
    """

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Modality:
    """The contribution of one modality.

    Attributes:
        share: Covariance of its response with the output, as a fraction of the output's variance over probes; the
            shares sum to 1. 0: the output does not depend on it; below 0: it is used against the others.
        response: Accuracy of its response; None without labels.
        alone: Accuracy with all others hidden.
        without: Accuracy with it hidden.
    """

    share: Measured
    response: Measured | None
    alone: Measured | None
    without: Measured | None


@dataclass(frozen=True)
class ModalityContribution:
    """The contributions of all modalities of a network.

    Attributes:
        model: The network.
        modalities: By name.
        accuracy: Of the fused output; None without labels.
        hidden: Total variation distance between the output with everything hidden and the class frequencies; None
            without labels.
        masks: How each modality was hidden.
        probes: Number of probes.
        reason: Why the figures are unreliable, empty if they are not.
    """

    model: ModelRef
    modalities: Mapping[str, Modality]
    accuracy: Measured | None
    hidden: float | None
    masks: Mapping[str, str]
    probes: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return jsonable(self)


@dataclass(frozen=True, eq=False)
class _CoalitionOutputs:
    """Outputs of all coalitions `[coalitions, n, classes]`, the last with nothing shown, and the responses."""

    names: tuple[str, ...]
    outputs: np.ndarray
    responses: np.ndarray
    coalitions: tuple[tuple[int, ...], ...]

    @property
    def constant(self) -> bool:
        """Whether the output is the same for every probe, up to rounding."""
        full = self.outputs[0] - self.outputs[0].mean(1, keepdims=True)
        return bool((full.std(0) <= CONSTANT_TOLERANCE * np.abs(self.outputs[0]).max()).all())


@dataclass(frozen=True)
class ContributionTest:
    """Measures modality contributions.

    Attributes:
        mask: How floats are hidden: `zero`, `mean` (of the probes) or `permuted` (another probe's input).
        draws: Bootstrap samples.
        seed: Of bootstrap and permutation.
        margin: Difference of shares between two networks that counts as a change.
    """

    mask: str = "zero"
    draws: int = 1000
    seed: int = 0
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise MisuseError(f"no mask is called {self.mask!r}. Choose one of {', '.join(MASKS)}")

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec("modality-shares", 1, {"mask": self.mask, "seed": self.seed, "margin": self.margin})

    def __call__(self, model: Model, probes: Probes) -> ModalityContribution:
        """Measure one network.

        Cost: `2^M` evaluations of every probe.

        Args:
            model: A multimodal network: a torch module that is called with modalities by name.
            probes: Paired probes, with labels where accuracies are wanted.

        Returns:
            Shares and accuracies.

        Raises:
            MisuseError: If the probes are not paired, or the network has no class scores or fewer classes than the
                labels.
            StemmaError: If its output is the same for every probe.
        """
        measured = self._coalition_outputs(model, probes)
        if measured.constant:
            raise StemmaError(
                f"{model.name} has the same output for all {len(probes)} probes, so it relies on no modality"
            )
        classes, named = measured.outputs.shape[2], probes.labels
        if named is not None and not 0 <= named.min() <= named.max() < classes:
            worst = named.max() if named.max() >= classes else named.min()
            raise MisuseError(f"the probes have the label {worst}, but {model.name} has {classes} classes, from 0 on")
        rows = self._rows(len(probes))
        shares = _shares(measured.responses, rows)
        labels = probes.labels
        correct = None if labels is None else (measured.outputs.argmax(-1) == labels)
        correct_alone = None if labels is None else (measured.responses.argmax(-1) == labels)
        position = {c: i for i, c in enumerate(measured.coalitions)}
        everyone = range(len(measured.names))
        found = {}
        for m, name in enumerate(measured.names):
            others = tuple(k for k in everyone if k != m)
            found[name] = Modality(
                _figure(shares[:, m]),
                None if correct_alone is None else _mean(correct_alone[m], rows),
                None if correct is None else _mean(correct[position[m,]], rows),
                None if correct is None else _mean(correct[position[others]], rows),
            )
        return ModalityContribution(
            model.ref,
            found,
            None if correct is None else _mean(correct[0], rows),
            None if labels is None else _distance_from_prior(measured.outputs[-1], labels),
            {n: k.name for n, k in self.masks(probes).items()},
            len(probes),
            f"{len(probes)} probes are few: reliable shares need {FEWEST} or more" if len(probes) < FEWEST else "",
        )

    def compare(self, a: Model, b: Model, probes: Probes, alpha: float) -> Evidence:
        """Whether two networks rely on their modalities differently: a child that stopped using one is a finding.

        Args:
            a: One network.
            b: Another one, with the same modalities.
            probes: Paired probes for both.
            alpha: Significance level.

        Returns:
            Evidence for "a share differs by more than the margin": supported, refuted (the intervals of all differences
            lie inside the margin) or inconclusive. The p-value is that of the largest difference, times the number of
            modalities.
        """
        from scipy.stats import norm

        first, second = self._coalition_outputs(a, probes), self._coalition_outputs(b, probes)
        rows = self._rows(len(probes))
        shares = _shares(first.responses, rows), _shares(second.responses, rows)
        samples = shares[1] - shares[0]
        change, error = samples[0], samples[1:].std(0, ddof=1)
        error = np.maximum(error, 1e-12)
        count = len(first.names)
        p = float(min(1.0, count * norm.sf((np.abs(change) - self.margin) / error).min()))
        worst = int(np.abs(change).argmax())
        reach = float(norm.isf(alpha / 2 / count))
        inside = bool((np.abs(change) + reach * error < self.margin).all())
        constant = [m.name for m, measured in ((a, first), (b, second)) if measured.constant]
        few = len(probes) < FEWEST or bool(constant)
        changed = p <= alpha and not few
        verdict = Verdict.SUPPORTED if changed else Verdict.REFUTED if inside and not few else Verdict.INCONCLUSIVE
        name = first.names[worst]
        ends = float(shares[0][0, worst]), float(shares[1][0, worst])
        reason = f"the share of {name} is {ends[0]:.2f} in {a.name} and {ends[1]:.2f} in {b.name}"
        if constant:
            reason = f"{constant[0]} has the same output for every probe, so it relies on no modality"
        elif few:
            reason += f"; {len(probes)} probes are too few for a decision, which needs {FEWEST} or more"
        by_name = {
            n: {"a": float(shares[0][0, i]), "b": float(shares[1][0, i]), "change": float(change[i]),
                "interval": [float(change[i] - reach * error[i]), float(change[i] + reach * error[i])]}
            for i, n in enumerate(first.names)
        }  # fmt: skip
        return Evidence(
            claim="the modality shares differ", axis=Axis.FUNCTION, statistic="largest change of a share",
            value=float(np.abs(change[worst])), null=Null(f"a change of at most {self.margin:g}"), p_value=p,
            log10_p=float(np.log10(max(p, 1e-300))), effect=float(min(1.0, np.abs(change[worst]))), verdict=verdict,
            reason=reason, spec=self.spec, inputs=(a.network.digest, b.network.digest),
            details={"modalities": by_name, "margin": self.margin, "probes": len(probes)},
        )  # fmt: skip

    def masks(self, probes: Probes) -> "dict[str, AbstractMask]":
        """The mask of each modality of some probes."""
        from stemma.multimodal.masks import Permuted, TokenPad, masks_of

        found = masks_of(self.mask, [p.name for p in probes.parts])
        for part in probes.parts:
            if part.kind == "tokens" and self.mask != Permuted.name:
                found[part.name] = TokenPad()
        return found

    def _coalition_outputs(self, model: Model, probes: Probes) -> _CoalitionOutputs:
        import torch

        from stemma.fingerprints.evaluation import checked_network
        from stemma.multimodal.concepts import masked_outputs
        from stemma.multimodal.responses import absent, exact_split, responses_of_outputs

        if not probes.parts:
            raise MisuseError(
                "these probes have one modality: give an .npz with one array per modality, named as the network takes "
                "them, or stemma.probes.pair_modalities"
            )
        names, module = tuple(p.name for p in probes.parts), module_of(model)
        # Neighbours may be of one class, which the permuted mask would not hide.
        order = np.random.default_rng(self.seed).permutation(len(probes))
        batch = batch_of(module, probes.take(order))
        split, masks = exact_split(len(names)), self.masks(probes)
        try:
            outputs = [masked_outputs(module, batch, masks, absent(names, c)) for c in (*split.coalitions, ())]
        except StemmaError:
            raise
        except Exception as e:  # a network may run any code
            shapes = ", ".join(f"{p.name} {list(p.shape)}" for p in probes.parts)
            raise StemmaError(
                f"{model.name} does not run on {shapes}: {' '.join(str(e).split())[:300]}. Name the arrays as its "
                "forward takes them"
            ) from e
        checked_network(side_by_side(model, probes.parts), probes)
        found = np.stack(outputs)
        if found.ndim != 3 or found.shape[2] < 2:
            raise MisuseError(
                f"{model.name} returns outputs of shape {list(found.shape[2:])}, but one score per class is needed"
            )
        if not np.isfinite(found).all():
            raise StemmaError(f"{model.name} returns NaN or infinite values with a modality hidden: try another mask")
        found = found[:, np.argsort(order)]
        phi = responses_of_outputs(torch.from_numpy(found[:-1]), split).numpy()
        return _CoalitionOutputs(names, found, phi, (*split.coalitions, ()))

    def _rows(self, count: int) -> np.ndarray:
        """The probes themselves, then bootstrap samples of them."""
        draw = np.random.default_rng(self.seed)
        return np.concatenate([np.arange(count)[None], draw.integers(0, count, (self.draws, count))])


def batch_of(module: Any, probes: Probes) -> dict[str, Any]:
    """Paired probes as tensors by modality, `[n, …]`, in the float type and on the device of a module."""
    import torch

    like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(()))
    pieces = split_modalities(torch.from_numpy(np.array(probes.inputs)), probes.parts)
    return {n: x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device) for n, x in pieces.items()}


def _shares(responses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Shares `[samples, modalities]` of responses `[modalities, n, classes]` for samples of probes."""
    centred = responses - responses.mean(2, keepdims=True)  # a common shift of all logits changes nothing
    fused = centred.sum(0)
    out = []
    for sample in rows:
        weights = np.bincount(sample, minlength=responses.shape[1]) / len(sample)
        means = np.einsum("n,mnk->mk", weights, centred)
        total = fused - means.sum(0)
        shared = np.einsum("n,mnk,nk->m", weights, centred - means[:, None], total)
        whole = shared.sum()
        out.append(shared / whole if whole > 0 else np.full(len(shared), 1 / len(shared)))
    return np.array(out)


def _figure(samples: np.ndarray) -> Measured:
    low, high = np.quantile(samples[1:], [0.025, 0.975])
    return Measured(float(samples[0]), (float(low), float(high)))


def _mean(correct: np.ndarray, rows: np.ndarray) -> Measured:
    return _figure(correct[rows].mean(1))


def _distance_from_prior(outputs: np.ndarray, labels: np.ndarray) -> float:
    scores = np.exp(outputs - outputs.max(1, keepdims=True))
    answered = (scores / scores.sum(1, keepdims=True)).mean(0)
    width = max(len(answered), int(labels.max()) + 1)
    counts = np.bincount(labels, minlength=width) / len(labels)
    return float(np.abs(np.pad(answered, (0, width - len(answered))) - counts).sum() / 2)
