"""What an edit will do, and what it did."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stemma.types.nouns import Digest, Spec, jsonable

PLAN, RECEIPT, PROGRAM = "plan.json", "receipt.json", "network.pt2"
"""Files that lie beside the weights of an edit. The program holds weights and graph and loads with
`torch.export.load`."""

UNDO = "undo.safetensors"
"""File with the original weights, which earlier versions of Stemma wrote beside the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an edit will do, before it does it.

    Attributes:
        operation: `prune` or `unlearn`.
        parent: Digest of the model that is edited.
        spec: The method with its parameters.
        probes: Digest of the inputs that the choice rests on.
        kept: Of pruning: the units that stay, by group.
        slices: Of pruning: the rows that stay, by weight and axis (`"0"`, `"1"`); all others go.
        entries: Of unlearning: outputs and inputs whose weights change, by weight: `[[output, input], …]`.
        action: Of unlearning: what is done to them.
        expected: What the plan foresees: operations, parameters, error by group.
    """

    operation: str
    parent: Digest
    spec: Spec
    probes: Digest
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    entries: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    action: str = ""
    expected: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """Identity of the plan."""
        line = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return Digest("sha256:" + hashlib.sha256(line.encode()).hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values.
        """
        return jsonable(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an edit did.

    Attributes:
        operation: `prune` or `unlearn`.
        parent: Digest of the model before.
        child: Digest of the model after.
        plan: Digest of the plan.
        probes: Digest of the inputs, with how they were named.
        versions: Versions of the software that ran.
        measured: What changed: operations, parameters, error by layer, accuracy and latency before and after.
        parent_source: Where the model before was read from: an address, a path as seen from the folder of the result,
            or a file name; no path of the machine.
    """

    operation: str
    parent: Digest
    child: Digest
    plan: Digest
    probes: Mapping[str, str]
    versions: Mapping[str, str]
    measured: Mapping[str, Any]
    parent_source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values.
        """
        return jsonable(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFidelity:
    """How few units of a group one layer needs.

    Attributes:
        layer: The layer that reads the units.
        group: The group of units that it reads, named after the layer that writes them.
        units: Number of units.
        best_singleton: Largest fidelity of one unit alone, mean over the outputs.
        sizes: Smallest number of units found for each level, by backward elimination; in the order of the levels.
        naive_sizes: The same for the units with the largest singleton fidelity.
    """

    layer: str
    group: str
    units: int
    best_singleton: float
    sizes: tuple[int, ...]
    naive_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEffect:
    """What it does to the network's outputs when one group alone is cut to its HiFi set.

    Attributes:
        group: The group.
        kept: Units of the set, for the lowest level, that serves all layers which read the group.
        local_error: Squared error of these layers' outputs as a fraction of their mean square, the largest of them.
        output_error: Squared error of the network's outputs as a fraction of their mean square.
    """

    group: str
    kept: int
    local_error: float
    output_error: float
