"""What is known of one enrolled model? Request, answer and JSON document of `stemma show`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Schema
from stemma.application.lineage import ReceiptPart
from stemma.checkpoints.digest import is_partial
from stemma.errors import UnknownNameError
from stemma.registry.records import ModelRecord
from stemma.types import ClaimLine, Edge, KnownFrom, jsonable
from stemma.types.claims import SURE

if TYPE_CHECKING:
    from stemma.registry import Registry
    from stemma.registry.exchange.known_models import KnownModel
    from stemma.workspace.catalogue import Catalogue, Entry

SHARING = 8
"""Models with the same tensors that are listed."""


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    """What `stemma show` is asked.

    Attributes:
        name: Registry name or digest prefix.
        registry: Registry; the default one if null.
    """

    name: str
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class FamilyPart:
    """Place of a model in the family tree of the registry, as it was drawn last.

    Attributes:
        drawn_at: When the tree was drawn: UTC, ISO 8601; null if the model is not in it, or none was drawn.
        members: Number of models in its family, itself among them.
        descendants: Models below it.
        not_tested: Why it, or models of the registry, are not in the tree, or could not be compared.
    """

    drawn_at: str | None
    members: int
    descendants: tuple[str, ...]
    not_tested: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NearPart:
    """A model near another one in the search index.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        alike: How alike the weight sketches are: 1 the same, about 0 independent.
    """

    name: str
    digest: str
    alike: float


@dataclass(frozen=True, slots=True)
class SharedPart:
    """A model that has some of the same tensors.

    Attributes:
        name: Name of the model.
        digest: Digest of its weights.
        tensors: Number of tensors that both have, bit for bit.
    """

    name: str
    digest: str
    tensors: int


@dataclass(frozen=True, slots=True)
class ToldEvidencePart:
    """A result of another registry; it is shown, and decides nothing here.

    Attributes:
        other: The other model of the pair.
        method: Name of the method.
        verdict: As the registry states it.
        added_at: When it was computed there: UTC, ISO 8601.
    """

    other: str
    method: str
    verdict: str
    added_at: str


@dataclass(frozen=True, kw_only=True)
class ShowDocument(Document):
    """What the registry knows about one model.

    Attributes:
        name: Name of the model; unique in the registry.
        digest: Digest of the weights with their names.
        names_free_digest: Digest of the weights without their names.
        source: Absolute path of the checkpoint, or the address of a model on a server, with its commit.
        format: File ending of the source, `folder`, or `hub`.
        tensors: Number of tensors.
        parameters: Number of parameters.
        dtypes: Number of tensors of each number format.
        config: Configuration as claimed; null without one.
        claims: What its files say; no evidence.
        license: Licence as stated when the model was enrolled; null if not stated.
        weights: Digest of the stored copy of the weights; null where none is stored.
        added_at: When it was enrolled: UTC, ISO 8601.
        added_with: Version of Stemma that enrolled it.
        licence: Licence as stated, else as its card says; null where neither does.
        copies: Other enrolled names with the same weights, whatever their tensors are called.
        family: Place of the model in the family tree that was drawn last.
        parents: Edges of that tree from its parents.
        children: Edges of that tree to its children.
        near: Models nearest in the search index: hints where to look, and no evidence.
        shared: Models that have some of its tensors, bit for bit.
        receipts: Edits that receipts beside the weights record, to it or from it.
        claims_checked: What its files say, set against the family tree.
        known_from: Other registry that tells of the model, and whose word all of this is; null where it was read here.
        known_as: Names of models that other registries tell of, and that are said to have the same weights.
        told_evidence: What the other registry computed on pairs with the model.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.show", 1)

    asked: ShowRequest
    name: str
    digest: str
    names_free_digest: str
    source: str
    format: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    config: Mapping[str, Any] | None
    claims: Mapping[str, str]
    license: str | None
    weights: str | None
    added_at: str
    added_with: str
    licence: str | None
    copies: tuple[str, ...]
    family: FamilyPart
    parents: tuple[Edge, ...]
    children: tuple[Edge, ...]
    near: tuple[NearPart, ...]
    shared: tuple[SharedPart, ...]
    receipts: tuple[ReceiptPart, ...]
    claims_checked: tuple[ClaimLine, ...]
    known_from: KnownFrom | None = None
    known_as: tuple[str, ...] = ()
    told_evidence: tuple[ToldEvidencePart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShowAnswer:
    """What is known of one enrolled model.

    Attributes:
        request: What was asked.
        result: Its record.
        known: What the document says beside the record.
    """

    request: ShowRequest
    result: ModelRecord
    known: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The document that `stemma show --json` prints."""
        fields = jsonable(self.result)
        added_with = fields.pop("stemma_version")
        return ShowDocument.of(
            self.request, **fields, added_with=added_with, licence=self.result.licence, **self.known
        ).to_dict()


def show_model(request: ShowRequest, catalogue: "Catalogue | None" = None) -> ShowAnswer:
    """Look up one enrolled model, its relatives, and the models near it.

    Args:
        request: The model.
        catalogue: The models of the registry where they are at hand; read otherwise.

    Returns:
        What is known of it. Nothing is compared: relations are those of the family tree that was drawn last.

    Raises:
        UnknownNameError: If there is no such model, here or known from another registry.
    """
    from stemma.application.claims import check_claims
    from stemma.application.opening import open_workspace
    from stemma.workspace.catalogue import Catalogue
    from stemma.workspace.known import find_known

    if catalogue is None:
        workspace = open_workspace(request.registry)
        try:
            record = workspace.show(request.name)
        except UnknownNameError:
            known_model = find_known(workspace.registry, request.name)
            if known_model is None:
                raise
            return _told(request, known_model, workspace.registry)
        catalogue = Catalogue(workspace.registry)
    else:
        record = catalogue.registry.get(request.name)
    parents, children = (tuple(found.get(record.name, ())) for found in (catalogue.parents, catalogue.children))
    drawn = record.name not in catalogue.undrawn
    known = {
        "copies": tuple(e.name for e in _same(catalogue, record) if e.name != record.name),
        "family": FamilyPart(
            catalogue.drawn_at if drawn else None,
            len(catalogue.family(record.name)),
            catalogue.descendants(record.name),
            tuple(_not_tested(catalogue, record.name)),
        ),
        "parents": parents if drawn else (),
        "children": children if drawn else (),
        "near": tuple(NearPart(x.name, x.digest, x.alike) for x in catalogue.near(record.digest)),
        "shared": tuple(_sharing(catalogue, record)),
        "claims_checked": check_claims(record.claims, _as_trace(catalogue, record), record.license),
        "receipts": tuple(
            ReceiptPart(**one) for one in catalogue.lineage.receipts if record.name in (one["parent"], one["child"])
        ),
        "known_as": tuple(k.name for k in catalogue.registry.known.by_digest(record.digest)),
    }  # fmt: skip
    return ShowAnswer(request=request, result=record, known=known)


def _told(request: ShowRequest, known: "KnownModel", registry: "Registry") -> ShowAnswer:
    """What another registry tells of a model."""
    parents, children = (tuple(map(_told_edge, edges)) for edges in registry.known.edges(known))
    same = (
        *registry.by_digest(known.record.digest),
        *(k.record for k in registry.known.by_digest(known.record.digest)),
    )
    unverified = () if known.complete else ("not all tensors are listed, so that the digest is only stated",)
    fields = {
        "copies": tuple(dict.fromkeys(r.name for r in same if r.name != known.name)),
        "family": FamilyPart(None, 1, (), (known.reason, *unverified)),
        "parents": parents, "children": children, "near": (), "shared": (), "receipts": (), "claims_checked": (),
        "known_from": known.told,
        "told_evidence": tuple(ToldEvidencePart(**one) for one in registry.known.evidence(known)),
    }  # fmt: skip
    return ShowAnswer(request=request, result=known.record, known=fields)


def _told_edge(edge: Mapping[str, Any]) -> Edge:
    return Edge(parent=edge["parent"], child=edge["child"], relation=edge["relation"], p_value=edge["p_value"],
                confidence=edge["confidence"], reason=edge["known_from"].sentence)  # fmt: skip


def _as_trace(catalogue: "Catalogue", record: ModelRecord) -> dict[str, Any]:
    """What the family tree says of a model, as a trace says it; nothing is searched that is not in the tree."""

    def row(name: str, edge: Edge | None, role: str) -> dict[str, Any]:
        known = catalogue.by_name.get(name)
        confidence = edge.confidence if edge else None
        sure = confidence is None or confidence >= SURE
        return {
            "name": name, "digest": known.digest if known else "", "relation": edge.relation if edge else "copy",
            "steps": (), "role": role, "direction": "parent" if role == "parent" and sure else "unknown",
            "confidence": confidence,
            "p_value": edge.p_value if edge else None, "log10_p": edge.log10_p if edge else None,
            "licence": known.licence if known else None, "licence_source": None,
        }  # fmt: skip

    name = record.name
    same = (e.name for e in _same(catalogue, record) if e.name != name)
    parents = [row(e.parent, e, "parent") for e in catalogue.parents.get(name, ()) if e.parent in catalogue.by_name]
    children = [row(e.child, e, "child") for e in catalogue.children.get(name, ()) if e.child in catalogue.by_name]
    return {
        "model": {"name": name, "digest": record.digest}, "verdict": "descends" if parents else "inconclusive",
        "copies": [row(other, None, "same") for other in same], "parents": parents, "relatives": children,
        "candidates": [], "n_searched": len(catalogue.entries),
    }  # fmt: skip


def _not_tested(catalogue: "Catalogue", name: str) -> list[str]:
    if catalogue.drawn_at is None:
        return ["no family tree was drawn yet. Draw it with: stemma lineage"]
    out = [t["why"] for t in catalogue.lineage.not_tested if t["model"] in ("", name)]
    refused = [r for r in catalogue.lineage.refused if name in r["models"]]
    out += [f"{' and '.join(map(str, r['models']))}: {r['reason']}" for r in refused]
    if catalogue.undrawn:
        which = "this model among them " if name in catalogue.undrawn else ""
        out.append(f"{len(catalogue.undrawn):,} models were enrolled after the family tree was drawn, {which}"
                   "and are not in it. Draw it again with: stemma lineage")  # fmt: skip
    return out


def _sharing(catalogue: "Catalogue", record: ModelRecord) -> list[SharedPart]:
    """Models that have some of the same tensors, most shared first; copies are left out."""
    names, same = catalogue.name_of, {record.digest, *(e.digest for e in _same(catalogue, record))}
    wanted = {t.digest for t in catalogue.registry.tensors(record.digest) if not is_partial(t.digest)}
    found = catalogue.registry.by_tensor_digests(wanted, SHARING + len(same))
    rest = [SharedPart(names[d], d, len(t)) for d, t in found.items() if d in names and d not in same]
    return rest[:SHARING]


def _same(catalogue: "Catalogue", record: ModelRecord) -> "Sequence[Entry]":
    """All enrolled names of the same contents, the model itself among them."""
    return catalogue.same_contents.get(record.names_free_digest, ())
