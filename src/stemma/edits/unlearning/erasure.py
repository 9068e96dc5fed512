"""Erasure: classes, or a set of samples, removed from what every layer reads, in closed form."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.edits.artefacts.measured_effect import output_agreement
from stemma.edits.artefacts.result import Edited, finish_edit
from stemma.edits.editable_network import EditableNetwork, editable_copy, name_patterns
from stemma.edits.fidelity.statistics import StatisticsCollector
from stemma.edits.unlearning.erased_layers import LayerErasure, editable_layers, output_layer
from stemma.edits.unlearning.erasure_samples import ForgetSplit, split_samples
from stemma.edits.unlearning.relearning import answered, largest_loss
from stemma.errors import MisuseError
from stemma.fingerprints.evaluation import checked_network
from stemma.probes import Probes
from stemma.types import Plan, Spec

STRENGTHS: tuple[tuple[float, int], ...] = ((0.0, 0), (0.25, 1), (0.5, 1), (0.75, 1), (1.0, 1), (1.0, 2), (1.0, 4))
"""By strength: the share of the layers that is edited, the last ones first, and the directions removed per class. At 0
only the classes' rows of the output layer go: that hides and erases nothing, and is the control of the curve."""

STRONGEST = len(STRENGTHS) - 1

Progress = Callable[[str, int, int | None], None]


@final
@dataclass(frozen=True)
class Erasure:
    """Remove classes, or a set of samples, from what the layers of a network read; no training, no labels needed.

    Layer by layer, in the order in which they run, the directions by which the forget samples differ are projected out
    (`class_directions`), and the layer is refitted by least squares to its former answers on kept samples. Later
    statistics see the earlier edits. The classes' rows of the output layer are given one low score.

    Attributes:
        strength: Of `STRENGTHS`: how many layers, and how many directions. Higher ones erase more and cost more.
        samples: The forget set is a set of samples and no class: only directions are removed, no row of the output.
        only: Patterns of the layers that may be edited.
        damping: Fraction of the inputs' mean squares by which refits are drawn to the former weights.
        positions: Largest number of output positions of a convolution that are sampled per input.
        batch: Batch size.
        seed: Of the positions and of the samples that are held back.

    Source: LEACE (Belrose et al., NeurIPS 2023) for the projection; the refit layer after layer is that of He et al.
    2017 and of `Pruning`. docs/methods/edits.md.
    """

    strength: int = 3
    samples: bool = False
    only: tuple[str, ...] = ()
    damping: float = 1e-3
    positions: int = 64
    batch: int = 128
    seed: int = 0

    name = "erasure"
    version = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", name_patterns(self.only))
        if not 0 <= self.strength <= STRONGEST or self.damping <= 0:
            raise MisuseError(f"strength has to lie between 0 and {STRONGEST} and damping above 0, but they are "
                              f"{self.strength} and {self.damping}")  # fmt: skip

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(self, model: Model, forget: Probes, retain: Probes | None, progress: Progress | None = None) -> Edited:
        """Erase, at one strength.

        Args:
            model: The model; it is not changed.
            forget: Samples of one class or of several, or any set of samples (`samples`).
            retain: Samples of what is kept, unlabelled; labels are used for the report only.
            progress: Told what is being done.

        Returns:
            The model with its plan, receipt, and original weights.

        Raises:
            MisuseError: If the network does not recognise the forget samples, or too few kept samples are given.
        """
        if retain is None:
            raise MisuseError("an erasure needs samples of what is kept, and none were given")
        return next(self.each(model, forget, retain, (self.strength,), progress))

    def each(
        self, model: Model, forget: Probes, retain: Probes, strengths: Sequence[int], progress: Progress | None = None
    ) -> Iterator[Edited]:
        """The same at several strengths, each from the original.

        Yields:
            One edited model per strength.
        """
        checked_network(model, forget)
        checked_network(model, retain)
        before = editable_copy(model)
        split = split_samples(before, forget, retain, classes=not self.samples, seed=self.seed)
        for strength in strengths:
            yield replace(self, strength=strength)._erased(model, before, (forget, retain), split, progress)

    def _erased(
        self, model: Model, before: EditableNetwork, given: tuple[Probes, Probes], split: ForgetSplit,
        progress: Progress | None,
    ) -> Edited:  # fmt: skip
        forget, retain = given
        after = editable_copy(model)
        layers = editable_layers(before, split.kept)
        head = None if self.samples else output_layer(before, layers, split.kept)
        chosen = self._chosen(layers)
        rank = STRENGTHS[self.strength][1]
        collector = StatisticsCollector(self.batch, self.positions, self.seed)
        erase = LayerErasure(before, after, collector, self.damping, progress)
        if rank:
            erase(chosen, rank, split.groups, split.kept)
        if head is not None:
            erase.silence(head, split.classes, split.kept)
        changed = list(dict.fromkeys([*chosen, *([] if head is None else [head])]))
        if not changed:
            raise MisuseError(
                f"at strength {self.strength} no layer of {model.name} can be edited: choose a higher one"
            )
        plan = Plan(
            operation="unlearn", parent=model.digest, spec=self.spec, probes=forget.digest, action="erase",
            expected={"class": split.classes[0] if len(split.classes) == 1 else None, "classes": list(split.classes),
                      "recognised": split.recognised, "strength": self.strength, "rank": rank, "layers": changed,
                      "silenced": head, "held to": "other inputs", "unlike": 0.0, "others": str(retain.digest)},
        )  # fmt: skip
        measured = _measured(before, after, split)
        undo = {n: p.detach().cpu().clone() for n, p in before.module.named_parameters()
                if n.rpartition(".")[0] in changed}  # fmt: skip
        return replace(finish_edit(model, after, plan, forget, measured), undo=undo)

    def _chosen(self, layers: Sequence[str]) -> list[str]:
        """The layers that this strength edits, in the order in which they run."""
        share = STRENGTHS[self.strength][0]
        found = [n for n in layers if not self.only or any(re.search(p, n) for p in self.only)]
        if not found:
            raise MisuseError("no layer can be edited: none of those that match is a linear layer or a convolution "
                              "whose inputs can be collected")  # fmt: skip
        return found[len(found) - round(share * len(found)) :]


def _measured(before: EditableNetwork, after: EditableNetwork, split: ForgetSplit) -> dict[str, Any]:
    """What is still answered, and what the others lose: on samples that were held back, where there are enough."""
    asked, kept = split.asked_forget, split.asked_kept
    first, last = (answered(x, asked.inputs) for x in (before, after))
    found: dict[str, Any] = {"held_back": [split.held_forget, split.held_kept]}
    if split.classes:
        found["forget"] = [float(np.isin(a, split.classes).mean()) for a in (first, last)]
    else:
        found["forget"] = [1.0, float((first == last).mean())]
    a, b = before.outputs(kept.inputs), after.outputs(kept.inputs)
    found |= output_agreement(a, b)
    old, new = (x.argmax(1).numpy() for x in (a, b))
    truth = old if kept.labels is None else np.asarray(kept.labels)
    found["worst"] = largest_loss(old == truth, new == truth, truth)
    if kept.labels is not None:
        found["retain"] = [float((x == truth).mean()) for x in (old, new)]
    return found
