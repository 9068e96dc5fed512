"""Comparison of two models by weights and function, and the relation that follows from both."""

from collections.abc import Sequence
from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, UnreadableModelError
from stemma.fingerprints.evaluation import require_one_tokenizer
from stemma.kinship.axes import FORGOTTEN, both_axes
from stemma.kinship.by_samples import decide
from stemma.kinship.function.closer_than_independent import CloserThanIndependent
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.kinship.function.observations import Progress
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.kinship.function.selection import Selection
from stemma.kinship.relation.unlearned import Forgetting
from stemma.probes import Probes
from stemma.types import Comparison, Evidence


def compare(
    a: Model,
    b: Model,
    *,
    alpha: float = 0.01,
    probes: Probes | Selection | None = None,
    null: Sequence[Model] | NullModels = (),
    progress: Progress | None = None,
) -> Comparison:
    """Decide whether two models share an origin, by their weights and, where probes are given, by their function.

    Args:
        a: One model.
        b: The other one.
        alpha: Significance level of each axis, for this pair (correct it for the number of models searched).
        probes: Inputs for both models, or a selection of them; without, only the weights are compared.
        null: Independently trained models, for the function axis.
        progress: Called with a message, the number of models done and their total.

    Returns:
        The comparison; the relation is named from both axes.

    Raises:
        StemmaError: If a network is there but cannot be run on these probes.
    """
    found = compare_weights(a, b, alpha=alpha)
    if probes is None:
        return found
    subjects, independent = (Subject.of(a), Subject.of(b)), NullModels.of(null)
    seen = both_axes(found, function_of(*subjects, probes, independent, alpha=alpha, progress=progress), alpha)
    return with_partitions(seen, *subjects, probes, independent, alpha=alpha)


def function_of(
    a: Subject,
    b: Subject,
    probes: Probes | Selection,
    null: NullModels,
    *,
    alpha: float,
    progress: Progress | None = None,
) -> Evidence | str:
    """The function axis of a pair: its evidence, or why there is none (no network can be built of one of them)."""
    if why := reason_not_comparable(a, b):
        return why
    found = CloserThanIndependent(alpha)(a, b, probes, null, progress)
    if a.load is None or b.load is None or not isinstance(probes, Probes):
        return found
    return with_forgotten(found, a, b, probes)


def with_forgotten(found: Evidence, a: Subject, b: Subject, probes: Probes) -> Evidence:
    """Add the class of probes that one of the two models no longer recognises, if any, under `forgotten`."""
    if a.load is None or b.load is None:
        return found
    gone = Forgetting().between(a.load(), b.load(), probes)
    return found if gone is None else replace(found, details={**found.details, FORGOTTEN: gone.to_dict()})


def with_partitions(
    found: Comparison, a: Subject, b: Subject, probes: Probes | Selection, null: NullModels, *, alpha: float
) -> Comparison:
    """Add what hard labels alone show to the evidence on the function; it changes no verdict."""
    if found.function is None:
        return found
    return replace(found, evidence=(*found.evidence, PartitionAgreement(alpha)(a, b, probes, null)))


def reason_not_comparable(*subjects: Subject) -> str:
    """Why the function cannot be compared: no network, no sketch, or different tokens; empty if it can."""
    for subject in subjects:
        try:
            if subject.load is not None:
                _ = subject.load().network
            elif subject.sketch is None:
                return f"{subject.name} is no longer available, and no functional sketch for these probes is stored"
        except UnreadableModelError as e:
            return str(e)
    try:
        require_one_tokenizer(*(subject.load() for subject in subjects if subject.load is not None))
    except MisuseError as e:
        return str(e)
    return ""


def compare_weights(a: Model, b: Model, *, alpha: float = 0.01) -> Comparison:
    """Decide from the weights alone whether two models share an origin; see `by_samples.decide`."""
    return decide(a, b, alpha=alpha).comparison
