"""How a pruning is to be done: what decides, how much is kept, and how what is left is refitted."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from stemma.edits.editable_network import Asked, patterns
from stemma.edits.fidelity.batch_norm import recalibrate
from stemma.edits.fidelity.compensation import Compensating, Cut
from stemma.edits.fidelity.fidelity import DAMPING
from stemma.edits.fidelity.importance import SCORES
from stemma.edits.fidelity.statistics import Collecting, Statistics
from stemma.edits.pruning.allocation import ALLOCATIONS
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Spec

Progress = Callable[[str, int, int | None], None]

BUDGETS = ("units", "macs", "parameters", "latency")
"""What a budget may limit."""


@dataclass(frozen=True)
class PruningSettings:
    """Which units are removed, and what is done with what is left.

    Attributes:
        budget: What is limited, one of `BUDGETS`.
        share: Share of it that is left.
        score: One of `scores.SCORES`: what decides which units of a group go first.
        allocation: One of `allocation.ALLOCATIONS`: how much of each group goes. A budget in units is always uniform;
            of several rounds only the first is measured.
        compensation: One of `compensation.KINDS`.
        sequential: Fit each layer to what the layers before it give now.
        recalibrate: Estimate the statistics of batch norm anew. None tries both and takes what changes the answers to
            the probes less: after a refit of whole kernels the old statistics are often the better ones.
        rounds: In how many steps units are chosen; statistics are collected anew, on the smaller network, for each.
        heads: Remove attention heads too.
        streams: Remove channels that several layers write and read (residual streams with batch norm).
        only: Patterns of the groups that may be cut; all if empty.
        ignore: Patterns of groups that stay whole.
        least: Share of every group that stays.
        multiple: Units are kept in multiples of this.
        damping: Share by which the diagonal of second moments is raised before they are inverted.
        batch: Inputs at once.
        positions: Most positions of a convolution that are looked at for one input; 0 for all.
        seed: Of whatever is drawn.
        weigh: Before groups are weighed against each other, multiply the error of each by what it does to the answers,
            measured by cutting that group alone.

    Source: Kashyap et al., NeurIPS 2025, algorithm 1 and appendix D. The defaults are not the paper's: elimination with
    refitted kernels instead of the union rule with factors per output, and a share of each group by dynamic programming
    instead of one percentile (`Pruning.official` has the paper's).
    """

    budget: str = "units"
    share: float = 0.7
    score: str = "elimination"
    allocation: str = "measured"
    compensation: str = "kernel"
    sequential: bool = True
    recalibrate: bool | None = None
    rounds: int = 1
    heads: bool = False
    streams: bool = True
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    least: float = 0.1
    multiple: int = 1
    damping: float = DAMPING
    batch: int = 128
    positions: int = 64
    seed: int = 0
    weigh: bool = True

    name = "modhifi-p"
    version = 2

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise MisuseError(f"a budget is given in {', '.join(BUDGETS)}, not in {self.budget!r}")
        if not 0 < self.share < 1:
            raise MisuseError(f"a share of {self.share:g} cannot be kept: give a number between 0 and 1")
        if self.score not in SCORES:
            raise MisuseError(f"no score is called {self.score!r}. There are: {', '.join(SCORES)}")
        if self.allocation not in ALLOCATIONS:
            raise MisuseError(f"units are allocated {' or '.join(ALLOCATIONS)}, not {self.allocation!r}")
        if self.rounds < 1 or self.multiple < 1 or not 0 <= self.least < 1:
            raise MisuseError("rounds and multiple are 1 or more, and the least share lies from 0 to below 1")
        if not 0 <= self.damping < 1 or self.seed < 0:
            raise MisuseError("damping lies from 0 to below 1, and the seed is 0 or more")
        for name in ("only", "ignore"):
            object.__setattr__(self, name, patterns(getattr(self, name)))
        _ = self.compensating

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    @property
    def renews(self) -> bool:
        """Whether batch norm is recalibrated where it is not tried both ways."""
        return self.recalibrate is not False

    def refit(
        self,
        whole: Asked,
        smaller: Asked,
        cuts: Sequence[Cut],
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Refit what is left of a network that was cut, in place, and recalibrate its batch norms where that is wanted.

        Args:
            whole: The network before.
            smaller: The network after it was cut.
            cuts: Layers that lost inputs.
            probes: Inputs.
            statistics: Of the whole network, used where layers are not fitted sequentially.
            progress: Told how far it is.
        """
        self.compensating(whole, smaller, cuts, probes.inputs, statistics, progress)
        if self.renews:
            recalibrate(smaller.module, smaller.forward, probes.inputs, smaller.like, self.batch)

    @property
    def compensating(self) -> Compensating:
        """How layers that lose inputs are refitted."""
        return Compensating(self.compensation, self.sequential, self.damping, self.renews, self.collecting)

    @property
    def collecting(self) -> Collecting:
        """How statistics are collected."""
        return Collecting("full", self.batch, self.positions, self.seed)
