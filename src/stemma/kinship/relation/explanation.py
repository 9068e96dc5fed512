"""Explanation of a child model: the steps with their description lengths, and the change of every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stemma.types import ModelRef, RelationKind, jsonable


@dataclass(frozen=True)
class Step:
    """One operation with the parameters that were fitted.

    Attributes:
        name: The operation.
        kind: The relation that it makes.
        sentence: What it did, as shown to users.
        parameters: What was fitted: bits, ratio, rank, kept units …
        bits: Description length in bits, given the parent.
        place: When it was taken, relative to other steps: 0 before training, 1 training, 2 after it.
    """

    name: str
    kind: RelationKind
    sentence: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    bits: float = 0.0
    place: float = 1.0


@dataclass(frozen=True)
class LayerChange:
    """Change of one tensor.

    Attributes:
        name: The child's name for it, or the parent's where the child has none.
        parent: The parent's name; empty for a new tensor.
        status: `inherited` (bit for bit), `rounded`, `rescaled`, `changed`, `replaced`, `gathered` (statistics of
            data), `new` or `removed`.
        size: Entries.
        relative: Norm of the difference over the parent's norm; None where there is no counterpart of that size.
        marks: Descriptions of what the steps did to it: grid, rank, zeros, kept units.
    """

    name: str
    parent: str
    status: str
    size: int
    relative: float | None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The simplest explanation found of how the child was made from the parent.

    Attributes:
        parent: The parent.
        child: The child.
        kind: The relation that the steps make; that of the first where there are several.
        steps: In order of application, as far as it is known.
        sentence: All of it in one sentence.
        relative: Norm of the whole difference over the parent's norm, over all tensors that have a counterpart.
        residual: The same for what the steps leave unexplained; a dense change leaves nothing, because it is described
            entry by entry.
        floor: What rounding to the number formats may leave.
        fitted: Share of the squared difference that steps with fewer parameters than entries explain.
        bits: Description length (MDL) in bits per entry.
        plain_bits: The same if every changed entry is described separately, for comparison.
        layers: Every tensor.
        others: Other explanations that fit, with their description lengths per entry, the simpler first.
        notes: Further observations: number formats, names, the opposite direction.
        cannot_see: What weights cannot show.
    """

    parent: ModelRef
    child: ModelRef
    kind: RelationKind
    steps: tuple[Step, ...]
    sentence: str
    relative: float | None
    residual: float
    floor: float
    fitted: float
    bits: float
    plain_bits: float
    layers: tuple[LayerChange, ...] = ()
    others: tuple[tuple[tuple[str, ...], float], ...] = ()
    notes: tuple[str, ...] = ()
    cannot_see: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma explain`."""
        out = jsonable(self)
        out["kind"] = self.kind.value
        out["others"] = [{"steps": list(steps), "bits": bits} for steps, bits in self.others]
        return out
