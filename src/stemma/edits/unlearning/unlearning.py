"""Making a network forget a class from samples of it, without labels, gradients or a loss: ModHiFi-U and a refit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.editable_network import Asked, own_network, removable
from stemma.edits.measured_effect import agreement
from stemma.edits.result import Edited, finished
from stemma.edits.unlearning.samples import recognised, scrambled
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.edits.unlearning.strength_search import Seeking
from stemma.errors import MisuseError
from stemma.fingerprints.evaluation import checked_network
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import Plan

Progress = Callable[[str, int, int | None], None]


@final
@dataclass(frozen=True)
class Unlearning(UnlearningSettings):
    """Make a network stop answering a class, with the weights before kept; the parameters are `UnlearningSettings`.

    Source: Kashyap et al., NeurIPS 2025, algorithm 2. The paper fixes the share of entries by hand; here it is raised
    until the target is met. `refit` and the contrast are Stemma's (`Unlearning.official` has the paper's).
    """

    @classmethod
    def official(cls, action: str = "zero") -> "Unlearning":
        """The published method, as far as the paper says.

        Args:
            action: `zero` for networks with batch norm, `negate` for others.

        Returns:
            Fidelity on the forget samples alone.
        """
        return cls(action=action, contrast=False)

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
        checked_network(model, forget)
        before, after = own_network(model), own_network(model)
        forgotten, known = recognised(before, forget)
        net = removable(model, forget.inputs, before)
        if others is not None:
            checked_network(model, others)
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
