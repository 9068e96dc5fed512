"""Which models come from which? Request, answer and JSON document of `stemma lineage`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.application.parts import NotTestedPart, not_tested_parts
from stemma.types import Edge, Lineage, ModelRef


@dataclass(frozen=True, kw_only=True)
class LineageRequest:
    """What `stemma lineage` is asked.

    Attributes:
        paths: Checkpoints and folders; everything in the registry if null.
        registry: Registry; the default one if null.
        alpha: Significance level over all pairs; the default if null.
        jobs: Models that are read at once.
    """

    paths: tuple[str, ...] | None = None
    registry: str | None = None
    alpha: float | None = None
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class MissingAncestorPart:
    """A model that the distances call for and that is not among the models.

    Attributes:
        name: Name that edges call it by.
        children: Models that come from it.
        parent: Model that it comes from; null where that is unknown.
    """

    name: str
    children: tuple[str, ...]
    parent: str | None


@dataclass(frozen=True, slots=True)
class RefusedPart:
    """A relation that was examined and not drawn.

    Attributes:
        models: Models concerned.
        reason: Why, in one sentence.
    """

    models: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptPart:
    """An edit that a receipt beside the weights records.

    Attributes:
        parent: Model before the edit.
        child: Model after the edit.
        operation: What was done.
        drawn: How the tree, which weights alone decide, has this edit: the same, reversed, with another parent, or not.
    """

    parent: str
    child: str
    operation: str
    drawn: Literal["same", "reversed", "elsewhere", "not"]


@dataclass(frozen=True, kw_only=True)
class LineageDocument(Document):
    """Which models come from which.

    Attributes:
        models: All models.
        edges: From parent to child; a merge has several parents.
        roots: Models without a parent among these.
        families: Groups of related models, the largest first.
        missing_ancestors: Models that the distances call for and that are not among these.
        refused: Relations that were examined and not drawn, or not directed.
        receipts: Edits that receipts beside the weights record.
        evidence: By family, what the decisions were made with.
        cannot_see: What the answer does not cover.
        not_tested: Models that nothing could be compared with, or that could not be read.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.lineage", 1)

    asked: LineageRequest
    models: tuple[ModelRef, ...]
    edges: tuple[Edge, ...]
    roots: tuple[str, ...]
    families: tuple[tuple[str, ...], ...]
    missing_ancestors: tuple[MissingAncestorPart, ...]
    refused: tuple[RefusedPart, ...]
    receipts: tuple[ReceiptPart, ...]
    evidence: tuple[Mapping[str, Any], ...]
    cannot_see: tuple[str, ...]
    not_tested: tuple[NotTestedPart, ...]


@dataclass(frozen=True, kw_only=True)
class LineageAnswer:
    """The family trees of some models.

    Attributes:
        request: What was asked.
        result: The lineage.
    """

    request: LineageRequest
    result: Lineage

    def document(self) -> dict[str, Any]:
        """The document that `stemma lineage --json` prints."""
        found = self.result
        return LineageDocument.of(
            self.request,
            models=found.models,
            edges=found.edges,
            roots=found.roots,
            families=found.families,
            missing_ancestors=tuple(MissingAncestorPart(**one) for one in found.missing_ancestors),
            refused=tuple(RefusedPart(**one) for one in found.refused),
            receipts=tuple(ReceiptPart(**one) for one in found.receipts),
            evidence=found.evidence,
            cannot_see=found.cannot_see,
            not_tested=not_tested_parts(found.not_tested),
        ).to_dict()


def lineage(request: LineageRequest, progress: Progress | None = None) -> LineageAnswer:
    """Draw the family trees of files, or of everything that is enrolled.

    Args:
        request: The models.
        progress: Told what is being done.

    Returns:
        The trees.
    """
    from stemma.application.opening import open_workspace
    from stemma.workspace.lineage import lineage_of

    options = {} if request.alpha is None else {"alpha": request.alpha}
    workspace = open_workspace(request.registry, jobs=request.jobs, progress=progress)
    paths = [Path(path) for path in request.paths or ()] or None
    return LineageAnswer(request=request, result=lineage_of(workspace, paths, progress=progress, **options))
