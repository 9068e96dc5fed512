"""What the models of the property-protection testbed answer, and how far each is from every victim.

Fields are not stored: each suspect's is compared with those of the victims as soon as it is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.evaluation import compute_outputs
from stemma.fingerprints.gradient_field import GradientField
from stemma.measures.field_cosine import FieldCosine
from stemma.probes import Probes
from stemma.types import Spec
from stemma.zoo.cache import recall
from stemma.zoo.memory import model_of
from testbeds.ip_models import VERSION, Batch, Data

OFFICIAL_PROBES = 64
"""The published 50 steps are taken on this many of the probes, which costs as much as 12 steps on all."""

Values = Mapping[str, np.ndarray]


METHODS: Mapping[str, tuple[GradientField, FieldCosine]] = {
    "field": (GradientField(), FieldCosine()),
    "published-8": (GradientField.official(steps=8), FieldCosine.official()),
    "published": (GradientField.official(), FieldCosine.official()),
}
"""The default, with the log-probability of the true label (of all classes on average where the heads differ); the
published method with 8 steps, and with its 50 on some of the probes."""


@dataclass(frozen=True, eq=False)
class Questions:
    """The probes of a regime and what the victims answer.

    Attributes:
        probes: The probes with their true labels.
        victims: Fields of the victims, by name and whether the labels were given.
        logits: Their answers `[victims, k, classes]`.
        weights: Their weights, for the plain cosine.
        scored: Victims on whose copies the combination was not chosen.
        identity: Of probes, victims and methods, for the cache.
    """

    probes: Probes
    victims: dict[tuple[str, bool], list[Values]]
    logits: np.ndarray
    weights: list[Values]
    scored: tuple[int, ...]
    identity: Spec

    @classmethod
    def of(cls, data: Data, victims: Sequence[Batch]) -> "Questions":
        found = data.part("probes")
        probes = Probes.of(found.inputs, found.targets)
        models = [model_of("victim", v.models[0], v.config) for v in victims]
        identity = Spec("ip-answers", VERSION, {
            "probes": probes.digest, "victims": [m.digest for m in models], "official": OFFICIAL_PROBES,
            "methods": [[f.spec, m.spec] for f, m in METHODS.values()],
        })  # fmt: skip
        scored = tuple(v.recipe["victim"] for v in victims if v.recipe["split"] == "test")
        logits = np.stack([compute_outputs(m, probes) for m in models])
        out = cls(probes, {}, logits, [v.models[0] for v in victims], scored, identity)
        for labelled in (True, False):
            for m in models:
                for name in METHODS:
                    out.victims.setdefault((name, labelled), []).append(out.field(name, m, labelled))
        return out

    def field(self, name: str, model: Model, labelled: bool) -> Values:
        """A model's field by one of the methods."""
        plain = name != "field" or not labelled
        probes = self.probes.with_labels(None) if plain else self.probes
        probes = probes.take(slice(OFFICIAL_PROBES)) if name == "published" else probes
        return METHODS[name][0](model, probes).values

    def asked(self, batch: Batch) -> dict[str, np.ndarray]:
        """Answers and distances of all models of a batch, from the cache where they are.

        The published method is asked only of half the test negatives and of the copies of some test victims.

        Returns:
            `logits` `[m, k, classes]`; for each method distances per probe `[m, victims, k]`; `weights`
            `[m, victims]`, 2 where the shapes differ.
        """
        test, half = batch.recipe["split"] == "test", batch.recipe.get("part", "attacker") == "attacker"
        published = test and half and batch.recipe.get("victim", self.scored[0]) in (self.scored[0], self.scored[-1])
        names = [n for n in METHODS if n == "field" or published]
        recipe = {"batch": batch.recipe, "config": batch.config, "names": names, "to": self.identity}
        found, _ = recall(
            Spec("ip-answers", VERSION, recipe).digest, lambda: (self._asked(batch, names), {}), keep=True
        )
        return found

    def _asked(self, batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
        labelled = batch.recipe["kind"] != "transfer"
        parts = []
        for weights in batch.models:
            model = model_of("suspect", weights, batch.config)
            found: dict[str, Any] = {"logits": compute_outputs(model, self.probes)}
            for name in names:
                values, measure = self.field(name, model, labelled), METHODS[name][1]
                found[name] = np.stack([measure.distances(v, values) for v in self.victims[name, labelled]])
            found["weights"] = np.array([_weight_distance(weights, v) for v in self.weights])
            parts.append(found)
        return {name: np.stack([p[name] for p in parts]).astype(np.float32) for name in parts[0]}


def _weight_distance(a: Values, b: Values) -> float:
    """One minus the cosine of all weights; 2 where the shapes differ."""
    if {n: x.shape for n, x in a.items()} != {n: x.shape for n, x in b.items()}:
        return 2.0
    names = [n for n, x in a.items() if x.dtype.kind == "f"]
    u, v = (np.concatenate([x[n].ravel().astype(np.float64) for n in names]) for x in (a, b))
    return float(1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))
