"""Paths along which a gradient field is integrated: baselines, and the quadrature (nodes and weights)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stemma.errors import MisuseError
from stemma.probes import Probes


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(n)
    return (1 + x) / 2, w / 2


def _riemann(first: float, last: float) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    return lambda n: (np.linspace(first / n, 1 - last / n, n), np.full(n, 1 / n))


def _trapezoid(n: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.full(n, 1 / n)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: Mapping[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gauss-legendre": _gauss_legendre,
    "riemann-right": _riemann(1, 0),
    "riemann-left": _riemann(0, 1),
    "riemann-middle": _riemann(0.5, 0.5),
    "riemann-trapezoid": _trapezoid,
}
"""Nodes in [0, 1] and weights, by name. Those of the trapezoid sum to 1 - 1/n, as published."""


def quadrature(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[steps]` from 0 (baseline) to 1 (probe) and their weights, by name of the quadrature."""
    if name not in QUADRATURES:
        raise MisuseError(f"unknown quadrature '{name}'. Quadratures: {', '.join(QUADRATURES)}")
    if steps != int(steps) or steps < 1 or (steps < 2 and name == "riemann-trapezoid"):
        raise MisuseError(
            f"a path cannot have {steps} steps. Use a positive integer, at least 2 for the trapezoid rule"
        )
    return QUADRATURES[name](steps)


def step_weights(nodes: np.ndarray, weights: np.ndarray, *, cumulative: bool, uniform: bool) -> np.ndarray:
    """Weights `[steps]` of the steps in the average over a path; they sum to 1."""
    if not uniform:
        return np.full(len(nodes), 1 / len(nodes))
    if not cumulative:
        return weights / weights.sum()
    reached = np.cumsum(weights) / weights.sum()
    gaps = np.diff(reached, prepend=0.0) / 2  # the trapezoid rule, and a constant before the first value
    share = gaps + np.append(gaps[1:], 0.0)
    share[0] += gaps[0]
    return share


BASELINES = ("zero", "normalised-zero", "mean", "probe")


def baseline_inputs(
    probes: Probes, names: str, seed: int, blank: Sequence[float] = (0.0,)
) -> list[tuple[str, np.ndarray]]:
    """Name and inputs of each baseline; the probes' own (`given`) if they have one.

    Args:
        probes: The ends of the paths.
        names: Baselines, joined by `+`.
        seed: Of the choice of other probes.
        blank: The raw value of each channel that the network's own normalisation turns into zero.

    Returns:
        Name and inputs `[n, …]` of each; baselines shared by all probes have stride 0.

    Raises:
        MisuseError: If a name is unknown.
    """
    for name in names.split("+"):
        if name not in BASELINES:
            raise MisuseError(f"unknown baseline '{name}'. Baselines: {', '.join(BASELINES)}; join several with +")
    if probes.baseline is not None:
        return [("given", np.broadcast_to(probes.baseline, probes.inputs.shape))]
    return [(name, _baseline_input(probes, name, seed, blank)) for name in names.split("+")]


def _baseline_input(probes: Probes, name: str, seed: int, blank: Sequence[float]) -> np.ndarray:
    inputs = probes.inputs
    if name == "normalised-zero" and any(blank) and probes.kind != "tokens":
        axes = [1] * (inputs.ndim - 2) if probes.kind == "image" else []
        return np.broadcast_to(np.asarray(blank, inputs.dtype).reshape(-1, *axes), inputs.shape)
    if name == "probe":
        return inputs[derangement(len(inputs), seed)]
    if name == "mean":
        return np.broadcast_to(inputs.mean(0, dtype=np.float64).astype(inputs.dtype), inputs.shape)
    return np.broadcast_to(np.zeros((), inputs.dtype), inputs.shape)


def derangement(count: int, seed: int) -> np.ndarray:
    """A different index for every index: one random cycle through all."""
    if count < 2:
        raise MisuseError("baseline=probe needs at least two probes. Use more probes, or baseline=zero")
    order = np.random.default_rng(seed).permutation(count)
    out = np.empty(count, np.int64)
    out[order] = np.roll(order, -1)
    return out
