"""All pairwise distances among some models, with any method and measure."""

from collections.abc import Callable, Sequence

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.measures.base import AbstractMeasure
from stemma.measures.pairwise import pairwise
from stemma.probes import Probes
from stemma.types import DistanceMatrix

Progress = Callable[[str, int, int | None], None]


def distance_matrix(
    names: Sequence[str],
    models: Sequence[Model],
    probes: Probes,
    method: AbstractFingerprinter,
    measure: AbstractMeasure,
    progress: Progress | None = None,
) -> DistanceMatrix:
    """All pairwise distances; each model is asked once.

    Args:
        names: What the models are called.
        models: As many, two or more.
        probes: What all are asked.
        method: The fingerprinter.
        measure: Any measure that takes what the method gives.
        progress: Told what happens, how much is done and of how much.

    Returns:
        The distances; 0 on the diagonal where a model's fingerprint is defined.

    Raises:
        MisuseError: If method and measure do not go together.
    """
    if method.produces not in measure.accepts:
        raise MisuseError(f"{measure.name} compares {', '.join(sorted(measure.accepts))}, but {method.name} gives "
                          f"{method.produces}")  # fmt: skip
    if measure.probewise:
        found = pairwise(models, probes, method, measure, progress=progress)
        values, coverage = found.values, found.coverage
    else:
        prints = [method(model, probes) for model in models]
        values, coverage = np.zeros((len(models), len(models))), np.ones((len(models), len(models)))
        for i in range(len(models)):
            for j in range(i + 1):
                one = measure(prints[i], prints[j])
                values[i, j] = values[j, i] = one.value
                coverage[i, j] = coverage[j, i] = one.coverage
    return DistanceMatrix(
        names=tuple(names),
        networks=tuple(m.network.digest for m in models),
        values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values),
        coverage=tuple(tuple(float(c) for c in row) for row in coverage),
        fingerprint=method.spec,
        measure=measure.spec,
        n_probes=len(probes),
        probes=probes.digest,
    )
