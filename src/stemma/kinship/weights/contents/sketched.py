"""The contents test on weight sketches, for models whose weights are no longer available."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp, lgamma, log

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.contents.choices import is_certain
from stemma.kinship.weights.maps.blocks import directions
from stemma.kinship.weights.order.counts import LOG10, TINY
from stemma.kinship.weights.order.similarity import informative
from stemma.kinship.weights.reordering_bound import free_numbers, gains, log_orders, log_tail, surplus
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict


@dataclass(frozen=True)
class _AxisAgreement:
    """Agreement of the units of one axis."""

    tensor: int
    pairs: int
    gain: float
    cosine: float
    cost: Mapping[str, float]


@dataclass(frozen=True)
class SketchedUnitsAlike:
    """The contents test on the projected units in two weight sketches.

    A sketch holds a few numbers of some units. The order of units, and of their inputs, could have been chosen so that
    these few agree. The p-value is corrected for that as with the weights themselves, which costs more than the sketch
    of a large model can show; then the verdict is `INCONCLUSIVE`.

    Attributes:
        min_effect: Smallest mean cosine beyond chance that counts as a relation.

    Source: docs/methods/weight_tests.md, "When the weights are gone".
    """

    min_effect: float = 0.05

    name = "units-alike-sketched"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def evidence(self, a: Fingerprint, b: Fingerprint, model: Model, *, alpha: float = 0.01) -> Evidence:
        """Compare two weight sketches; `model` gives names and shapes. Never `REFUTED`."""
        found = self._axes(a, b, _costs(model))
        null = Null("the best order of units of independent networks, seen through projections (a bound)")
        claim, inputs = "sketched units contain the same, in whatever order", (a.model, b.model)
        if not found:
            reason = "the sketches have no axis in common"
            return Evidence(
                claim=claim,
                axis=Axis.WEIGHTS,
                statistic=self.name,
                value=0.0,
                null=null,
                p_value=None,
                log10_p=None,
                effect=0.0,
                verdict=Verdict.INCONCLUSIVE,
                reason=reason,
                spec=self.spec,
                inputs=inputs,
            )
        tensors = {f.tensor for f in found}
        log_p = max(_log_p(found), max(_log_p([f for f in found if f.tensor != t]) for t in tensors))
        cosine = float(np.average([f.cosine for f in found], weights=[f.pairs for f in found]))
        effect = float(np.clip(cosine, 0, 1))
        related = log_p <= log(alpha) and effect >= self.min_effect
        said = f"sketched units have mean cosine {cosine:.2f} on {len(found)} axes"
        if not related:
            said += "; a sketch holds too little to exclude that units were put in this order"
        figures = {"axes": len(found), "pairs": sum(f.pairs for f in found), "cosine": cosine}
        return Evidence(
            claim=claim,
            axis=Axis.WEIGHTS,
            statistic=self.name,
            value=cosine,
            null=null,
            p_value=max(exp(log_p), TINY),
            log10_p=log_p / LOG10,
            effect=effect,
            verdict=Verdict.SUPPORTED if related else Verdict.INCONCLUSIVE,
            reason=said,
            spec=self.spec,
            inputs=inputs,
            details=figures,
        )

    def _axes(
        self, a: Fingerprint, b: Fingerprint, costs: Mapping[int, tuple[str, Mapping[str, float]]]
    ) -> list[_AxisAgreement]:
        out = []
        left = [tuple(int(v) for v in row) for row in np.asarray(b.values["owners"])]
        for i, row in enumerate(np.asarray(a.values["owners"])):
            owner = tuple(int(v) for v in row)
            same_size = [j for j, other in enumerate(left) if other[:3] == owner[:3] and owner[0] >= 2]
            if not same_size:
                continue
            j = next((j for j in same_size if left[j][3] == owner[3]), same_size[0])
            left[j] = (0, 0, 0, 0)
            x = np.asarray(a.values["units"])[i, : owner[0]].astype(np.float32)
            y = np.asarray(b.values["units"])[j, : owner[0]].astype(np.float32)
            u, v = directions(x), directions(y)
            usable = informative(u, v)
            similarity = u[usable] @ v[usable].T
            if len(similarity) < 4 or owner[3] not in costs:
                continue
            own, (group, others) = similarity.diagonal(), costs[owner[3]]
            gain = float(gains(own, free_numbers(similarity, np.arange(len(own)), u.shape[1])).sum())
            cost = {**others, group: log_orders(len(own), owner[1])}
            out.append(_AxisAgreement(owner[3], len(own), gain, float(own.mean()), cost))
        return out


def _costs(model: Model) -> dict[int, tuple[str, Mapping[str, float]]]:
    """By checksum of a tensor's name: its sketched set of units, and the cost of the orders of its other axes."""
    known = structure(model)
    certain = is_certain(known)
    out = {}
    for name, tensor in model.weights.items():
        labels = known.axes[name]
        axis = next((k for k, x in enumerate(labels) if x.hidden and x.kind != "head"), None)
        if axis is None:
            continue
        cost = {}
        for k, label in enumerate(labels):
            if k != axis and tensor.shape[k] > 1 and not (certain and label.kind == "fixed"):
                key = label.group if certain and label.group else f"{name}[{k}]"
                cost[key] = lgamma(tensor.shape[k] + 1)
        group = labels[axis].group if certain and labels[axis].group else f"{name}[{axis}]"
        out[zlib.crc32(name.encode())] = group, cost
    return out


def _log_p(found: list[_AxisAgreement]) -> float:
    chosen = [f for f in found if surplus(f.pairs, f.gain) > 0]
    if not chosen:
        return 0.0
    cost: dict[str, float] = {}
    for f in chosen:
        for key, nats in f.cost.items():
            cost[key] = max(nats, cost.get(key, 0.0))
    paid = sum(cost.values()) + len(found) * log(2)
    return min(0.0, paid + log_tail(sum(f.pairs for f in chosen), sum(f.gain for f in chosen)))
