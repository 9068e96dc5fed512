"""Parameters of class unlearning: which weights change, by which action, how strongly."""

from dataclasses import asdict, dataclass

from stemma.edits.editable_network import name_patterns
from stemma.edits.fidelity import subset_fidelity
from stemma.edits.fidelity.importance import SCORE_ALIASES
from stemma.errors import MisuseError
from stemma.types import Spec

ACTIONS = ("auto", "zero", "negate", "refit")
"""What is done to weights: set to zero, to their negative (both as published), or refitted by least squares."""


@dataclass(frozen=True)
class UnlearningSettings:
    """Which weights change so that a class is no longer predicted.

    Attributes:
        action: One of `ACTIONS`. `auto` refits where retain inputs are given. Where they are missing, or out of the
            distribution that the batch-norm statistics describe, it tries a refit with these statistics as a prior,
            zeroing and negating, and keeps the one that changes the outputs on shuffled forget samples least.
        score: `fidelity` (as published), `alignment` or `energy` (alias `activation-energy`) of single entries.
        scope: Whether the highest entries of each `layer` change, or of each `output` of it.
        layers: How many of the last layers that read hidden units are edited, the output layer excluded. 0 takes 6 in
            networks with layer norm, whose residual stream carries the class from early layers; in others 2 for `refit`
            and 4 for single entries; then more, up to all, where the target is not met or the loss is large.
        head: Edit the output layer too.
        attention: Edit the layers that read attention heads too, not only those that read hidden units.
        only: Patterns of the layers that may be edited, instead of the last ones.
        contrast: Rank entries by how much more they matter for forget samples than for retain inputs.
        reflect: Of `refit`: factor by which the samples' deviation from the mean output of retain inputs is reflected.
            0 only removes it, which does nothing where that mean output is itself predicted as this class.
        made: Where no retain inputs are given, synthesise some by shuffling blocks of the forget samples.
        target: Fraction of the forget samples that may still be predicted as the class.
        max_fraction: Largest fraction of a layer's entries that is changed.
        steps: Number of fractions that are tried up to `max_fraction`, before the last interval is bisected.
        positions: Largest number of output positions of a convolution that are sampled per input.
        batch: Batch size.
        damping: Fraction by which the diagonal of second moments is raised.
        seed: Of the positions and of the shuffled blocks.
    """

    action: str = "auto"
    score: str = "fidelity"
    scope: str = "layer"
    layers: int = 0
    head: bool = False
    attention: bool = True
    only: tuple[str, ...] = ()
    contrast: bool = True
    reflect: float = 1.0
    made: bool = False
    target: float = 0.01
    max_fraction: float = 0.2
    steps: int = 20
    positions: int = 64
    batch: int = 128
    damping: float = subset_fidelity.DAMPING
    seed: int = 0

    name = "modhifi-u"
    version = 3
    equivalent_versions = (2,)  # the same numbers; `max_fraction` had another name

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", SCORE_ALIASES.get(self.score, self.score))
        if self.action not in ACTIONS:
            raise MisuseError(f"no action is called {self.action!r}. Choose one of {', '.join(ACTIONS)}")
        if self.score not in ("fidelity", "alignment", "energy") or self.scope not in ("layer", "output"):
            raise MisuseError("score has to be fidelity, alignment or energy, and scope layer or output, but they are "
                              f"{self.score!r} and {self.scope!r}")  # fmt: skip
        object.__setattr__(self, "only", name_patterns(self.only))
        if not 0 < self.max_fraction <= 1 or not 0 <= self.target < 1 or self.layers < 0 or self.steps < 1:
            raise MisuseError("max_fraction has to lie in (0, 1], target in [0, 1), layers has to be 0 or more and "
                              "steps 1 or more")  # fmt: skip

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))
