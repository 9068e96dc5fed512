"""How a budget is divided among dependency groups: uniformly, by ModHiFi's union rule, greedily, or by knapsack.

Source of the union rule: ModHiFi (Kashyap et al., NeurIPS 2025), algorithm 1: one percentile for all layers, and a unit
goes where it is below that percentile in every output of every layer that reads it. How much of a layer goes is not
chosen: it follows.

Source of the dynamic programme: SPDY (Frantar and Alistarh, ICML 2022), a knapsack over per-layer error curves. Here a
layer's cost depends on its neighbours, so costs are linearised around the last solution.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph
from stemma.edits.fidelity.modhifi_p import kept_at
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve
from stemma.errors import MisuseError

COMPARED = ("uniform", "greedy", "dynamic")
"""The same fraction of every group; the smallest error per saved cost next; a dynamic programme."""

RULES = (*COMPARED, "union")
"""The same, and ModHiFi's: one percentile for all layers, the union over outputs and readers decides."""

ALLOCATIONS = (*RULES, "measured")
"""One of the rules, or whichever of `COMPARED` gives the smallest error of the network's outputs on the probes."""

COST_BINS = 2000
"""Steps into which the dynamic programme divides the cost."""


@dataclass(frozen=True, eq=False)
class TiedGroups:
    """Groups that keep equally many units, because one entry of the configuration sizes them all.

    Attributes:
        groups: Their names.
        size: Units of each.
        min_units: Smallest number of units that is kept.
        round_to: The number of kept units is a multiple of this.
        curves: One error curve per group.
    """

    groups: tuple[str, ...]
    size: int
    min_units: int
    round_to: int
    curves: tuple[ErrorCurve, ...]

    @property
    def options(self) -> list[int]:
        """Numbers of units that may be kept, descending from all of them."""
        largest = (self.size - 1) // self.round_to * self.round_to
        return [self.size, *range(largest, self.min_units - 1, -self.round_to)]

    def error(self, kept: int) -> float:
        """Sum of the groups' errors when each keeps this many units."""
        return float(sum(c.at(self.size - kept) for c in self.curves))


@dataclass(frozen=True, eq=False)
class Budget:
    """A limit on a cost.

    Attributes:
        cost: From the units kept by group to the cost.
        keep_ratio: Allowed fraction of the unpruned network's cost.
        name: `macs`, `parameters` or `units`.
        uncut: What is not cut, as the end of a sentence.
    """

    cost: Callable[[Mapping[str, int]], float]
    keep_ratio: float
    name: str
    uncut: str = ""

    @property
    def limit(self) -> float:
        """The cost that is allowed."""
        return self.keep_ratio * self.cost({})


def allocate(tied: Sequence[TiedGroups], budget: Budget, rule: str) -> dict[str, int]:
    """The number of units that each group keeps, by one of `RULES`; `MisuseError` if the budget cannot be met."""
    rules = {"uniform": _uniform, "greedy": _greedy, "dynamic": _dynamic, "union": _union}
    if rule not in rules:
        raise MisuseError(f"no allocation is called {rule!r}. Choose one of {', '.join(RULES)}")
    smallest = _kept(tied, [t.options[-1] for t in tied])
    if budget.cost(smallest) > budget.limit:
        least = budget.cost(smallest) / budget.cost({})
        raise MisuseError(
            f"a budget of {budget.keep_ratio:.2g} of the {budget.name} cannot be met: {least:.2g} remain at the "
            f"smallest allowed group sizes. Raise the budget or lower min_keep{budget.uncut}"
        )
    return _kept(tied, rules[rule](tied, budget))


def _kept(tied: Sequence[TiedGroups], sizes: Sequence[int]) -> dict[str, int]:
    return {g: n for t, n in zip(tied, sizes, strict=True) for g in t.groups}


def _uniform(tied: Sequence[TiedGroups], budget: Budget) -> list[int]:
    """The largest common fraction that fits."""

    def sizes(fraction: float) -> list[int]:
        return [min(t.options, key=lambda n, t=t: (abs(n - fraction * t.size), n)) for t in tied]

    return _largest_that_fits(sizes, tied, budget, 24)


def _union(tied: Sequence[TiedGroups], budget: Budget) -> list[int]:
    """One percentile for all groups, the lowest that meets the budget."""
    # Groups that one entry of the configuration sizes keep the mean of what the rule keeps of each.

    def sizes(above: float) -> list[int]:
        percentile = 1 - above
        wanted = [
            np.mean([kept_at(c.percentiles, percentile) for c in t.curves if c.percentiles is not None]) for t in tied
        ]
        return [min(t.options, key=lambda n, w=w: (abs(n - w), -n)) for t, w in zip(tied, wanted, strict=True)]

    return _largest_that_fits(sizes, tied, budget, 40)


