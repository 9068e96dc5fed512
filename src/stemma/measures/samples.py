"""Sample matrices for representational measures: one row per probe, for two models."""

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import Values

CONSTANT_TOLERANCE = 1e-10
"""Spread, relative to the largest entry, below which coordinates are constant (float32 rounds at 1e-7)."""


def sample_matrices(a: Values, b: Values, measure: str, minimum: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The samples of two models as float64 matrices with one row per sample, checked.

    Features `[k, p]` are k samples; features `[k, r, p]` are r samples of each probe (positions, directions). Outputs
    `[k, …]` are flattened to one row per probe. `minimum` is the smallest number of distinct rows.

    Raises:
        MisuseError: If the two do not have the same samples, or too few to compare.

    Returns:
        Both matrices.

    """
    x, y = _rows(a, measure), _rows(b, measure)
    if len(x) != len(y):
        raise MisuseError(
            f"{measure} compares the same samples, but the models have {len(x)} and {len(y)}. Use the same probes, "
            "and pool positions if the layers have different ones"
        )
    for rows in (x, y):
        _check_variation(rows, measure, minimum)
    return _rescale(x), _rescale(y)


def refuse_repeats(a: Values, b: Values, measure: str) -> None:
    """Raise if probes are repeated: debiased estimates assume independent samples."""
    x, y = (np.asarray(v["features"] if "features" in v else v["outputs"]) for v in (a, b))
    if "features" in a and x.ndim > 2:
        return
    first_index: dict[bytes, int] = {}
    for i, rows in enumerate(zip(x, y, strict=True)):
        first = first_index.setdefault(b"".join(r.tobytes() for r in rows), i) if all(r.any() for r in rows) else i
        if first != i:
            raise MisuseError(
                f"probes {first} and {i} have equal outputs in both models, so they seem to be repeated. Remove "
                f"repeated probes for {measure}"
            )


def center(x: np.ndarray) -> np.ndarray:
    """Rows minus their mean."""
    return x - x.mean(0)


def reduce_columns(x: np.ndarray) -> np.ndarray:
    """A matrix with the same Gram matrix and at most as many columns as rows."""
    if x.shape[1] <= len(x):
        return x
    _, triangle = np.linalg.qr(x.T)
    return triangle.T


def _rows(values: Values, measure: str) -> np.ndarray:
    if "features" in values:
        given = np.asarray(values["features"], np.float64)
        rows = given.reshape(-1, given.shape[-1])
    else:
        given = np.asarray(values["outputs"], np.float64)
        rows = given.reshape(len(given), -1)
    if not np.isfinite(rows).all():
        raise MisuseError(f"{measure} got NaN or infinite values. Recompute the fingerprint without them")
    return rows


def _rescale(rows: np.ndarray) -> np.ndarray:
    """Rows rescaled so that squares neither vanish nor overflow; all measures of samples are scale-invariant."""
    size = np.abs(rows).max()
    return rows if 1e-60 < size < 1e60 else rows / size


def _check_variation(rows: np.ndarray, measure: str, minimum: int) -> None:
    size = np.abs(rows).max(initial=0)
    if size == 0 or (np.ptp(rows, axis=0) <= CONSTANT_TOLERANCE * size).all():
        raise MisuseError(
            f"{measure} is undefined: one model has the same values at all {len(rows)} samples. Use other probes, or "
            "another layer"
        )
    found = len(rows) if len(rows) > 10 * minimum else len(np.unique(rows, axis=0))
    if found < minimum:
        raise MisuseError(f"{measure} needs at least {minimum} different samples, but one model has {found}")
