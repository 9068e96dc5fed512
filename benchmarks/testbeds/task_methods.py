"""Distances among the encoders of a study, by every method that is compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import nn

from stemma import from_module
from stemma.checkpoints.model import Model
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.gradient_field import GradientField
from stemma.measures.base import AbstractMeasure
from stemma.measures.distance_correlation import DistanceCorrelation
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.linear_cka import LinearCka
from stemma.measures.pairwise import pairwise
from stemma.measures.procrustes import Procrustes
from stemma.measures.rsa import Rsa
from stemma.measures.svcca import Svcca
from stemma.probes import Probes
from stemma.types import InputSpec, Spec
from stemma.zoo import cache

DEFAULT, CHOSEN = "gradient field, default", "gradient field, chosen on other data"
OFFICIAL = "ModelGiF as published, path from another image"
PUBLISHED = dict(potential="channel-max", channel_mean=True)
FIELDS: Mapping[str, tuple[GradientField, FieldCosine]] = {
    OFFICIAL: (GradientField.official(**PUBLISHED, baseline="probe"), FieldCosine.official()),
    "ModelGiF as published, path from zero": (
        GradientField.official(**PUBLISHED, baseline="zero"), FieldCosine.official()),
    DEFAULT: (GradientField(), FieldCosine()),
    "gradient field, potential as published": (GradientField(potential="channel-max"), FieldCosine()),
    "gradient field, paths from a blank image": (GradientField(baseline="zero"), FieldCosine()),
    "saliency at the probe": (
        GradientField(1, "riemann-right", cumulative=False, times_input=False), FieldCosine()),
    "input times gradient at the probe": (GradientField(1, "riemann-right", cumulative=False), FieldCosine()),
}  # fmt: skip

CANDIDATES: tuple[GradientField, ...] = tuple(
    GradientField(potential=potential, baseline=baseline, cumulative=cumulative, times_input=times)
    for potential, baseline, (cumulative, times) in product(
        ("difference", "channel-max", "position-max", "unit-max", "sum"), ("zero", "probe"),
        ((True, True), (False, True), (False, False)),
    )
)  # fmt: skip
"""What a configuration is chosen from, on another data set than it is scored on."""

REPRESENTATIONS: Mapping[str, AbstractMeasure] = {
    "RSA": Rsa(),
    "linear CKA": LinearCka(debiased=False),
    "linear CKA, debiased": LinearCka(),
    "SVCCA": Svcca(),
    "Procrustes": Procrustes(),
    "distance correlation": DistanceCorrelation(),
}
"""Baselines: measures of the bottleneck maps."""

JACOBIAN = "Jacobian sketch, debiased CKA"


@dataclass(frozen=True, eq=False)
class Encoders:
    """Networks of a study, in the order task, seed.

    Attributes:
        tasks: Number of tasks.
        seeds: Networks of each.
        models: All of them.
        probes: What they are asked.
        maps: Their answers, `[tasks * seeds, k, channels, h, w]`.
    """

    tasks: int
    seeds: int
    models: tuple[Model, ...]
    probes: Probes
    maps: np.ndarray

    def kept(self, name: str, identity: Spec, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Distances `[tasks, seeds, tasks, seeds]`, from the cache or computed."""
        models = [m.network.digest for m in self.models]
        recipe = Spec("task-distances", 1, {"models": models, "probes": self.probes.digest, "method": identity})
        found = cache.recall(recipe.digest, lambda: ({"distance": make()}, {"method": name}), keep=True)[0]["distance"]
        return found.reshape(self.tasks, self.seeds, self.tasks, self.seeds)


def opened(nets: Sequence[nn.Module], names: Sequence[str], shape: tuple[int, ...]) -> tuple[Model, ...]:
    """Encoders as models in the raw image space."""
    spec = InputSpec("image", shape, 0.0, 1.0)
    return tuple(from_module(net, name, spec) for net, name in zip(nets, names, strict=True))


def field_distances(encoders: Encoders, method: GradientField, measure: FieldCosine) -> np.ndarray:
    """Distances by gradient fields."""
    identity = Spec("field", 1, {"method": method.spec, "measure": measure.spec})
    return encoders.kept("field", identity, lambda: pairwise(encoders.models, encoders.probes, method, measure).values)


def whole_set_distances(
    encoders: Encoders, method: AbstractFingerprinter, measures: Mapping[str, AbstractMeasure]
) -> dict[str, np.ndarray]:
    """Distances by measures of all probes at once."""
    seen: list[Mapping[str, np.ndarray]] = []

    def gram(measure: AbstractMeasure) -> np.ndarray:
        if not seen:
            seen.extend(method(model, encoders.probes).values for model in encoders.models)
        return measure.gram(seen)[:, :, 0]

    return {
        name: encoders.kept(
            name, Spec("whole set", 1, {"method": method.spec, "measure": measure.spec}), lambda m=measure: gram(m)
        )
        for name, measure in measures.items()
    }


def trivial_distances(encoders: Encoders, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """What needs no method: answers compared coordinate by coordinate, the kind of a task, the size of a code."""
    n, s = encoders.tasks, encoders.seeds
    flat = encoders.maps.reshape(n * s, encoders.maps.shape[1], -1).astype(np.float64)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), 1e-12)
    cosine = np.einsum("akd,bkd->ab", unit, unit) / flat.shape[1]
    order = {k: i for i, k in enumerate(dict.fromkeys(kinds))}
    codes = np.repeat([order[k] for k in kinds], s)
    apart = (codes[:, None] != codes[None]).astype(float)
    centred = flat - flat.mean(1, keepdims=True)
    spectra = [np.square(np.linalg.svd(c, compute_uv=False)) for c in centred]
    used = np.array([v.sum() ** 2 / np.square(v).sum() for v in spectra])
    size = np.broadcast_to(-used[:, None], (n * s, n * s))
    return {
        name: np.array(d, float).reshape(n, s, n, s)
        for name, d in (
            ("answers compared as they are", 1 - cosine),
            ("kind of the task, known", apart),
            ("dimension of the source's code", size + used.max() + 1),
        )
    }
