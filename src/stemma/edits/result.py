"""An edited model with its plan and its receipt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph import configurations
from stemma.edits.editable_network import Asked
from stemma.edits.measured_effect import versions
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import Plan, Receipt
from stemma.types.network import Network


@dataclass(frozen=True, eq=False)
class Edited:
    """What an edit made.

    Attributes:
        model: The model after the edit.
        asked: Its network, to be written or asked.
        plan: What was to be done.
        receipt: What was done.
        parent: The model before.
        undo: Weights as they were, where the plan changes entries in place.
    """

    model: Model
    asked: Asked
    plan: Plan
    receipt: Receipt
    parent: Model
    undo: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def network(self) -> Network:
        """The edited network, which can be asked."""
        return self.model.network


def finished(parent: Model, asked: Asked, plan: Plan, probes: Probes, measured: Mapping[str, Any]) -> Edited:
    """Bring an edited network, its plan and what was measured together.

    Args:
        parent: The model before.
        asked: The network after.
        plan: What was done.
        probes: What it rests on.
        measured: What changed.

    Returns:
        Model, plan and receipt.
    """
    state = {n: t.detach().cpu().clone() for n, t in asked.module.state_dict().items() if isinstance(t, torch.Tensor)}
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    config = configurations.resized(parent.config, shapes) if parent.config else None
    config = config if config is not None and configurations.describes(config, shapes) else None
    child = from_arrays(state, f"{parent.name}-{plan.operation}d", config)
    digest = child.digest
    network = Network(child.name, digest, asked.network.input_spec, asked.forward, asked.module,
                      tokenizer=asked.network.tokenizer)  # fmt: skip
    child = Model(child.name, child.source, child.tensors, config, network_builder=lambda model: network)
    receipt = Receipt(plan.operation, plan.parent, digest, plan.digest,
                      {"digest": probes.digest, "source": probes.source, "count": str(len(probes))},
                      versions(), dict(measured), parent.source)  # fmt: skip
    return Edited(child, asked, plan, receipt, parent)
