"""Compares a suspect with many candidates on a cluster, where both are files that its workers see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.networks.load import open_models
from stemma.registry import comparisons, model_records
from stemma.registry.records import Progress
from stemma.types import Comparison, Digest
from stemma.workspace.comparison_cache import ComparisonCache, compare_weights
from stemma.workspace.engines.base import AbstractEngine
from stemma.workspace.engines.run_tasks import Lost, run
from stemma.workspace.shared_files import FileState, WithFiles, require_seen


@dataclass(frozen=True, slots=True)
class FileModel:
    """A model as it travels: where it lies, and what it must be.

    Attributes:
        path: Absolute path of the checkpoint.
        name: Name for messages.
        digest: Digest of its weights, which is checked.
    """

    path: str
    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Pair:
    """What a worker compares.

    Attributes:
        candidate: A model that is searched.
        suspect: The model in question.
        alpha: Level of the decision.
    """

    candidate: FileModel
    suspect: FileModel
    alpha: float


def compare_pair(pair: Pair) -> Comparison | str:
    """Compare two files on a worker.

    Args:
        pair: The files.

    Returns:
        The comparison of their weights, or why there is none.
    """
    try:
        return compare_weights(_opened(pair.candidate), _opened(pair.suspect), pair.alpha)
    except (StemmaError, OSError) as error:
        return str(error)


@lru_cache(maxsize=2)
def _opened(file: FileModel) -> Model:
    """The model, verified by its digest; the suspect of a search is read once per worker."""
    for model in open_models(file.path, file.name):
        if model.digest == file.digest:
            return model_records.with_name(model, file.name)
    raise StemmaError(f"the weights at {file.path} are not those that '{file.name}' stands for")


def compare_elsewhere(
    candidates: Sequence[Candidate], suspect: Model, alpha: float, cache: ComparisonCache | None,
    engine: AbstractEngine, progress: Progress,
) -> Mapping[int, Comparison]:  # fmt: skip
    """Comparisons of weights that a cluster can make; what it cannot read is left to whoever asks.

    Args:
        candidates: The models that are searched.
        suspect: The model in question.
        alpha: Level of a decision.
        cache: Where comparisons of enrolled models are kept; None where these are not enrolled.
        engine: The cluster.
        progress: Told what is compared.

    Returns:
        Comparisons by the `id` of their candidate.
    """
    own = _as_file(suspect.source, suspect.name, suspect)
    if own is None:
        return {}
    pairs: list[tuple[Candidate, Pair]] = []
    for c in candidates:
        if (cache is None or cache.recall(c, suspect, alpha) is None) and c.source and Path(c.source).exists():
            pairs.append((c, Pair(FileModel(c.source, c.ref.name, c.ref.digest), own, alpha)))
    values = ((p, (FileState.of(p.candidate.path), FileState.of(p.suspect.path))) for _, p in pairs)
    out: dict[int, Comparison] = {}
    for done, ((c, _), result) in enumerate(zip(pairs, run(engine, WithFiles(compare_pair), values), strict=True)):
        progress(f"comparing with {c.ref.name}", done, len(pairs))
        if isinstance(result, Lost):
            out[id(c)] = comparisons.failed_comparison(c.ref, suspect.ref, f"{c.source}: {result.why}")
        elif not require_seen(result, engine.address) and not isinstance(result, str):
            out[id(c)] = result if cache is None else cache.keep(c, suspect, alpha, result)
    return out


def _as_file(source: str, name: str, model: Model) -> FileModel | None:
    """A model as a file, unless it is only in memory, or its weights are elsewhere than it says."""
    if model.black_box or model.view or model_records.has_no_weights(model) or not Path(source).exists():
        return None
    return FileModel(source, name, model.digest)
