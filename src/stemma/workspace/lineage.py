"""The lineage of files, or of everything that is enrolled."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stemma import __version__
from stemma.checkpoints import cards
from stemma.checkpoints.model import Model
from stemma.errors import NotAModelError, RegistryError
from stemma.registry import model_records
from stemma.registry.family_trees import LINEAGE, StoredTree
from stemma.registry.ingest import fingerprinters
from stemma.registry.receipts import edges_from_receipts
from stemma.types import WEIGHTS_GONE, Lineage, NotTested
from stemma.workspace.candidates import candidates_from_files
from stemma.workspace.forest import lineage
from stemma.workspace.incremental_forest import UpdatedLineage, update_lineage
from stemma.workspace.search_scope import unreadable_files
from stemma.workspace.workspace import ALPHA, Workspace

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class ModelsToDraw:
    """The models of a lineage, before it is drawn.

    Attributes:
        models: The models, each under a name of its own.
        not_tested: Files that cannot be read, and models whose weights are gone.
        sketches: Bits of the weight sketches that are enrolled, by digest.
        licences: By name, the licence that is recorded of a model.
    """

    models: Sequence[Model]
    not_tested: tuple[NotTested, ...]
    sketches: Mapping[str, np.ndarray]
    licences: Mapping[str, str]


def models_to_draw(workspace: Workspace, paths: Sequence[Path] | None = None) -> ModelsToDraw:
    """The models of some files, or everything that is enrolled.

    Args:
        workspace: Holds the registry.
        paths: Checkpoints, or folders of them; the registry unless given.

    Returns:
        The models. Files that cannot be read and models whose weights are gone are listed as not tested.

    Raises:
        NotAModelError: If there is nothing to read.
    """
    if paths is not None:
        candidates, unreadable = candidates_from_files([Path(p) for p in paths])
        models = [c.load() for c in candidates]
        pairs = zip(models, (c.ref.name for c in candidates), strict=True)
        models = [m if m.name == name else model_records.with_name(m, name) for m, name in pairs]
        not_tested = unreadable_files(unreadable)
        sketches: dict[str, np.ndarray] = {}
        licences = {m.name: cards.licence(m.claims) for m in models}
    else:
        records = workspace.list()
        models_opened = [workspace.reopen(r) for r in records]
        models = [m for m in models_opened if not model_records.has_no_weights(m)]
        not_tested = tuple(weights_gone(m) for m in models_opened if model_records.has_no_weights(m))
        spec = fingerprinters()[0].spec
        sketches = workspace.registry.sketches(spec)
        licences = {r.name: r.licence for r in records}
    if not models:
        why = (
            f"there is no checkpoint in {', '.join(map(str, paths))}"
            if paths
            else _why_empty(workspace, enrolled=bool(not_tested))
        )
        raise NotAModelError(f"{why}: there is nothing to draw a lineage of")
    return ModelsToDraw(models, not_tested, sketches, {name: text for name, text in licences.items() if text})


def draw(
    found: ModelsToDraw, *, alpha: float = ALPHA, before: StoredTree | None = None, progress: Progress | None = None
) -> UpdatedLineage:
    """The lineage of models that were read.

    Args:
        found: The models.
        alpha: Level of the decision that two models are related, over all pairs.
        before: A lineage that most of them are in: what did not change since is kept.
        progress: Called with what happens, how many models are done, and of how many.

    Returns:
        The lineage, with what could not be read; and which models were kept as they were drawn before.
    """
    if before is None:
        updated = UpdatedLineage(lineage(found.models, alpha=alpha, sketches=found.sketches, progress=progress))
    else:
        updated = update_lineage(before.lineage, found.models, alpha=alpha, sketches=found.sketches, progress=progress)
    result = updated.lineage
    receipts = tuple(k.to_dict(result.edges) for k in edges_from_receipts(found.models))
    result = replace(result, receipts=receipts, not_tested=(*result.not_tested, *found.not_tested))
    return replace(updated, lineage=result)


def last_drawn(workspace: Workspace, alpha: float = ALPHA) -> StoredTree | None:
    """The lineage of the registry as it was kept last, if this version drew it at the same level; else None."""
    try:
        found = workspace.registry.tree(LINEAGE)
    except RegistryError:  # it is drawn again
        return None
    if found is None or found.stemma_version != __version__ or dict(found.facts) != _facts(alpha):
        return None
    return found


def _facts(alpha: float) -> dict[str, Any]:
    return {"alpha": alpha, "sketch": fingerprinters()[0].spec.digest}


def keep(workspace: Workspace, found: Lineage, alpha: float = ALPHA) -> None:
    """Keep the lineage of everything that is enrolled in the registry, for pages and for `stemma show`.

    A lineage that holds other models too is not kept. A registry that cannot be written stays as it is.
    """
    enrolled = {record.name: record.digest for record in workspace.list()}
    if all(enrolled.get(model.name) == model.digest for model in found.models):
        with contextlib.suppress(RegistryError):
            workspace.registry.put_tree(LINEAGE, found.to_dict(), _facts(alpha))


def weights_gone(model: Model) -> NotTested:
    """The entry for a model of which only a sketch is left."""
    return {"what": WEIGHTS_GONE, "model": model.name, "why": model.notes[0]}


def _why_empty(workspace: Workspace, *, enrolled: bool) -> str:
    path = workspace.registry.path
    if enrolled:
        return f"no model in {path} has weights that are still available"
    why = f"the registry at {path} is empty" if path.exists() else f"there is no registry at {path}"
    return f"{why} (enrol some models with: stemma add PATH)"
