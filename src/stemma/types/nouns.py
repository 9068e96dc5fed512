"""What travels between the stages: models, units, fingerprints, distances, evidence, relations."""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType

from stemma import presentation

Digest = NewType("Digest", str)
"""Content identity with its algorithm, `"sha256:…"`."""


class Verdict(enum.StrEnum):
    """What a test concludes about its claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class Axis(enum.StrEnum):
    """The two kinds of kinship; a relation has a name only when both are known."""

    WEIGHTS = "weights"
    FUNCTION = "function"


class RelationKind(enum.StrEnum):
    """What one model is to another."""

    COPY = "copy"
    REFORMATTED = "reformatted"
    PERMUTED = "permuted"
    QUANTIZED = "quantized"
    PRUNED = "pruned"
    UNLEARNED = "unlearned"
    FINETUNED = "finetuned"
    LORA = "lora"
    HEAD_REPLACED = "head-replaced"
    PART_INHERITED = "part-inherited"
    MERGED = "merged"
    DISTILLED = "distilled"
    SAME_RUN = "same-run"
    SAME_INIT = "same-init"
    SIBLINGS = "siblings"
    RELATED = "related"
    UNRELATED = "unrelated"


def jsonable(value: Any) -> Any:
    """Turn a noun into plain JSON values; numbers that JSON lacks (NaN, infinities) are a bug and raise.

    Returns:
        The same content as dicts, lists, strings, finite numbers, booleans and None.

    Raises:
        ValueError: If a number is not finite.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number")
    return value


