"""What a lineage leaves open where only samples of models were read: a sample excludes no relation, but by sizes."""

from collections.abc import Iterable, Sequence

from stemma.checkpoints.model import Model
from stemma.kinship.weights.sizes import no_fitting_sizes
from stemma.types import UNREAD, NotTested

SAMPLED = "only a sample of its weights was read, and a relation may lie in the rest: add #whole to its address"
OF_SAMPLES = "of this or of another model only a sample was read, which cannot exclude further relatives here"


def unread_pairs(models: Sequence[Model], families: Iterable[Sequence[str]]) -> tuple[NotTested, ...]:
    """Models that may have relatives outside their family, because only a sample of one of the two was read.

    Args:
        models: All models.
        families: Names of the models that are related.

    Returns:
        An entry of `not_tested` for each such model.
    """
    if not any(m.is_partial for m in models):
        return ()
    family = {name: f[0] for f in families for name in f}
    groups: dict[tuple[object, ...], list[Model]] = {}
    for m in models:
        groups.setdefault((m.is_partial, *sorted((t.dtype, t.shape) for t in m.tensors.values())), []).append(m)
    kinds = list(groups.values())
    reachable = [[b for b in kinds if _open(a[0], b[0])] for a in kinds]
    out: list[NotTested] = []
    for group, others in zip(kinds, reachable, strict=True):
        outside = {family.get(b.name, b.name) for other in others for b in other}
        for m in group:
            if outside - {family.get(m.name, m.name)}:
                out.append({"what": UNREAD, "model": m.name, "why": OF_SAMPLES})
            elif m.is_partial:
                out.append({"what": UNREAD, "model": m.name, "why": SAMPLED})
    return tuple(sorted(out, key=lambda t: t["model"]))


def _open(a: Model, b: Model) -> bool:
    """Whether a comparison of two models of these shapes excludes nothing: a sample was read, and some size fits."""
    if not (a.is_partial or b.is_partial):
        return False
    unseen = any(t.size and not t.readable for model in (a, b) for t in model.weights.values())
    return unseen or no_fitting_sizes(a, b) is None
