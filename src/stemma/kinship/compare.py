"""All evidence on a pair of models, and the relation that it names."""

from collections.abc import Sequence
from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, UnreadableModelError
from stemma.fingerprints.evaluation import require_one_tokenizer
from stemma.kinship.axes import FORGOTTEN, both_axes
from stemma.kinship.by_weights import decided
from stemma.kinship.function.evidence import CloserThanIndependent, Progress
from stemma.kinship.function.null_models import NullModels, Party
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
        alpha: Level of each axis, for this pair (correct it for the number of models searched).
        probes: What both are asked, or a selection of probes; without, only the weights are compared.
        null: Models that were trained apart, for the function axis.
        progress: Told which model is asked, how many are done and of how many.

    Returns:
        The comparison; the relation is named from both axes.

    Raises:
        StemmaError: If a network is there but cannot be asked these probes.
    """
    found = compare_weights(a, b, alpha=alpha)
    if probes is None:
        return found
    parties, independent = (Party.of(a), Party.of(b)), NullModels.of(null)
    seen = both_axes(found, function_of(*parties, probes, independent, alpha=alpha, progress=progress), alpha)
    return with_partitions(seen, *parties, probes, independent, alpha=alpha)


def function_of(
    a: Party, b: Party, probes: Probes | Selection, null: NullModels, *, alpha: float, progress: Progress | None = None
) -> Evidence | str:
    """The function axis of a pair.

    Args:
        a: One model.
        b: The other one.
        probes: What both are asked.
        null: Models that were trained apart.
        alpha: Level of the decision.
        progress: Told which model is asked, how many are done and of how many.

    Returns:
        The evidence, or why there is none: no network can be built of one of them.

    Raises:
        StemmaError: If a network is there but cannot be asked these probes.
    """
    if why := unaskable(a, b):
        return why
    found = CloserThanIndependent(alpha)(a, b, probes, null, progress)
    if a.load is None or b.load is None or not isinstance(probes, Probes):
        return found
    return with_forgotten(found, a, b, probes)


def with_forgotten(found: Evidence, a: Party, b: Party, probes: Probes) -> Evidence:
    """Look for a class of probes that one of two models no longer answers.

    Args:
        found: The function axis.
        a: The one model.
        b: The other.
        probes: What both are asked.

    Returns:
        The evidence, with the class under `forgotten` where there is one.
    """
    if a.load is None or b.load is None:
        return found
    gone = Forgetting().between(a.load(), b.load(), probes)
    return found if gone is None else replace(found, details={**found.details, FORGOTTEN: gone.to_dict()})


def with_partitions(
    found: Comparison, a: Party, b: Party, probes: Probes | Selection, null: NullModels, *, alpha: float
) -> Comparison:
    """List what hard labels alone show beside the other evidence on the function; it changes no verdict.

    Cost: one forward pass per model.

    Args:
        found: The comparison with both axes.
        a: One model.
        b: The other one.
        probes: What both are asked.
        null: Models that were trained apart.
        alpha: Level of the decision.

    Returns:
        The comparison with one more piece of evidence; as it is where nothing was asked.
    """
    if found.function is None:
        return found
    return replace(found, evidence=(*found.evidence, PartitionAgreement(alpha)(a, b, probes, null)))


def unaskable(*parties: Party) -> str:
    """Why there is no function axis.

    Args:
        parties: The models in question.

    Returns:
        What is wrong with the first one that no network can be built of, and of which no sketch is kept, or that they
        do not read the same tokens; empty where all can be asked.
    """
    for party in parties:
        try:
            if party.load is not None:
                _ = party.load().network
            elif party.sketch is None:
                return f"{party.name} is gone, and no functional sketch for these probes is kept"
        except UnreadableModelError as e:
            return str(e)
    try:
        require_one_tokenizer(*(party.load() for party in parties if party.load is not None))
    except MisuseError as e:
        return str(e)
    return ""


def compare_weights(a: Model, b: Model, *, alpha: float = 0.01) -> Comparison:
    """Decide from the weights alone whether two models share an origin, and name the relation as far as they show it.

    Args:
        a: First model.
        b: Second model.
        alpha: Level of the decision for this pair (correct it for the number of models searched).

    Returns:
        The comparison; see `by_weights.decided`.
    """
    return decided(a, b, alpha=alpha).comparison
