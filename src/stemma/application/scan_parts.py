"""The parts of the document of `stemma scan`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stemma.types import KnownFrom, Trace

if TYPE_CHECKING:
    from stemma.workspace.scan import Found


@dataclass(frozen=True, slots=True)
class StorePart:
    """A store that was scanned.

    Attributes:
        kind: How it is laid out.
        path: Its folder.
        models: Number of models in it.
    """

    kind: Literal["hf", "ollama", "folder"]
    path: str
    models: int


@dataclass(frozen=True, slots=True)
class ScanFindingPart:
    """A model that a scanned one is related to.

    Attributes:
        name: Name of the model.
        relation: What was done between the two; null where nothing was decided.
        role: What the model is to the scanned one.
        confidence: Probability of the role; null where it has none.
        licence: Licence as read; null where none is recorded.
        known_from: Other registry that tells of the model; null where this registry read it.
    """

    name: str
    relation: str | None
    role: Literal["copy", "parent", "child", "same", "relative", "unknown"]
    confidence: float | None
    licence: str | None
    known_from: KnownFrom | None = None


@dataclass(frozen=True, slots=True)
class ScannedPart:
    """A model in a store.

    Attributes:
        name: Name of the model.
        names: All its names: revisions and tags with the same contents.
        digest: Digest of its weights.
        path: File or folder.
        store: Kind of the store.
        status: What happened to it since the last scan.
        claims: What store, card and files say of it; no evidence. Empty where it was not opened.
        verdict: Where it comes from, as `stemma trace` says; null where it was not traced.
        findings: Models that it is related to.
        enrolled: What became of it in the registry; null where it was not enrolled.
        enrolled_as: Its name in the registry, which differs where the name was taken; null where it was not enrolled.
        refused: Whether the policy refuses it; it is reported as new again then.
    """

    name: str
    names: tuple[str, ...]
    digest: str
    path: str
    store: Literal["hf", "ollama", "folder"]
    status: Literal["new", "changed", "unchanged", "gone"]
    claims: Mapping[str, str]
    verdict: Literal["copy", "descends", "related", "no-known-parent", "inconclusive"] | None
    findings: tuple[ScanFindingPart, ...]
    enrolled: Literal["added", "known", "replaced"] | None
    enrolled_as: str | None
    refused: bool


@dataclass(frozen=True, slots=True)
class LeftOutPart:
    """Something in a store that is no model, or no complete one yet.

    Attributes:
        what: Short code of the reason.
        name: Its name.
        why: Reason, in one sentence.
    """

    what: str
    name: str
    why: str


def scanned_part(item: "Found", model: tuple[str, str]) -> ScannedPart:
    """A model of a checkpoint before it is traced: its name and digest."""
    return ScannedPart(
        name=model[0],
        names=item.names,
        digest=model[1],
        path=item.path,
        store=item.store.kind,
        status=item.status,
        claims={},
        verdict=None,
        findings=(),
        enrolled=None,
        enrolled_as=None,
        refused=False,
    )


def finding_parts(result: Trace) -> tuple[ScanFindingPart, ...]:
    """The models that a traced one is related to, its copies first."""
    rows: list[tuple[Any, Mapping[str, Any]]] = [("copy", row) for row in result.copies]
    rows += [(row["role"], row) for row in (*result.parents, *result.relatives)]
    return tuple(
        ScanFindingPart(
            row["name"], row["relation"], role, row.get("confidence"), row["licence"], row.get("known_from")
        )
        for role, row in rows
    )
