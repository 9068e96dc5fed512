"""How many units of each group are kept, so that the whole meets a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from stemma.edits.dependency_graph.groups import Network
from stemma.edits.fidelity.optimal_brain_surgeon import Curve
from stemma.errors import MisuseError

RULES = ("uniform", "greedy", "dynamic")
"""The same share of every group; the cheapest removal next, by error per operation saved; a dynamic programme."""

ALLOCATIONS = (*RULES, "measured")
"""These, or whichever of them changes the answers to the probes least."""

BINS = 2000
"""Steps into which the dynamic programme divides the cost."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Groups that must keep equally many units, because one number in a configuration sizes them all.

    Attributes:
        groups: Their names.
        size: Units of each.
        least: Fewest units that are kept.
        step: Units are kept in multiples of this.
        curves: What removing costs, one per group.
    """

    groups: tuple[str, ...]
    size: int
    least: int
    step: int
    curves: tuple[Curve, ...]

    @property
    def options(self) -> list[int]:
        """Numbers of units that may be kept, all of them first."""
        return [self.size, *range((self.size - 1) // self.step * self.step, self.least - 1, -self.step)]

    def error(self, kept: int) -> float:
        """Error when so many units of each group are kept."""
        return float(sum(c.at(self.size - kept) for c in self.curves))


@dataclass(frozen=True, eq=False)
class Budget:
    """What is limited, and to what share of the whole.

    Attributes:
        cost: From the units kept by group to what they cost.
        share: Of the cost of the whole network.
        name: `macs`, `parameters` or `units`.
    """

    cost: Callable[[Mapping[str, int]], float]
    share: float
    name: str

    @property
    def limit(self) -> float:
        """The cost that is allowed."""
        return self.share * self.cost({})


def allocate(bundles: Sequence[Bundle], budget: Budget, how: str) -> dict[str, int]:
    """Choose how many units are kept.

    Args:
        bundles: Groups, together where they must stay alike.
        budget: What is limited.
        how: One of `ALLOCATIONS`.

    Returns:
        Units that are kept, by group.

    Raises:
        MisuseError: If the budget cannot be met, or there is no such rule.
    """
    rules = {"uniform": _uniform, "greedy": _greedy, "dynamic": _dynamic}
    if how not in rules:
        raise MisuseError(f"units are allocated {' or '.join(RULES)}, not {how!r}")
    floor = _kept(bundles, [b.options[-1] for b in bundles])
    if budget.cost(floor) > budget.limit:
        least = budget.cost(floor) / budget.cost({})
        raise MisuseError(
            f"a budget of {budget.share:.2g} of the {budget.name} cannot be met: {least:.2g} is left when every group "
            "is cut as far as it may be. Ask for more, or allow smaller groups"
        )
    return _kept(bundles, rules[how](bundles, budget))


def _kept(bundles: Sequence[Bundle], sizes: Sequence[int]) -> dict[str, int]:
    return {g: n for b, n in zip(bundles, sizes, strict=True) for g in b.groups}


def _uniform(bundles: Sequence[Bundle], budget: Budget) -> list[int]:
    """The largest share of every group that fits, to a thousandth; then single steps back while they fit."""

    def sizes(share: float) -> list[int]:
        return [min(b.options, key=lambda n, b=b: (abs(n - share * b.size), n)) for b in bundles]

    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        fits = budget.cost(_kept(bundles, sizes(middle))) <= budget.limit
        low, high = (middle, high) if fits else (low, middle)
    return sizes(low)


def _greedy(bundles: Sequence[Bundle], budget: Budget, start: Sequence[int] | None = None) -> list[int]:
    """Remove where the error grows least per cost saved, until the budget is met."""
    sizes = list(start) if start is not None else [b.size for b in bundles]
    errors = [{n: b.error(n) for n in b.options} for b in bundles]
    cost = budget.cost(_kept(bundles, sizes))
    while cost > budget.limit:
        best: tuple[float, int, int] | None = None
        for i, b in enumerate(bundles):
            smaller = [n for n in b.options if n < sizes[i]]
            for n in {smaller[j] for j in (0, 1, 3, 7) if j < len(smaller)}:
                saved = cost - budget.cost(_kept(bundles, [*sizes[:i], n, *sizes[i + 1 :]]))
                grows = max(0.0, errors[i][n] - errors[i][sizes[i]])
                rate = grows / max(saved, 1e-12)
                if best is None or rate < best[0]:
                    best = rate, i, n
        assert best is not None
        sizes[best[1]] = best[2]
        cost = budget.cost(_kept(bundles, sizes))
    return sizes


def _dynamic(bundles: Sequence[Bundle], budget: Budget, rounds: int = 4) -> list[int]:
    """The least sum of errors whose cost, linear around the last solution, fits; rounded to the budget at the end."""
    sizes = _greedy(bundles, budget)
    best, least = sizes, _whole(bundles, sizes)
    for _ in range(rounds):
        found = _programme(bundles, budget, sizes)
        found = _greedy(bundles, budget, found)
        if _whole(bundles, found) < least:
            best, least = found, _whole(bundles, found)
        sizes = [(a + b) // 2 // s.step * s.step or a for a, b, s in zip(found, sizes, bundles, strict=True)]
        sizes = [min(s.options, key=lambda n, a=a: abs(n - a)) for a, s in zip(sizes, bundles, strict=True)]
    return best


def _whole(bundles: Sequence[Bundle], sizes: Sequence[int]) -> float:
    return sum(b.error(n) for b, n in zip(bundles, sizes, strict=True))


def _programme(bundles: Sequence[Bundle], budget: Budget, around: Sequence[int]) -> list[int]:
    """Knapsack over groups, with the cost of a group measured while all others stay as they are."""
    here = budget.cost(_kept(bundles, around))
    price = [
        {n: budget.cost(_kept(bundles, [*around[:i], n, *around[i + 1 :]])) - here for n in b.options}
        for i, b in enumerate(bundles)
    ]
    floor = [min(p.values()) for p in price]
    room = budget.limit - here - sum(floor)
    if room <= 0:
        return list(around)
    width = room / BINS
    reach = np.zeros(BINS + 1)
    picks = []
    for i, b in enumerate(bundles):
        errors = np.full((len(b.options), BINS + 1), np.inf)
        for j, n in enumerate(b.options):
            bins = ceil((price[i][n] - floor[i]) / width - 1e-9)
            if bins <= BINS:
                errors[j, bins:] = reach[: BINS + 1 - bins] + b.error(n)
        picks.append(errors.argmin(0))
        reach = errors.min(0)
    sizes, at = [0] * len(bundles), BINS
    for i in range(len(bundles) - 1, -1, -1):
        sizes[i] = bundles[i].options[int(picks[i][at])]
        at -= ceil((price[i][sizes[i]] - floor[i]) / width - 1e-9)
    return sizes


def cost_of(net: Network, what: str) -> Callable[[Mapping[str, int]], float]:
    """What a budget counts.

    Args:
        net: The network.
        what: `macs`, `parameters` or `units`.

    Returns:
        From the units kept by group to their cost.

    Raises:
        MisuseError: If nothing is counted under this name.
    """
    if what == "macs":
        return net.macs
    if what == "parameters":
        return lambda kept: float(net.parameters(kept))
    if what == "units":
        return lambda kept: float(sum(kept.get(g, n) for g, n in net.sizes.items()))
    raise MisuseError(f"a budget is given in macs, parameters, units or latency, not in {what!r}")
