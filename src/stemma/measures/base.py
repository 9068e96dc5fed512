"""The abstract base of measures: the distance of two fingerprints, 0 if equal."""

import abc
import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.intervals import jackknife, mean_interval
from stemma.types import Distance, Fingerprint, Spec

Values = Mapping[str, np.ndarray]


class Law(enum.StrEnum):
    """Laws that a measure may declare; each measure is tested for exactly those."""

    IDENTITY = "identity"
    SYMMETRY = "symmetry"
    TRIANGLE = "triangle"
    BOUNDED = "bounded"
    PERMUTATION = "permutation"
    ORTHOGONAL = "orthogonal"
    LINEAR = "linear"
    SCALING = "scaling"
    TRANSLATION = "translation"
    SHIFT = "shift"


class AbstractMeasure(abc.ABC):
    """A frozen dataclass of its own parameters that turns two fingerprints into a distance.

    Laws: `identity` d(a, a) = 0; `symmetry`; `triangle`; `bounded` in [0, `top`]; invariance of the coordinates of
    either side under `permutation`, `orthogonal` or invertible `linear` maps, positive `scaling`, `translation` by a
    constant vector, or (outputs) a `shift` of all logits of a probe by one number.

    Attributes:
        name: As in the command line, the docs and the registry.
        version: Raised whenever the numbers change.
        accepts: The kinds of fingerprints that it compares (see `AbstractFingerprinter`).
        probewise: Whether it is a mean over probes, so that blocks can be processed one by one.
        counted: Whether the value of each probe is 0 or 1.
        laws: The laws that it satisfies.
        top: Largest value of a `bounded` measure.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    accepts: ClassVar[frozenset[str]]
    probewise: ClassVar[bool]
    counted: ClassVar[bool] = False
    laws: ClassVar[frozenset[Law]]
    top: ClassVar[float] = 1.0

    @property
    def spec(self) -> Spec:
        """Identity of the measure with its parameters."""
        return Spec(self.name, self.version, asdict(self))  # ty: ignore[invalid-argument-type]

    @abc.abstractmethod
    def distances(self, a: Values, b: Values) -> np.ndarray:
        """Distances of two models on the same probes.

        Args:
            a: Values of some probes (all of them, unless `probewise`).
            b: The other model's.

        Returns:
            `[k]`, one per probe, NaN where it is undefined; or `[1]` for the whole set where not `probewise`.

        Raises:
            MisuseError: If the two cannot be compared by this measure.
        """

    def gram(self, models: Sequence[Values]) -> np.ndarray:
        """All pairs at once; a measure overrides it where that is faster.

        Args:
            models: Values of the same probes for each of m models.

        Returns:
            `[m, m, k]` as `distances` gives them (k is 1 where not `probewise`).
        """
        first = self.distances(models[0], models[0])
        out = np.zeros((len(models), len(models), len(first)))
        for i, a in enumerate(models):
            for j, b in enumerate(models):
                if i < j or Law.SYMMETRY not in self.laws or i == j:
                    out[i, j] = self.distances(a, b)
                else:
                    out[i, j] = out[j, i]
        return out

    def __call__(self, a: Fingerprint, b: Fingerprint) -> Distance:
        """The distance of two fingerprints.

        Args:
            a: The first.
            b: The other, of the same probes.

        Returns:
            The distance, with a 95 % interval over probes (jackknife over groups of probes if the measure is not a
            mean), and the share of probes where it is defined as `coverage`.

        Raises:
            MisuseError: If the fingerprints are of different probes or methods.
        """
        check_comparable(a, b)
        found = self.distances(a.values, b.values)
        if not self.probewise:
            value = float(found[0])
            count = len(next(iter(a.values.values())))
            interval = jackknife(lambda rows: float(self.distances(_rows(a, rows), _rows(b, rows))[0]), count, value)
            return Distance(a=a.model, b=b.model, fingerprint=a.spec, measure=self.spec, value=value, interval=interval)
        return summarise(a, b, self.spec, found, counted=self.counted)


def summarise(
    a: Fingerprint, b: Fingerprint, measure: Spec, per_probe: np.ndarray, *, counted: bool = False
) -> Distance:
    """A distance from its per-probe values `[k]`; undefined values (NaN) are left out and reduce the coverage."""
    defined = np.isfinite(per_probe)
    if not defined.any():
        raise MisuseError(
            f"{measure.name} is undefined at all {len(per_probe)} probes: a network does not react to them, or they "
            "equal their baselines. Use other probes or another baseline"
        )
    value, interval = mean_interval(per_probe[defined], counted=counted)
    values = tuple(float(v) if ok else None for v, ok in zip(per_probe, defined, strict=True))
    return Distance(
        a=a.model,
        b=b.model,
        fingerprint=a.spec,
        measure=measure,
        value=value,
        interval=interval,
        per_probe=values,
        coverage=float(defined.mean()),
    )


def check_comparable(a: Fingerprint, b: Fingerprint) -> None:
    """Raise unless both are fingerprints of the same probes by the same method."""
    for given in (a, b):
        if not isinstance(given, Fingerprint):
            raise MisuseError(
                f"a measure compares two fingerprints, but {type(given).__name__} was given. Use method(model, "
                "probes), or stemma.distance for models"
            )
    if a.probes != b.probes:
        raise MisuseError(
            f"the fingerprints have different probes ({str(a.probes)[:17]}… and {str(b.probes)[:17]}…). Fingerprint "
            "both models with the same probes"
        )
    if a.spec.digest != b.spec.digest:
        given = [f"{s.name} {dict(s.params)}" for s in (a.spec, b.spec)]
        raise MisuseError(
            f"the fingerprints have different methods: {given[0]} and {given[1]}. Fingerprint both models with one "
            "method"
        )


def _rows(fingerprint: Fingerprint, rows: np.ndarray) -> Values:
    return {name: array[rows] for name, array in fingerprint.values.items()}
