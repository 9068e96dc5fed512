"""Outputs as scores per class, or per class and position."""

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import Values


def class_scores(a: Values, b: Values, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of two models as float64 scores over the same classes, `[k, classes]` or `[k, length, classes]`."""
    x, y = (np.asarray(v["outputs"], np.float64) for v in (a, b))
    if "hidden" in a or "hidden" in b:
        raise MisuseError(
            f"{measure} needs one score per class, but a model answers with hidden states (an encoder without a "
            "head). Compare gradient fields (the default), or use linear-cka or another measure of features"
        )
    for out in (x, y):
        if out.ndim == 2 and out.shape[1] == 1 and not (out % 1).any():
            raise MisuseError(
                f"{measure} needs one score per class, and a model answers with labels alone. `stemma compare` "
                "compares labels"
            )
        if out.ndim not in (2, 3) or out.shape[-1] < 2:
            raise MisuseError(
                f"{measure} needs one score per class, but a model returns shape {list(out.shape[1:])}. Compare "
                "gradient fields or features instead"
            )
        if not np.isfinite(out).all():
            raise MisuseError(f"{measure} got NaN or infinite outputs. Recompute the fingerprint without them")
    if x.shape != y.shape:
        raise MisuseError(
            f"{measure} needs the same classes, but the models return shapes {list(x.shape[1:])} and "
            f"{list(y.shape[1:])}. Compare gradient fields or features, which need no common classes"
        )
    return x, y


def probabilities(a: Values, b: Values, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """The softmax of the outputs of two models over the same classes."""
    from scipy.special import softmax

    x, y = class_scores(a, b, measure)
    return softmax(x, axis=-1), softmax(y, axis=-1)


def mean_over_positions(per_row: np.ndarray) -> np.ndarray:
    """One number per probe: the mean over positions, if there are any."""
    return per_row if per_row.ndim == 1 else per_row.mean(-1)
