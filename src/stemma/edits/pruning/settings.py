"""Parameters of structured pruning: the budget, what ranks units, and how the remaining weights are refitted."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real

from stemma.edits.editable_network import EditableNetwork, name_patterns
from stemma.edits.fidelity.batch_norm_recalibration import recalibrate
from stemma.edits.fidelity.compensation import LayerRefit, PrunedLayer
from stemma.edits.fidelity.importance import SCORE_ALIASES, SCORES
from stemma.edits.fidelity.statistics import Statistics, StatisticsCollector
from stemma.edits.fidelity.subset_fidelity import DAMPING
from stemma.edits.pruning.allocation import ALLOCATIONS
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Spec

Progress = Callable[[str, int, int | None], None]

BUDGETS = ("units", "macs", "parameters", "latency")
"""What a budget may limit."""


@dataclass(frozen=True)
class PruningSettings:
    """Which units are removed, and how the remaining weights are refitted.

    Attributes:
        budget: What is limited, one of `BUDGETS`.
        keep_ratio: Fraction of the budget that is kept.
        score: One of `importance.SCORES` or its aliases: what ranks the units of a group.
        allocation: One of `allocation.ALLOCATIONS`: how the budget is divided among groups. A budget in units is
            uniform, but for `union`, which needs a union score; of several rounds only the first is measured.
        compensation: One of `compensation.COMPENSATIONS`: how layers that lose inputs are refitted.
        sequential: Fit each layer to the inputs that the pruned layers before it produce.
        recalibrate: Re-estimate the batch-norm statistics. None tries both ways and keeps the one with the smaller
            error of the network's outputs: after a refit of whole kernels the old statistics are often better.
        rounds: Number of pruning rounds; statistics are collected again, on the smaller network, for each.
        heads: Remove attention heads too.
        streams: Remove channels that several layers write and read (residual streams with batch norm).
        only: Patterns of the groups that may be pruned; all if empty.
        ignore: Patterns of the groups that are not pruned.
        min_keep: Smallest fraction of every group that is kept.
        round_to: The number of kept units is a multiple of this.
        damping: Fraction by which the diagonal of second moments is raised before they are inverted.
        batch: Batch size.
        positions: Largest number of output positions of a convolution that are sampled per input; 0 for all.
        seed: Of everything that is sampled.
        weigh: Rescale the error curve of each group to the error of the network's outputs, measured by pruning that
            group alone, before groups compete for the budget.
    """

    budget: str = "units"
    keep_ratio: float = 0.7
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
    min_keep: float = 0.1
    round_to: int = 1
    damping: float = DAMPING
    batch: int = 128
    positions: int = 64
    seed: int = 0
    weigh: bool = True

    name = "modhifi-p"
    version = 3
    equivalent_versions = (2,)  # the same numbers; `keep_ratio`, `min_keep` and `round_to` had other names

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", SCORE_ALIASES.get(self.score, self.score))
        numbers = ("keep_ratio", "min_keep", "damping", "rounds", "round_to", "batch", "positions", "seed")
        for name in numbers:
            if not isinstance(getattr(self, name), Real):
                raise MisuseError(f"{name} takes a number, not {getattr(self, name)!r}")
        if not isinstance(self.budget, str) or self.budget not in BUDGETS:
            raise MisuseError(f"there is no budget {self.budget!r}. Choose one of {', '.join(BUDGETS)}")
        if not 0 < self.keep_ratio < 1:
            raise MisuseError(f"keep_ratio has to lie between 0 and 1, but is {self.keep_ratio:g}")
        if self.score not in SCORES:
            raise MisuseError(f"no score is called {self.score!r}. Choose one of {', '.join(SCORES)}")
        if self.allocation not in ALLOCATIONS:
            raise MisuseError(f"no allocation is called {self.allocation!r}. Choose one of {', '.join(ALLOCATIONS)}")
        if self.allocation == "union" and not self.score.startswith("union"):
            raise MisuseError(f"allocation union needs the score union-alignment or union-fidelity, not {self.score}")
        if self.rounds < 1 or self.round_to < 1 or not 0 <= self.min_keep < 1:
            raise MisuseError("rounds and round_to have to be 1 or more, and min_keep from 0 to below 1, but they are "
                              f"{self.rounds}, {self.round_to} and {self.min_keep:g}")  # fmt: skip
        if not 0 <= self.damping < 1 or self.seed < 0:
            raise MisuseError("damping has to lie from 0 to below 1, and the seed has to be 0 or more, but they are "
                              f"{self.damping:g} and {self.seed}")  # fmt: skip
        for name in ("only", "ignore"):
            object.__setattr__(self, name, name_patterns(getattr(self, name)))
        _ = self.layer_refit

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    @property
    def recalibrates(self) -> bool:
        """Whether batch norm is recalibrated, where not both ways are tried."""
        return self.recalibrate is not False

    def refit(
        self,
        original: EditableNetwork,
        smaller: EditableNetwork,
        layers: Sequence[PrunedLayer],
        probes: Probes,
        statistics: Statistics | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Refit the layers of a pruned network in place, and recalibrate its batch norms where that is asked for."""
        self.layer_refit(original, smaller, layers, probes.inputs, statistics, progress)
        if self.recalibrates:
            recalibrate(smaller.module, smaller.forward, probes.inputs, smaller.like, self.batch)

    @property
    def layer_refit(self) -> LayerRefit:
        """How layers that lose inputs are refitted."""
        return LayerRefit(self.compensation, self.sequential, self.damping, self.recalibrates, self.collector)

    @property
    def collector(self) -> StatisticsCollector:
        """How second moments are collected."""
        return StatisticsCollector(self.batch, self.positions, self.seed)
