"""Which models come from which? Request, answer and JSON document of `stemma lineage`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.descent import DescentPart, descent_part
from stemma.application.document import Document, Progress, Schema
from stemma.application.parts import NotTestedPart, PolicyPart, not_tested_parts
from stemma.errors import MisuseError
from stemma.types import Edge, Lineage, ModelRef

if TYPE_CHECKING:
    from stemma.ancestry.trees.kin import KinOf
    from stemma.application.policies import Ruling


@dataclass(frozen=True, kw_only=True)
class LineageRequest:
    """What `stemma lineage` is asked.

    Attributes:
        paths: Checkpoints and folders; everything in the registry if null.
        registry: Registry; the default one if null.
        alpha: Significance level over all pairs; the default if null.
        jobs: Models that are read at once.
        descendants_of: Model whose descendants are listed.
        ancestors_of: Model whose ancestors are listed.
        fail_on_descendant_of: Models from which no other may descend.
        allow_untested: Whether a policy lets pass what is not decided.
        dot: File into which the graph is written, in the language of Graphviz.
    """

    paths: tuple[str, ...] | None = None
    registry: str | None = None
    alpha: float | None = None
    jobs: int = 1
    descendants_of: str | None = None
    ancestors_of: str | None = None
    fail_on_descendant_of: tuple[str, ...] | None = None
    allow_untested: bool = False
    dot: str | None = None


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
        descent: Descendants or ancestors of a model; only where they were asked for.
        policy: What the policy says; only where there is one.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("descent", "policy")
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
    descent: DescentPart | None = None
    policy: PolicyPart | None = None


@dataclass(frozen=True, kw_only=True)
class LineageAnswer:
    """The family trees of some models.

    Attributes:
        request: What was asked.
        result: The lineage.
        kin: Descendants or ancestors of a model; None where they were not asked for.
        licences: By name, the licence that is recorded of a model.
        ruling: What the policy says; an empty ruling where there is none.
        dot: The graph in the language of Graphviz; None where it was not asked for.
    """

    request: LineageRequest
    result: Lineage
    kin: "KinOf | None" = None
    licences: Mapping[str, str] = field(default_factory=dict)
    ruling: "Ruling"
    dot: bytes | None = None

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
            descent=None if self.kin is None else descent_part(self.kin, found, self.licences),
            policy=None if self.request.fail_on_descendant_of is None else self.ruling.part,
        ).to_dict()


def lineage(request: LineageRequest, progress: Progress | None = None) -> LineageAnswer:
    """Draw the family trees of files, or of everything that is enrolled.

    Args:
        request: The models.
        progress: Told what is being done.

    Returns:
        The trees.

    Raises:
        MisuseError: If both descendants and ancestors are asked for, or of no name.
    """
    from stemma.ancestry.trees.kin import kin_of
    from stemma.application.opening import open_workspace
    from stemma.application.policies import Policy, judge_lineage
    from stemma.export.dot import lineage_dot
    from stemma.workspace.lineage import draw, keep, models_to_draw
    from stemma.workspace.named_models import with_named

    policy = Policy.of(ancestors=request.fail_on_descendant_of, allow_untested=request.allow_untested)
    asked = request.descendants_of if request.descendants_of is not None else request.ancestors_of
    if request.descendants_of is not None and request.ancestors_of is not None:
        raise MisuseError("--descendants-of and --ancestors-of exclude each other: ask one question at a time")
    if asked is not None and not asked.strip():
        raise MisuseError("an empty text names no model: give a name, a path or a digest prefix")
    options = {} if request.alpha is None else {"alpha": request.alpha}
    workspace = open_workspace(request.registry, jobs=request.jobs, progress=progress)
    from stemma.checkpoints.remote import place

    paths = [place(path) for path in request.paths or ()] or None
    wanted = [*([asked] if asked is not None else []), *policy.ancestors]
    models, names = with_named(models_to_draw(workspace, paths), wanted, workspace)
    result = draw(models, progress=progress, **options)
    if paths is None:
        keep(workspace, result, **options)
    direction = "ancestors" if request.descendants_of is None else "descendants"
    kin = None if asked is None else kin_of(result, names[asked], direction)
    return LineageAnswer(
        request=request,
        result=result,
        kin=kin,
        licences=models.licences,
        ruling=judge_lineage(policy, result, names),
        dot=None if request.dot is None else lineage_dot(result).encode(),
    )
