"""Licences that apply to a model: its own, those of its relatives, and those of the bases that their cards name."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stemma.application.policies.licences import DENIED, FREE, UNCLEAR, DeniedLicence, judge_licence
from stemma.checkpoints import cards
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.registry.records import ModelRecord
from stemma.types import Digest, Trace
from stemma.workspace.candidates import is_same_file
from stemma.workspace.workspace import Workspace

MAX_BASES = 1000
"""Recorded ancestors that are followed at most."""


@dataclass(frozen=True)
class LicensedModel:
    """A model whose licence applies.

    Attributes:
        name: What to call it.
        digest: Of its weights.
        stated: Its licence as a person stated it, empty where nobody did.
        claims: What its files say.
        settled: Weights show what it was made from, so that a base which it names and nobody knows is no open question.
        silent: It need not state a licence itself.
    """

    name: str
    digest: str
    stated: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)
    settled: bool = False
    silent: bool = False

    @property
    def licence(self) -> str:
        """As a person stated it, else as its files do; empty where neither does."""
        return self.stated or cards.licence(self.claims) or ""


@dataclass(frozen=True)
class LicenceFindings:
    """What licences say about a model.

    Attributes:
        violations: One sentence for each that is refused.
        untested: One sentence for each that is not recorded or not clear.
        notes: Remarks: choices taken, cards that contradict what was stated.
    """

    violations: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check_licences(
    result: Trace, subject: Model, refused: Sequence[DeniedLicence], workspace: Workspace
) -> LicenceFindings:
    """Judge every licence that applies to a traced model.

    The licences are those of the model itself, of its copies, parents and relatives, and, through the registry, of the
    models that all these name as their base. What a card names is no evidence of provenance, but it speaks against its
    own interest here, and so it counts.

    Args:
        result: The trace.
        subject: The model.
        refused: Licences that are refused.
        workspace: Knows enrolled models.

    Returns:
        What is refused, what is not clear, and remarks.
    """
    found: dict[str, list[str]] = {DENIED: [], UNCLEAR: [], FREE: []}
    enrolled = EnrolledModels(workspace)
    todo = [*_itself(result, subject, enrolled), *_relatives(result, enrolled)]
    seen = {(h.name, h.digest) for h in todo}
    for holder in todo:
        for kind, sentence in _judged(holder, refused):
            found[kind].append(sentence)
        for base in _bases(holder, enrolled):
            if isinstance(base, str):
                found[UNCLEAR].append(base)
            elif len(seen) >= MAX_BASES:
                found[UNCLEAR].append(
                    f"more than {MAX_BASES:,} models are named as bases; the others were not examined"
                )
            elif (base.name, base.digest) not in seen:
                seen.add((base.name, base.digest))
                todo.append(base)
    return LicenceFindings(*(tuple(dict.fromkeys(found[kind])) for kind in (DENIED, UNCLEAR, FREE)))


def _itself(result: Trace, subject: Model, enrolled: "EnrolledModels") -> list[LicensedModel]:
    """The model as its own files have it now, and as it is enrolled from the same place."""
    made = any(p["direction"] == "parent" or p.get("role") == "same" for p in result.parents)
    shown = bool(result.copies) or made
    records = [r for r in enrolled.by_digest(subject.digest) if is_same_file(r, subject)]
    own = [LicensedModel(r.name, r.digest, r.license or "", r.claims, shown) for r in records]
    if any(h.stated for h in own):
        return own
    return [*own, LicensedModel(subject.name, subject.digest, "", subject.claims, shown, silent=True)]


def _relatives(result: Trace, enrolled: "EnrolledModels") -> list[LicensedModel]:
    rows = {(row["name"], row["digest"]): row for row in (*result.candidates, *result.copies)}
    found = (*result.copies, *result.parents, *result.relatives)
    return [h for row in found for h in _held(rows[row["name"], row["digest"]], enrolled)]


def _held(row: Mapping[str, Any], enrolled: "EnrolledModels") -> list[LicensedModel]:
    """A relative; one that was read from a file and states nothing also as the registry has the same weights."""
    stated = row["licence"] if row["licence_source"] == "stated" else ""
    told = f" ({row['known_from'].sentence})" if row.get("known_from") else ""
    holder = LicensedModel(f"{row['name']}{told}", row["digest"], stated, row["claims"])
    if holder.licence:
        return [holder]
    known = [_recorded(r) for r in enrolled.by_digest(row["digest"])]
    return [h for h in known if h.licence] or [holder]


def _recorded(record: ModelRecord) -> LicensedModel:
    return LicensedModel(record.name, record.digest, record.license or "", record.claims)


def _judged(holder: LicensedModel, refused: Sequence[DeniedLicence]) -> Iterator[tuple[str, str]]:
    text = holder.licence
    if not text and holder.silent:
        yield FREE, f"{holder.name} states no licence of its own"
    elif not text:
        yield UNCLEAR, f"the licence of {holder.name} is not recorded. State it: stemma add PATH --license L"
    else:
        yield from _sentences(holder.name, text, refused, stated=bool(holder.stated))
    card = cards.licence(holder.claims) or ""
    if holder.stated and card and judge_licence(card, refused).kind != FREE:
        yield FREE, f"the card of {holder.name} says {card}, but the licence stated when it was added applies: {text}"
    base = holder.claims.get(cards.BASE_LICENCE, "")
    if base:
        yield from _sentences(f"the base that {holder.name} was merged with", base, refused)


def _sentences(
    who: str, text: str, refused: Sequence[DeniedLicence], *, stated: bool = False
) -> Iterator[tuple[str, str]]:
    found = judge_licence(text, refused, stated=stated)
    if found.kind == DENIED:
        yield DENIED, f"{who} is under {text}, which --deny-license {found.why} refuses"
    elif found.kind == UNCLEAR:
        yield UNCLEAR, f"the licence of {who} is not clear: {found.why}"
    elif found.choice:
        yield FREE, f"{who} is under {text}: allowed only by choosing {found.choice}"


def _bases(holder: LicensedModel, enrolled: "EnrolledModels") -> Iterator[LicensedModel | str]:
    """What a model was made from by its own word: enrolled models, and sentences about those that are not."""
    edited_to = holder.claims.get("edited_to", "")
    for key in cards.BASE_CLAIMS:
        for name in filter(None, (n.strip() for n in holder.claims.get(key, "").split(","))):
            if name == holder.digest or (key == "edited_from" and edited_to and edited_to != holder.digest):
                continue
            known = [r for r in enrolled.named(name) if r.digest != holder.digest]
            yield from (_recorded(r) for r in known)
            answered = holder.stated or holder.settled or holder.claims.get(cards.BASE_LICENCE)
            if not known and not answered:
                yield (
                    f"{holder.name} names {name} as its base, which is not enrolled, so the licence of the "
                    "base is not known. Enrol it: stemma add PATH --name NAME --license L"
                )


class EnrolledModels:
    """The enrolled models, found as cards name them; a registry that cannot be read holds none."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def by_digest(self, digest: str) -> list[ModelRecord]:
        """Those with these weights."""
        with contextlib.suppress(StemmaError):
            return list(self._workspace.registry.by_digest(Digest(digest)))
        return []

    def named(self, name: str) -> list[ModelRecord]:
        """Those that a card means: by digest, by the whole name, else by its last part; without case."""
        if name.startswith("sha256:"):
            return self.by_digest(name)
        whole = name.strip("/").casefold()
        return self._names.get(whole) or self._names.get(f"/{whole.rpartition('/')[2]}") or []

    @cached_property
    def _names(self) -> dict[str, list[ModelRecord]]:
        """Records by name, and by the last part of the name with a slash before it."""
        out: dict[str, list[ModelRecord]] = {}
        with contextlib.suppress(StemmaError):
            for record in self._workspace.list():
                name = record.name.casefold()
                for key in (name, f"/{name.rpartition('/')[2]}"):
                    out.setdefault(key, []).append(record)
        return out
