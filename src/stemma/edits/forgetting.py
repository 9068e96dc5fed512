"""Making a network forget a class from samples of it, without labels, gradients or a loss: ModHiFi-U and a refit."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
import torch

from stemma.edits import fidelity
from stemma.edits.asking import Asked, own_network, patterns, removable
from stemma.edits.edited import Edited, finished
from stemma.edits.measuring import agreement
from stemma.edits.samples import recognised, scrambled
from stemma.edits.seeking import Seeking
from stemma.errors import MisuseError
from stemma.fingerprints.questioning import questioned
from stemma.models.arrays import from_arrays
from stemma.models.model import Model
from stemma.probes import Probes
from stemma.types import Plan, Spec

Progress = Callable[[str, int, int | None], None]

ACTIONS = ("auto", "zero", "negate", "refit")
"""What is done to weights: set to zero, to their negative (both as published), or solved for anew."""


@final
@dataclass(frozen=True)
class Unlearning:
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
    that batch norm remembers, `refit` takes what it remembers (`remembered.supposed`).
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

    @classmethod
    def official(cls, action: str = "zero") -> "Unlearning":
        """The published method, as far as the paper says.

        Args:
            action: `zero` for networks with batch norm, `negate` for others.

        Returns:
            Fidelity on the forget samples alone.
        """
        return cls(action=action, contrast=False)

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(
        self, model: Model, forget: Probes, others: Probes | None = None, progress: Progress | None = None
    ) -> Edited:
        """Make a model forget.

        Cost: one pass over both sets for statistics, then one over the forget samples for every share that is tried.

        Args:
            model: The model; it is not changed.
            forget: Samples of the class, real or synthetic.
            others: Inputs of other classes, or generic ones; unlabelled.
            progress: Told how far it is.

        Returns:
            The model with its plan, receipt, and the weights as they were.

        Raises:
            MisuseError: If the model does not recognise the forget samples as one class.
            StemmaError: If the target is not met.
        """
        questioned(model, forget)
        before, after = own_network(model), own_network(model)
        forgotten, known = recognised(before, forget)
        net = removable(model, forget.inputs, before)
        if others is not None:
            questioned(model, others)
        elif self.made:
            others = scrambled(forget, self.seed)
        seeking = Seeking(self, before, after, net, forget, others, forgotten, progress)
        _, change, found = seeking.best()
        readers, action = change.readers, change.action
        held = "" if change.rest is None else "batch norm" if not change.rest.inputs else "other inputs"
        plan = Plan(
            "unlearn", model.digest, self.spec, forget.digest, entries=change.entries(found), action=action,
            expected={"class": forgotten, "recognised": known, "strength": found,
                      "layers": [r.layer for r in readers], "held to": held, "unlike": seeking.unlike,
                      "others": "" if others is None else str(others.digest)},
        )  # fmt: skip
        measured = self._measured(before, after, forget, others, forgotten)
        undo = {r.weight: before.module.get_parameter(r.weight).detach().cpu().clone() for r in readers}
        return replace(finished(model, after, plan, forget, measured), undo=undo)

    def _measured(
        self, before: Asked, after: Asked, forget: Probes, others: Probes | None, forgotten: int
    ) -> dict[str, Any]:
        first, second = before.answers(forget.inputs), after.answers(forget.inputs)
        found: dict[str, Any] = {"forget": [float((a.argmax(1) == forgotten).double().mean()) for a in (first, second)]}
        if others is not None:
            a, b = before.answers(others.inputs), after.answers(others.inputs)
            found |= agreement(a, b)
            if others.labels is not None:
                right = torch.from_numpy(np.array(others.labels))
                found["retain"] = [float((x.argmax(1) == right).double().mean()) for x in (a, b)]
        return found


def undone(model: Model, undo: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The weights of an unlearned model with those of its parent put back.

    Args:
        model: The model after.
        undo: Weights as they were.

    Returns:
        All weights by name.

    Raises:
        MisuseError: If it has no weights of these names.
    """
    foreign = sorted(undo.keys() - model.tensors.keys())
    if foreign:
        raise MisuseError(f"{model.name} has no weights called {', '.join(foreign[:3])}: read both from one folder")
    arrays = {n: t.array() for n, t in model.tensors.items()}
    return arrays | {n: from_arrays({n: t}, "undo").tensors[n].array() for n, t in undo.items()}
