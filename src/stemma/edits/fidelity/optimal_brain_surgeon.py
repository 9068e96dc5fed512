"""Removing units one after another, all that is left refitted each time: an order, and the error at every size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stemma.edits.fidelity import fidelity
from stemma.edits.fidelity.importance import Read


@dataclass(frozen=True, eq=False)
class Curve:
    """What removing units of one group costs.

    Attributes:
        order: Units, the first to be removed first.
        removed: Numbers of removed units at which the error is known, ascending from 0.
        errors: Squared error of the outputs of all layers that read the group, each as a share of its mean square,
            summed; with the kept inputs refitted.
    """

    order: np.ndarray
    removed: np.ndarray
    errors: np.ndarray

    def at(self, removed: int | np.ndarray) -> np.ndarray:
        """The error when so many units are removed, between known points on a straight line.

        Args:
            removed: One number or several.

        Returns:
            As many errors.
        """
        return np.interp(removed, self.removed, self.errors)


@dataclass(frozen=True)
class Eliminating:
    """Backward elimination by what each removal costs after a refit.

    Attributes:
        steps: How often the costs are worked out again on the way from all units to one.
        damping: Share by which the diagonal of second moments is raised.
    """

    steps: int = 64
    damping: float = fidelity.DAMPING

    def __call__(self, reads: Sequence[Read], size: int, order: np.ndarray | None = None) -> Curve:
        """Remove units until one is left.

        Cost: one inversion per layer, then for each step one product of its size: `(inputs * kernel)³` altogether.

        Args:
            reads: The layers that read the group.
            size: Number of units.
            order: Remove them in this order; the cheapest first if None.

        Returns:
            Order and errors.
        """
        states = [_State(r, fidelity.inverse(r.moment, self.damping)) for r in reads if r.energy > 0]
        left, gone = np.ones(size, bool), list[int]()
        removed, errors = [0], [0.0]
        step = max(1, size // self.steps)
        while left.sum() > 1:
            count = min(step, int(left.sum()) - 1)
            if order is None:
                cost = np.where(left, self._costs(states, size, left), np.inf)
                chosen = np.argsort(cost, kind="stable")[:count]
            else:
                chosen = np.asarray(order[len(gone) : len(gone) + count])
            added = sum(s.remove(chosen) for s in states)
            left[chosen] = False
            gone += [int(c) for c in chosen]
            removed.append(len(gone))
            errors.append(max(errors[-1], errors[-1] + added))
        last = np.flatnonzero(left)
        return Curve(np.array([*gone, *last]), np.array(removed), np.array(errors))

    @staticmethod
    def _costs(states: "Sequence[_State]", size: int, left: np.ndarray) -> np.ndarray:
        units = np.flatnonzero(left)
        out = np.zeros(size)
        for s in states:
            out[units] += s.costs(units)
        return out


class _State:
    """Weights and inverse moments of one layer while units go."""

    def __init__(self, read: Read, inverted: torch.Tensor) -> None:
        self.read, self.inverted, self.weights = read, inverted, read.weights.clone()

    def costs(self, units: np.ndarray) -> np.ndarray:
        index = self.read.index[torch.from_numpy(units).to(self.read.index.device)]
        return (fidelity.left_out(self.weights, self.inverted, index) / self.read.energy).cpu().numpy()

    def remove(self, units: np.ndarray) -> float:
        """Take units out and refit what is left; the error that this adds is returned."""
        rows = self.read.index[torch.from_numpy(units).to(self.read.index.device)].reshape(-1)
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
        diagonal[rows] = 1.0  # so that what is gone can be skipped without a case of its own
        return added / self.read.energy
