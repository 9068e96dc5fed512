"""How a class is to be unlearned: which weights, by which action, how strongly."""

from dataclasses import asdict, dataclass

from stemma.edits.editable_network import patterns
from stemma.edits.fidelity import fidelity
from stemma.errors import MisuseError
from stemma.types import Spec

ACTIONS = ("auto", "zero", "negate", "refit")
"""What is done to weights: set to zero, to their negative (both as published), or solved for anew."""


@dataclass(frozen=True)
class UnlearningSettings:
    """Which weights change so that a class is no longer answered.

    Attributes:
        action: One of `ACTIONS`. `auto` refits where other inputs are given. Where they are not, or are unlike what
            batch norm remembers, it tries to refit with that memory, to set to zero and to negate, and takes what
            changes the answers to inputs made of the samples least.
        score: `fidelity` (as published), `alignment` or `energy` of single entries.
        scope: Whether the highest entries of each `layer` change, or of each `output` of it.
        layers: How many of the last layers that read hidden units are edited, the output layer left alone; 0 takes 6
            in networks with layer norm, whose residual stream brings the class from far, and in others 2 to refit and 4
            for single entries; twice as many again and again, then all, where the target is not met or much is lost.
        head: Edit the output layer too.
        attention: Edit the layers that read attention heads too, not only those that read hidden units.
        only: Patterns of the layers that may be edited, instead of the last ones.
        contrast: Rank entries by how much more they matter to what is to be forgotten than to the other inputs.
        reflect: Of `refit`: by how much the samples' deviation from the others' mean output is turned round; 0 only
            removes it, which does nothing where the mean of all others is answered with this class.
        made: Where no other inputs are given, make some from the samples themselves, by exchanging blocks of pixels.
        target: Share of the forget samples that may still be answered.
        most: Largest share of a layer's entries that is changed.
        steps: Shares that are tried on the way to `most`, before the last interval is halved a few times.
        positions: Most positions of a convolution that are looked at for one input.
        batch: Inputs at once.
        damping: Share by which the diagonal of second moments is raised.
        seed: Of the positions and of the blocks.

    Source: Kashyap et al., NeurIPS 2025, algorithm 2. The paper fixes the share of entries by hand; here it is raised
    until the target is met. `refit` and the contrast are Stemma's. Where other inputs are missing, or are unlike those
    that batch norm remembers, `refit` takes what it remembers (`batch_norm_prior.supposed`).
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
    most: float = 0.2
    steps: int = 20
    positions: int = 64
    batch: int = 128
    damping: float = fidelity.DAMPING
    seed: int = 0

    name = "modhifi-u"
    version = 2

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise MisuseError(f"weights are changed by {', '.join(ACTIONS)}, not {self.action!r}")
        if self.score not in ("fidelity", "alignment", "energy") or self.scope not in ("layer", "output"):
            raise MisuseError("entries are ranked by fidelity, alignment or energy, within a layer or an output")
        object.__setattr__(self, "only", patterns(self.only))
        if not 0 < self.most <= 1 or not 0 <= self.target < 1 or self.layers < 0 or self.steps < 1:
            raise MisuseError("most lies in (0, 1], the target in [0, 1), layers are 0 or more and steps 1 or more")

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))
