"""Algorithm 2 of ModHiFi (ModHiFi-U): unlearning a class from samples of it, without labels, gradients or a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.deprecation import accept_old_names
from stemma.edits.artefacts.measured_effect import output_agreement
from stemma.edits.artefacts.result import Edited, finish_edit
from stemma.edits.editable_network import EditableNetwork, checked_dependency_graph, editable_copy
from stemma.edits.unlearning.forget_samples import shuffled_blocks, target_class
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.edits.unlearning.strength_search import StrengthSearch
from stemma.errors import MisuseError
from stemma.fingerprints.evaluation import checked_network
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import Plan

Progress = Callable[[str, int, int | None], None]


@accept_old_names(most="max_fraction")
@final
@dataclass(frozen=True)
class Unlearning(UnlearningSettings):
    """Make a network stop predicting a class; the original weights are kept. `UnlearningSettings` has the parameters.

    Source: Kashyap et al., "ModHiFi", NeurIPS 2025, algorithm 2; `Unlearning.official` has it. The paper fixes the
    fraction of entries by hand; here it is raised until the target is met. The refit, the contrast with retain inputs
    and batch-norm statistics as a prior (`batch_norm_prior`) are additions.
    """

    @classmethod
    def official(cls, action: str = "zero") -> "Unlearning":
        """The published method: fidelity on the forget samples alone.

        Args:
            action: `zero` for networks with batch norm, `negate` for others.

        Returns:
            The method.
        """
        return cls(action=action, contrast=False)

    @accept_old_names(others="retain")
    def __call__(
        self, model: Model, forget: Probes, retain: Probes | None = None, progress: Progress | None = None
    ) -> Edited:
        """Unlearn the class of some samples.

        Cost: one pass over both sets for statistics, then one over the forget samples for every strength that is tried.

        Args:
            model: The model; it is not changed.
            forget: Samples of the class, real or synthetic.
            retain: Inputs of other classes, or generic ones; unlabelled.
            progress: Called with what happens, how much is done and of how much.

        Returns:
            The model with its plan, receipt, and original weights.

        Raises:
            MisuseError: If the model does not predict one class for most forget samples.
            StemmaError: If the target is not met.
        """
        checked_network(model, forget)
        before, after = editable_copy(model), editable_copy(model)
        forget_class, recognised = target_class(before, forget)
        graph = checked_dependency_graph(model, forget.inputs, before)
        if retain is not None:
            checked_network(model, retain)
        elif self.made:
            retain = shuffled_blocks(forget, self.seed)
        search = StrengthSearch(self, before, after, graph, forget, retain, forget_class, progress)
        _, edit, strength = search.best()
        used = edit.retain
        constraint = "" if used is None else "batch norm" if not used.inputs else "other inputs"
        plan = Plan(
            operation="unlearn",
            parent=model.digest,
            spec=self.spec,
            probes=forget.digest,
            entries=edit.entries(strength),
            action=edit.action,
            expected={
                "class": forget_class,
                "recognised": recognised,
                "strength": strength,
                "layers": [r.layer for r in edit.readers],
                "held to": constraint,
                "unlike": search.ood_score,
                "others": "" if retain is None else str(retain.digest),
            },
        )
        measured = _measured(before, after, forget, retain, forget_class)
        undo = {r.weight: before.module.get_parameter(r.weight).detach().cpu().clone() for r in edit.readers}
        return replace(finish_edit(model, after, plan, forget, measured), undo=undo)


def _measured(
    before: EditableNetwork, after: EditableNetwork, forget: Probes, retain: Probes | None, forget_class: int
) -> dict[str, Any]:
    outputs = (a.outputs(forget.inputs) for a in (before, after))
    found: dict[str, Any] = {"forget": [float((x.argmax(1) == forget_class).double().mean()) for x in outputs]}
    if retain is not None:
        a, b = before.outputs(retain.inputs), after.outputs(retain.inputs)
        found |= output_agreement(a, b)
        if retain.labels is not None:
            labels = torch.from_numpy(np.array(retain.labels))
            found["retain"] = [float((x.argmax(1) == labels).double().mean()) for x in (a, b)]
    return found


def restored_weights(model: Model, undo: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """All weights of an unlearned model with the original ones put back.

    Args:
        model: The unlearned model.
        undo: Original weights by name, as `Edited.undo` and `undo.safetensors` hold them.

    Returns:
        All weights by name.

    Raises:
        MisuseError: If the model has no weights of these names.
    """
    foreign = sorted(undo.keys() - model.tensors.keys())
    if foreign:
        raise MisuseError(f"{model.name} has no weights called {', '.join(foreign[:3])}: read both from one folder")
    arrays = {n: t.array() for n, t in model.tensors.items()}
    return arrays | {n: from_arrays({n: t}, "undo").tensors[n].array() for n, t in undo.items()}
