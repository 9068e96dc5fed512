"""Structured optimal brain surgeon: units removed one after another, all others refitted, with the error at every size.

Source: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992 (1993); for
structures of several rows, ZipLM (Kurtic et al., NeurIPS 2023) and, for language models, SlimGPT (Ling et al., NeurIPS
2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stemma.edits.fidelity import subset_fidelity
from stemma.edits.fidelity.importance import ReaderMatrices


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """The error of one group by the number of units removed.

    Attributes:
        order: Units, the first to be removed first.
        removed: Numbers of removed units at which the error is known, ascending from 0.
        errors: Squared error of the outputs of all layers that read the group, each as a fraction of its mean square,
            summed; with the kept inputs refitted.
        percentiles: By unit, where a union rule ranked it: the largest fraction of the inputs that lies below it in any
            output of any layer that reads the group; else None.
    """

    order: np.ndarray
    removed: np.ndarray
    errors: np.ndarray
    percentiles: np.ndarray | None = None

    def at(self, removed: int | np.ndarray) -> np.ndarray:
        """The error when so many units are removed, linear between known points."""
        return np.interp(removed, self.removed, self.errors)


@dataclass(frozen=True)
class OptimalBrainSurgeon:
    """Backward elimination of units by the error that each removal adds after a refit.

    Attributes:
        steps: How often the leave-one-out errors are recomputed on the way from all units to one.
        damping: Fraction by which the diagonal of second moments is raised.
    """

    steps: int = 64
    damping: float = subset_fidelity.DAMPING

    def __call__(
        self,
        readers: Sequence[ReaderMatrices],
        size: int,
        order: np.ndarray | None = None,
        until: int = 1,
    ) -> ErrorCurve:
        """Remove units until so many are left, in a given order, or the one with the smallest added error first."""
        # The units left come last, in no order, and the curve ends there.
        # Cost: one inversion per layer, then for each step one product of its size: `(inputs * kernel)³` altogether.
        states = [
            _LayerState(r, subset_fidelity.damped_inverse(r.moment, self.damping)) for r in readers if r.energy > 0
        ]
        left, order_removed = np.ones(size, bool), list[int]()
        removed, errors = [0], [0.0]
        step = max(1, size // self.steps)
        while left.sum() > max(1, until):
            count = min(step, int(left.sum()) - 1)
            if order is None:
                cost = np.where(left, self._costs(states, size, left), np.inf)
                chosen = np.argsort(cost, kind="stable")[:count]
            else:
                chosen = np.asarray(order[len(order_removed) : len(order_removed) + count])
            added = sum(s.remove(chosen) for s in states)
            left[chosen] = False
            order_removed += [int(c) for c in chosen]
            removed.append(len(order_removed))
            errors.append(max(errors[-1], errors[-1] + added))
        last = np.flatnonzero(left)
        return ErrorCurve(np.array([*order_removed, *last]), np.array(removed), np.array(errors))

    @staticmethod
    def _costs(states: "Sequence[_LayerState]", size: int, left: np.ndarray) -> np.ndarray:
        units = np.flatnonzero(left)
        out = np.zeros(size)
        for s in states:
            out[units] += s.costs(units)
        return out


class _LayerState:
    """Weights and inverse moments of one layer while units are removed."""

    def __init__(self, reader: ReaderMatrices, inverted: torch.Tensor) -> None:
        self.reader, self.inverted, self.weights = reader, inverted, reader.weights.clone()

    def costs(self, units: np.ndarray) -> np.ndarray:
        index = self.reader.index[torch.from_numpy(units).to(self.reader.index.device)]
        errors = subset_fidelity.leave_one_out_error(self.weights, self.inverted, index)
        return (errors / self.reader.energy).cpu().numpy()

    def remove(self, units: np.ndarray) -> float:
        """Remove units and refit the others; returns the error that this adds."""
        rows = self.reader.index[torch.from_numpy(units).to(self.reader.index.device)].reshape(-1)
        across = self.inverted[:, rows]
        factor = torch.linalg.solve(across[rows], across.T)
        lost = self.weights[:, rows]
        added = float((lost * torch.linalg.solve(across[rows], lost.T).T).sum())
        self.weights = self.weights - lost @ factor
        self.inverted = self.inverted - across @ factor
        self.weights[:, rows] = 0
        self.inverted[rows] = 0
        self.inverted[:, rows] = 0
        diagonal = self.inverted.diagonal()
        diagonal[rows] = 1.0  # keeps the matrix regular, so that removed rows need no case of their own
        return added / self.reader.energy
