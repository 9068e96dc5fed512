"""The result of an edit: the edited model with its plan and its receipt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stemma.checkpoints.model import Model
from stemma.checkpoints.privacy import Scrubber
from stemma.edits.artefacts.measured_effect import versions
from stemma.edits.dependency_graph import configurations
from stemma.edits.editable_network import EditableNetwork
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import Digest, Plan, Receipt
from stemma.types.network import Network


@dataclass(frozen=True, eq=False)
class Edited:
    """An edited model.

    Attributes:
        model: The model after the edit.
        editable: Its network, to be run or written.
        plan: What was planned.
        receipt: What was done and measured.
        parent: The model before.
        undo: Original weights by name, where the plan changes entries in place.
    """

    model: Model
    editable: EditableNetwork
    plan: Plan
    receipt: Receipt
    parent: Model
    undo: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def network(self) -> Network:
        """The network after the edit."""
        return self.model.network


def finish_edit(
    parent: Model, editable: EditableNetwork, plan: Plan, probes: Probes, measured: Mapping[str, Any]
) -> Edited:
    """The result of an edit, from the edited network, its plan, the probes and what was measured."""
    state = {
        n: t.detach().cpu().clone() for n, t in editable.module.state_dict().items() if isinstance(t, torch.Tensor)
    }
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    config = configurations.resized_config(parent.config, shapes) if parent.config else None
    config = config if config is not None and configurations.builds_shapes(config, shapes) else None
    child = from_arrays(state, f"{parent.name}-{plan.operation.removesuffix('e')}ed", config)
    digest = child.digest
    network = Network(child.name, digest, editable.network.input_spec, editable.forward, editable.module,
                      tokenizer=editable.network.tokenizer)  # fmt: skip
    child = Model(child.name, child.source, child.tensors, config, network_builder=lambda model: network)
    receipt = edit_receipt(parent, digest, plan, probes, measured)
    return Edited(child, editable, plan, receipt, parent)


def edit_receipt(parent: Model, child: Digest, plan: Plan, probes: Probes, measured: Mapping[str, Any]) -> Receipt:
    """The receipt of an edit."""
    scrub = Scrubber.of((), str(Path.home())).text
    return Receipt(operation=plan.operation, parent=plan.parent, child=child, plan=plan.digest,
                   probes={"digest": probes.digest, "source": scrub(probes.source), "count": str(len(probes))},
                   versions=versions(), measured=dict(measured), parent_source=parent.source)  # fmt: skip
