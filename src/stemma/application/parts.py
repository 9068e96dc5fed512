"""The parts that several documents have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stemma.types import Comparison, NotTested

AxisVerdict = Literal["related", "independent", "inconclusive"]
LicenceSource = Literal["stated", "card"]


@dataclass(frozen=True, slots=True)
class NotTestedPart:
    """Something that bears on the verdict and could not be tested.

    Attributes:
        what: Short code of the reason.
        model: Name of the model concerned; empty where it is about none.
        why: Reason, in one sentence.
    """

    what: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class ModelNote:
    """What the reader left out of a model's files, changed or took for granted.

    Attributes:
        model: Name of the model.
        note: One sentence.
    """

    model: str
    note: str


@dataclass(frozen=True, slots=True)
class PolicyPart:
    """What a policy says to the answer.

    Attributes:
        closed: Whether the answer is refused; the exit code is 3 then.
        violations: One sentence for each finding that is refused.
        not_tested: One sentence for each thing that could not be tested.
        allow_untested: Whether the caller lets pass what could not be tested.
        notes: Remarks that refuse nothing.
    """

    closed: bool
    violations: tuple[str, ...]
    not_tested: tuple[str, ...]
    allow_untested: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightsPart:
    """What the weights of two models say.

    Attributes:
        verdict: Whether the weights are related.
        p_value: Probability of evidence this strong between independent models; null where nothing could be tested.
        log10_p: Decimal logarithm of the p-value.
        effect: Size of the finding in [0, 1]; 1 is the same.
        reason: Finding in one sentence.
        statistic: Name of the statistic that decides.
        details: Further figures of the test.
    """

    verdict: AxisVerdict
    p_value: float | None
    log10_p: float | None
    effect: float
    reason: str
    statistic: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReferencePart:
    """The control models of the function axis.

    Attributes:
        source: What the control models are.
        n: Number of control models.
        floor: Smallest attainable p-value.
    """

    source: str
    n: int | None
    floor: float


@dataclass(frozen=True, slots=True)
class FunctionPart:
    """What the outputs of two models on probe inputs say.

    Attributes:
        verdict: Whether the two are closer in function than independent models are.
        p_value: Probability of a distance this small between independent models; null where nothing could be tested.
        log10_p: Decimal logarithm of the p-value.
        effect: Size of the finding in [0, 1]; 1 is the same.
        distance: Distance of the two; null where no measure applies.
        reason: Finding in one sentence.
        statistic: Name of the statistic that decides.
        null: Control models that the distance is compared with.
        details: Further figures: the measures, the agreement of labels, accuracies.
    """

    verdict: AxisVerdict
    p_value: float | None
    log10_p: float | None
    effect: float
    distance: float | None
    reason: str
    statistic: str
    null: ReferencePart
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NullPart:
    """What independent models look like to a test.

    Attributes:
        source: A theorem, or the models that were measured.
        size: Number of null values; null where the law is exact.
        floor: Smallest attainable p-value.
    """

    source: str
    size: int | None
    floor: float


@dataclass(frozen=True, slots=True)
class SpecPart:
    """How a value was made.

    Attributes:
        name: Name of the method.
        version: Raised whenever the figures of the method change.
        params: Parameters of the method.
    """

    name: str
    version: int
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvidencePart:
    """What one test says about one claim.

    Attributes:
        claim: Claim that was tested.
        axis: Axis that the test looks at.
        statistic: Name of the statistic.
        value: Value of the statistic.
        null: What independent models look like.
        p_value: Probability of a value at least this large between independent models; null where untested.
        log10_p: Decimal logarithm of the p-value.
        effect: Size of the finding in [0, 1]; 1 is the same.
        verdict: What the test concludes about its claim.
        reason: Finding in one sentence.
        spec: Method.
        inputs: Digests of the models.
        details: Further figures of the test.
    """

    claim: str
    axis: Literal["weights", "function"]
    statistic: str
    value: float
    null: NullPart
    p_value: float | None
    log10_p: float | None
    effect: float
    verdict: Literal["supported", "refuted", "inconclusive"]
    reason: str
    spec: SpecPart
    inputs: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbesPart:
    """Probe inputs that models were given.

    Attributes:
        digest: Digest of the inputs.
        kind: Kind of the inputs: image, tokens, audio or tensor.
        source: Where they come from.
        labelled: Model whose predictions serve as labels; empty where labels are true ones or there are none.
    """

    digest: str
    kind: str
    source: str
    labelled: str


def weights_part(fields: Mapping[str, Any]) -> WeightsPart:
    """The weights axis, from its JSON form."""
    return WeightsPart(**fields)


def function_part(fields: Mapping[str, Any] | None) -> FunctionPart | None:
    """The function axis, from its JSON form; None where only weights were compared."""
    if fields is None:
        return None
    values: dict[str, Any] = {**fields, "null": ReferencePart(**fields["null"])}
    return FunctionPart(**values)


def evidence_part(fields: Mapping[str, Any]) -> EvidencePart:
    """One test, from its JSON form."""
    values: dict[str, Any] = {**fields, "null": NullPart(**fields["null"]), "spec": SpecPart(**fields["spec"])}
    return EvidencePart(**values)


def not_tested_parts(entries: "tuple[NotTested, ...]") -> tuple[NotTestedPart, ...]:
    """What could not be tested, from its JSON form."""
    return tuple(NotTestedPart(**entry) for entry in entries)


def comparison_fields(result: Comparison) -> dict[str, Any]:
    """A comparison as fields of a document, every part typed."""
    fields = result.to_dict()
    return {
        **fields,
        "a": result.a,
        "b": result.b,
        "weights": weights_part(fields["weights"]),
        "function": function_part(fields["function"]),
        "evidence": tuple(map(evidence_part, fields["evidence"])),
        "not_tested": not_tested_parts(result.open_questions),
    }
