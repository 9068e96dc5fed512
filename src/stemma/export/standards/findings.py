"""What is exported of each model, whatever the format: taken from the document of a trace or of a lineage."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from stemma.checkpoints.file_hashes import FileHash
from stemma.export.answers import told
from stemma.types import ClaimLine, jsonable, plain
from stemma.types.claims import SURE

TOOL = "Stemma"

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:stemma:export")
"""Of identifiers that are made from content, so that the same findings have the same ones."""

LONGEST = 2000
"""Characters of a text from a file that are written."""

MAX_NESTED = 200
"""Ancestors that are written below one model, ancestors of ancestors included."""

MAX_UNTESTED = 20
"""Other models that could not be tested that are listed beside each model of a lineage."""

NO_ANCESTOR = {
    "no-known-parent": "No parent was found among the models searched; one that was not searched cannot be found.",
    "inconclusive": "Inconclusive: not everything could be tested, so no parent is found and none is excluded.",
    "related": "Related models were found; none of them is established as its parent.",
    "copy": "The same weights are known under another name; which came first is not established.",
}
"""What is said of a model without an established parent, by verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """A model that another one was compared with and is related to.

    Attributes:
        name: Its name.
        digest: Stemma's digest of its weights; empty for one that is missing.
        relation: What the model in question is to it.
        steps: Operations that explain the difference, in their order.
        role: `parent`, `child`, `same`, `relative`, `unknown` or `copy`.
        established: Whether it is established that the model was made from this one.
        p_value: Of the test that the two are related; None where none was needed or run.
        log10_p: Its decimal logarithm.
        confidence: Calibrated probability of the role; None where it has none.
        share: Share of the model that comes from this one; None where it is not known.
        reason: Evidence, in one sentence.
        test: Name of the statistic that decides; empty where none did.
        licence: Licence as read.
        licence_source: `stated` or `card`.
        known_from: Who tells of the model, in words; empty where it was read here.
    """

    name: str
    digest: str
    relation: str
    steps: tuple[str, ...] = ()
    role: str = "parent"
    established: bool = False
    p_value: float | None = None
    log10_p: float | None = None
    confidence: float | None = None
    share: float | None = None
    reason: str = ""
    test: str = ""
    licence: str | None = None
    licence_source: str | None = None
    known_from: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.name, self.digest

    def evidence(self, version: str) -> dict[str, Any]:
        """Everything that is known about the relation, as plain JSON values; what is not known is None.

        Args:
            version: Version of Stemma.

        Returns:
            The same fields for every format.
        """
        return {
            "relation": self.relation, "steps": list(self.steps), "role": self.role, "established": self.established,
            "method": {"tool": TOOL, "version": version, "test": self.test or None},
            "p_value": self.p_value, "log10_p": self.log10_p, "confidence": self.confidence, "share": self.share,
            "reason": clean(self.reason), "known_from": clean(self.known_from) or None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFindings:
    """What was found about one model.

    Attributes:
        name: Its name.
        digest: Stemma's digest of its weights.
        verdict: As of a trace.
        kin: Its copies, parents and relatives.
        possible: The parent set of a trace: possible parents with their probabilities.
        coverage: Share of cases in which such a set holds the parent.
        alpha: Significance level; None where the document does not say.
        n_searched: Models searched; None likewise.
        not_tested: What bears on the verdict and could not be tested: `what`, `model`, `why`.
        cannot_see: What the answer does not cover.
        notes: What the reader left out of the files, changed or took for granted.
        violations: What a policy refuses, one sentence each.
        licence: Its licence as stated by a person or its files; no finding.
        licence_source: `stated` or `card`.
        claims: What its files say, against the findings.
        files: Its files with their digests; empty where they are not at hand.
        parameters: Number of stored elements.
        architecture: Architecture as its configuration claims; empty without.
    """

    name: str
    digest: str
    verdict: str
    kin: tuple[Kin, ...] = ()
    possible: tuple[Mapping[str, Any], ...] = ()
    coverage: float | None = None
    alpha: float | None = None
    n_searched: int | None = None
    not_tested: tuple[Mapping[str, Any], ...] = ()
    cannot_see: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    licence: str | None = None
    licence_source: str | None = None
    claims: tuple[ClaimLine, ...] = ()
    files: tuple[FileHash, ...] = ()
    parameters: int | None = None
    architecture: str = ""

    @property
    def parents(self) -> tuple[Kin, ...]:
        """The established parents."""
        return tuple(k for k in self.kin if k.established)

    @property
    def others(self) -> tuple[Kin, ...]:
        """Copies and relatives that are no established parents."""
        return tuple(k for k in self.kin if not k.established)

    @property
    def untested(self) -> tuple[str, ...]:
        """One sentence for each thing that was not tested, what the answer does not cover, and notes of the reader."""
        sentences = (f"{t['model']}: {t['why']}" if t.get("model") else str(t["why"]) for t in self.not_tested)
        return (
            *(f"Not tested: {clean(s)}" for s in sentences), *(f"Not covered: {clean(s)}" for s in self.cannot_see),
            *(f"As read: {clean(s)}" for s in self.notes),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportedFindings:
    """What one export is about.

    Attributes:
        models: The models.
        ancestors: What is known of other models: parents that were traced too.
        created: When the findings were made: UTC, ISO 8601.
        version: Version of Stemma.
    """

    models: tuple[ModelFindings, ...]
    ancestors: tuple[ModelFindings, ...] = ()
    created: str
    version: str

    @cached_property
    def identity(self) -> str:
        """Digest of everything here: the same findings have the same one."""
        text = json.dumps(jsonable([self.models, self.ancestors, self.created, self.version]), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def identifier(self, *words: object) -> uuid.UUID:
        """An identifier made from the content, and from what it is for.

        Args:
            words: What it is for.

        Returns:
            A UUID of version 5.
        """
        return uuid.uuid5(NAMESPACE, json.dumps([self.identity, *map(str, words)]))

    def about(self, kin: Kin) -> ModelFindings | None:
        """What is known of a relative itself; None where it was not traced."""
        return self._by_key.get(kin.key)

    @cached_property
    def exported(self) -> frozenset[tuple[str, str]]:
        """Name and digest of every model that is exported itself."""
        return frozenset((m.name, m.digest) for m in self.models)

    @cached_property
    def _by_key(self) -> Mapping[tuple[str, str], ModelFindings]:
        return {(m.name, m.digest): m for m in (*self.ancestors, *self.models)}


def clean(text: object) -> str:
    """Text from a file as it is written into a document: nothing unprintable, and not without end."""
    shown = plain(" ".join(str(text).split()))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def of_trace(document: Mapping[str, Any]) -> ModelFindings:
    """The findings of a trace.

    Args:
        document: The document of `stemma trace`.

    Returns:
        The findings, without licence, claims and files of the model itself.
    """
    tests = {(c["name"], c["digest"]): c["weights"]["statistic"] for c in document["candidates"]}
    kin = [_copy(c) for c in document["copies"]]
    kin += [_relative(row, tests.get((row["name"], row["digest"]), "")) for row in document["parents"]]
    kin += [_relative(row, tests.get((row["name"], row["digest"]), "")) for row in document["relatives"]]
    policy = document.get("policy")
    return ModelFindings(
        name=document["model"]["name"], digest=document["model"]["digest"], verdict=document["verdict"],
        kin=tuple(kin), possible=tuple(document["parent_set"]), coverage=document["coverage"],
        alpha=document["alpha"], n_searched=document["n_searched"], not_tested=tuple(document["not_tested"]),
        cannot_see=tuple(document["cannot_see"]), violations=tuple(policy["violations"]) if policy else (),
        notes=tuple(n["note"] for n in document["notes"] if n["model"] == document["model"]["name"]),
    )  # fmt: skip


def _copy(row: Mapping[str, Any]) -> Kin:
    return Kin(
        name=row["name"], digest=row["digest"], relation=row["relation"], steps=(row["relation"],), role="copy",
        share=1.0, reason=row["reason"], test="digest", licence=row["licence"], licence_source=row["licence_source"],
        known_from=told(row),
    )  # fmt: skip


def _relative(row: Mapping[str, Any], test: str) -> Kin:
    return Kin(
        name=row["name"], digest=row["digest"], relation=row["relation"] or "related", steps=tuple(row["steps"]),
        role=row["role"], established=row["direction"] == "parent", p_value=row["p_value"], log10_p=row["log10_p"],
        confidence=row["confidence"], share=row["share"], reason=row["reason"], test=test, licence=row["licence"],
        licence_source=row["licence_source"], known_from=told(row),
    )  # fmt: skip


def of_lineage(document: Mapping[str, Any]) -> tuple[ModelFindings, ...]:
    """The findings about every model of a lineage.

    A model without an edge has no known parent only where the lineage left nothing untested.

    Args:
        document: The document of `stemma lineage`.

    Returns:
        One entry per model, without licences, claims and files.
    """
    digests = {m["name"]: m["digest"] for m in document["models"]}
    family = {name: members for members in document["families"] for name in members}
    above: dict[str, list[Mapping[str, Any]]] = {}
    below: dict[str, list[Mapping[str, Any]]] = {}
    for edge in document["edges"]:
        above.setdefault(edge["child"], []).append(edge)
        below.setdefault(edge["parent"], []).append(edge)
    out = []
    for name in digests:
        parents = [_edge(e, "parent", digests.get(e["parent"], "")) for e in above.get(name, ())]
        children = [_edge(e, "child", digests.get(e["child"], "")) for e in below.get(name, ())]
        named = {name, *(k.name for k in children)}
        rest = [
            Kin(name=n, digest=digests[n], relation="related", role="unknown", reason="of the same family")
            for n in family.get(name, ()) if n not in named and not parents
        ]  # fmt: skip
        out.append(_of_lineage(document, name, digests, parents, [*children, *rest]))
    return tuple(out)


def _of_lineage(
    document: Mapping[str, Any], name: str, digests: Mapping[str, str], parents: Sequence[Kin], others: Sequence[Kin]
) -> ModelFindings:  # fmt: skip
    not_tested = _open_questions(document, name)
    if any(p.established for p in parents):
        verdict = "descends"
    elif parents or others:
        verdict = "related"
    else:
        verdict = "inconclusive" if not_tested or len(digests) < 2 else "no-known-parent"
    return ModelFindings(
        name=name, digest=digests[name], verdict=verdict, kin=(*parents, *others), not_tested=not_tested,
        cannot_see=tuple(document["cannot_see"]), n_searched=len(digests) - 1,
    )  # fmt: skip


def _open_questions(document: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """What a lineage left untested of a model; whatever was not tested at all may be a parent of any."""
    own = [t for t in document["not_tested"] if t["model"] in ("", name)]
    own += [{"what": "undecided", "model": "", "why": r["reason"]}
            for r in document["refused"] if name in r["models"]]  # fmt: skip
    others = [t for t in document["not_tested"] if t["model"] not in ("", name)]
    more = len(others) - MAX_UNTESTED
    rest = [{"what": "others", "model": "", "why": f"{more:,} more models could not be tested"}] if more > 0 else []
    return (*own, *others[:MAX_UNTESTED], *rest)


def _edge(edge: Mapping[str, Any], end: Literal["parent", "child"], digest: str) -> Kin:
    """One end of an edge; a copy is no parent, nor is a missing model that only distances call for, or a likely one."""
    sure = edge["confidence"] is None or edge["confidence"] >= SURE
    copied = edge["relation"] in ("copy", "reformatted", "permuted")
    return Kin(
        name=edge[end], digest=digest, relation=edge["relation"], steps=(edge["relation"],),
        role="copy" if copied else end, established=end == "parent" and bool(digest) and not copied and sure,
        p_value=edge["p_value"], log10_p=edge["log10_p"], confidence=edge["confidence"], share=edge["share"],
        reason=edge["reason"], test="lineage",
    )  # fmt: skip


def ancestry(
    findings: ExportedFindings, model: ModelFindings
) -> Iterable[tuple[tuple[int, ...], Kin, ModelFindings | None]]:
    """The established ancestors of a model, each under its child; a model is never its own ancestor.

    Where an ancestor is exported itself, its own ancestors are there and not repeated here.

    Args:
        findings: What is known of other models.
        model: Where to begin.

    Yields:
        Its place (`(1, 0)` is the first parent of the second parent), the ancestor, and what is known of it.
    """
    exported = findings.exported
    waiting: list[tuple[tuple[int, ...], Kin, tuple[str, ...]]] = []
    waiting += [((i,), kin, (model.digest,)) for i, kin in enumerate(model.parents)]
    for count, (path, kin, below) in enumerate(waiting):
        if count >= MAX_NESTED:
            return
        known = findings.about(kin)
        yield path, kin, known
        seen = (*below, kin.digest)
        if known is not None and kin.key not in exported:
            further = [k for k in known.parents if k.digest not in seen]
            waiting += [((*path, i), k, seen) for i, k in enumerate(further)]