def _largest_that_fits(
    sizes: Callable[[float], list[int]], tied: Sequence[TiedGroups], budget: Budget, steps: int
) -> list[int]:
    """The sizes at the largest number in [0, 1] whose cost is allowed, by bisection; larger ones keep more."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        fits = budget.cost(_kept(tied, sizes(middle))) <= budget.limit
        low, high = (middle, high) if fits else (low, middle)
    return sizes(low)


def _greedy(tied: Sequence[TiedGroups], budget: Budget, start: Sequence[int] | None = None) -> list[int]:
    """Remove where the error grows least per saved cost, until the budget is met."""
    sizes = list(start) if start is not None else [t.size for t in tied]
    errors = [{n: t.error(n) for n in t.options} for t in tied]
    cost = budget.cost(_kept(tied, sizes))
    while cost > budget.limit:
        best: tuple[float, int, int] | None = None
        for i, t in enumerate(tied):
            smaller = [n for n in t.options if n < sizes[i]]
            for n in {smaller[j] for j in (0, 1, 3, 7) if j < len(smaller)}:
                saved = cost - budget.cost(_kept(tied, [*sizes[:i], n, *sizes[i + 1 :]]))
                added = max(0.0, errors[i][n] - errors[i][sizes[i]])
                rate = added / max(saved, 1e-12)
                if best is None or rate < best[0]:
                    best = rate, i, n
        assert best is not None
        sizes[best[1]] = best[2]
        cost = budget.cost(_kept(tied, sizes))
    return sizes


def _dynamic(tied: Sequence[TiedGroups], budget: Budget, rounds: int = 4) -> list[int]:
    """The smallest sum of errors whose cost, linearised around the last solution, fits; the greedy rule repairs it."""
    sizes = _greedy(tied, budget)
    best, smallest = sizes, _total_error(tied, sizes)
    for _ in range(rounds):
        found = _greedy(tied, budget, _knapsack(tied, budget, sizes))
        if _total_error(tied, found) < smallest:
            best, smallest = found, _total_error(tied, found)
        sizes = [(a + b) // 2 // t.round_to * t.round_to or a for a, b, t in zip(found, sizes, tied, strict=True)]
        sizes = [min(t.options, key=lambda n, a=a: abs(n - a)) for a, t in zip(sizes, tied, strict=True)]
    return best


def _total_error(tied: Sequence[TiedGroups], sizes: Sequence[int]) -> float:
    return sum(t.error(n) for t, n in zip(tied, sizes, strict=True))


def _knapsack(tied: Sequence[TiedGroups], budget: Budget, around: Sequence[int]) -> list[int]:
    """Knapsack over groups, with the cost of each measured while all others keep their present size."""
    here = budget.cost(_kept(tied, around))
    price = [
        {n: budget.cost(_kept(tied, [*around[:i], n, *around[i + 1 :]])) - here for n in t.options}
        for i, t in enumerate(tied)
    ]
    cheapest = [min(p.values()) for p in price]
    room = budget.limit - here - sum(cheapest)
    if room <= 0:
        return list(around)
    width = room / COST_BINS
    total = np.zeros(COST_BINS + 1)
    picks = []
    for i, t in enumerate(tied):
        errors = np.full((len(t.options), COST_BINS + 1), np.inf)
        for j, n in enumerate(t.options):
            bins = ceil((price[i][n] - cheapest[i]) / width - 1e-9)
            if bins <= COST_BINS:
                errors[j, bins:] = total[: COST_BINS + 1 - bins] + t.error(n)
        picks.append(errors.argmin(0))
        total = errors.min(0)
    sizes, at = [0] * len(tied), COST_BINS
    for i in range(len(tied) - 1, -1, -1):
        sizes[i] = tied[i].options[int(picks[i][at])]
        at -= ceil((price[i][sizes[i]] - cheapest[i]) / width - 1e-9)
    return sizes


def budget_cost(graph: DependencyGraph, name: str) -> Callable[[Mapping[str, int]], float]:
    """The cost that a budget in `macs`, `parameters` or `units` limits, as a function of the units kept by group."""
    if name == "macs":
        return graph.macs
    if name == "parameters":
        return lambda kept: float(graph.parameters(kept))
    if name == "units":
        return lambda kept: float(sum(kept.get(g, n) for g, n in graph.sizes.items()))
    raise MisuseError(f"there is no budget {name!r}. Choose macs, parameters, units or latency")