@dataclass(frozen=True, slots=True)
class Spec:
    """How a value was made: a method's name, version and parameters.

    Attributes:
        name: The method, as in the command line and the docs.
        version: Raised whenever the method's numbers change.
        params: The fields of the method's dataclass.
    """

    name: str
    version: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """Identity of the method with its parameters."""
        line = json.dumps(jsonable(self), sort_keys=True, separators=(",", ":"))
        return Digest("sha256:" + hashlib.sha256(line.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model in a result: the name a person reads and the digest that identifies it."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class KnownFrom:
    """The other registry that tells of a model; this one never read its weights.

    Attributes:
        registry: Its name here.
        identity: Its identity, as it states it.
        signed_by: SHA-256 of the public key that signed what it told; None where it was not signed.
    """

    registry: str
    identity: str
    signed_by: str | None

    @property
    def sentence(self) -> str:
        """As part of a sentence: `known from registry acme (signed by 1f2e3d4c5b6a7980…)`."""
        by = "not signed" if self.signed_by is None else f"signed by {self.signed_by[:16]}…"
        return f"known from registry {self.registry} ({by})"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The raw input space of a network: where probes are given and gradients are compared.

    Attributes:
        kind: `image` (float, `[channels, height, width]`), `tokens` (integer ids, `[length]`), `audio` (float,
            `[samples]`) or `tensor` (float, any shape).
        shape: Shape of one input, without the batch, 0 on axes of any length; for tokens the longest length.
        low: Smallest value of an entry.
        high: Largest value of an entry.
        mean: What the network subtracts from each channel of a raw input; 0 where it normalises nothing.
        std: What it divides by afterwards.
    """

    kind: str
    shape: tuple[int, ...]
    low: float
    high: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class UnitMember:
    """One tensor axis that carries a group's units.

    Row `j` of unit `u` lies at `offset + u * block + j` (blocks, `stride` 1) or at `offset + u + j * stride`
    (units next to one another, as after flattening channels-last maps). One axis may appear in several members.

    Attributes:
        tensor: Canonical tensor name.
        axis: Index of the axis.
        offset: First row that belongs to the group (fused tensors hold several groups on one axis).
        stride: Distance between consecutive rows of one unit's block (1 unless interleaved).
        block: Rows per unit on this axis (a head has many, a channel one).
    """

    tensor: str
    axis: int
    offset: int = 0
    stride: int = 1
    block: int = 1


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """The tensor axes that share one set of hidden units (channels, neurons, heads, experts).

    Attributes:
        name: Where the group lives, for people.
        size: Number of units.
        members: The axes that carry it, producers first.
        order: Causal position; a tensor belongs to the latest group that it touches.
        exchangeable: A permutation of all members leaves the function unchanged and training treats units alike.
        prunable: Units can be removed.
        rotatable: Any orthogonal map of the axis leaves the function unchanged (residual streams).
        sign_free: Flipping a unit's sign on all members leaves the function unchanged.
        orbits: Sets of units inside which exchange is allowed, as one label per unit; empty means all.
    """

    name: str
    size: int
    members: tuple[UnitMember, ...]
    order: int
    exchangeable: bool = True
    prunable: bool = True
    rotatable: bool = False
    sign_free: bool = False
    orbits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a method saw in one untouched model.

    Attributes:
        model: Digest of the model.
        probes: Digest of the probes, None for a method that looks at weights only.
        spec: The method.
        values: Named arrays (numpy); their meaning belongs to the method.
    """

    model: Digest
    probes: Digest | None
    spec: Spec
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Distance:
    """How far two fingerprints are apart: 0 is the same, larger is further.

    Attributes:
        a: Network digest of the one model.
        b: That of the other.
        fingerprint: The fingerprinter.
        measure: The measure.
        value: The distance.
        interval: 95 % interval over probes.
        per_probe: Its parts, None where undefined; empty for a measure of the whole set.
        coverage: Share of probes at which it is defined.
    """

    a: Digest
    b: Digest
    fingerprint: Spec
    measure: Spec
    value: float
    interval: tuple[float, float] | None = None
    per_probe: tuple[float | None, ...] = ()
    coverage: float = 1.0

    def __repr__(self) -> str:
        between = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        partly = "" if self.coverage == 1 else f", defined on {self.coverage:.0%} of the probes"
        return f"{self.value:.3g}{between} {self.measure.name} of {self.fingerprint.name} (0 is the same){partly}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return presentation.fragment(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the distances of single probes with matplotlib (the extra `plots`).

        Args:
            ax: Where it is drawn; new axes unless given.

        Returns:
            The axes.
        """
        return presentation.plot(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values.
        """
        return jsonable(self)


@dataclass(frozen=True, slots=True)
class Null:
    """What "independent" looks like for a test.

    Attributes:
        source: A theorem ("uniform permutations") or the models that were measured, with date.
        size: Number of null values; None where the law is exact.
        floor: Smallest p-value that this null can give; 0 where it is unbounded.
        values: The null values, sorted, where there are any.
    """

    source: str
    size: int | None = None
    floor: float = 0.0
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one test says about one claim.

    Attributes:
        claim: The sentence under test.
        axis: Weights or function.
        statistic: Name of the statistic.
        value: Its value.
        null: What independence would look like.
        p_value: Probability of a value at least this large under the null; None where nothing could be tested.
            Never below the smallest positive double: `log10_p` holds the exact magnitude.
        log10_p: Decimal logarithm of the p-value.
        effect: Size of the finding in [0, 1]; 1 is "the same".
        verdict: Conclusion at the alpha of the caller.
        reason: One sentence why.
        spec: The method.
        inputs: Digests of the models.
        details: Further named figures (units in place, groups, residual), for people and JSON.
    """

    claim: str
    axis: Axis
    statistic: str
    value: float
    null: Null
    p_value: float | None
    log10_p: float | None
    effect: float
    verdict: Verdict
    reason: str
    spec: Spec
    inputs: tuple[Digest, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the null's values are left to the registry.

        Returns:
            Plain JSON values.
        """
        out = jsonable(self)
        out["null"] = {"source": self.null.source, "size": self.null.size, "floor": self.null.floor}
        return out


@dataclass(frozen=True, slots=True)
class Relation:
    """The named kind of a relation, with what could be measured of it.

    Attributes:
        kind: The name.
        parameters: For example bits, ratio, rank, relative change, parts.
        steps: The ordered operations where several were taken.
        reason: The evidence for the name, in one sentence.
    """

    kind: RelationKind
    parameters: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    reason: str = ""
