"""The answer about one suspect: copies, parents, relatives, or no known parent.

Pure: candidates and a function that gives the evidence for one of them come as values; nothing is read or stored here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.ancestry.roles import Kin, Role, Standing
from stemma.checkpoints import cards
from stemma.checkpoints.model import Model
from stemma.kinship.axes import NO_PROBES
from stemma.types import Comparison, Digest, ModelRef, NotTested, RelationKind, Trace

CANNOT_SEE = ("training data", "models that are not in what was searched")

PROOF = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are exhibited (same bytes, or a map with a residual at rounding), not inferred: not corrected."""

TIE = 0.005
"""Effects closer than this are tied: one unit of a few hundred."""


@dataclass(frozen=True)
class Candidate:
    """A model that the suspect may come from.

    Attributes:
        ref: Name and digest.
        names_free_digest: Finds renamed copies.
        tensor_digests: Finds shared parts.
        load: Reads the model when a test needs it.
        claims: What its files say (licence, base model …), for policies.
        licence: As a person stated it; empty where nobody did.
    """

    ref: ModelRef
    names_free_digest: Digest
    tensor_digests: Mapping[str, Digest]
    load: Callable[[], Model]
    claims: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""


Standings = Callable[[Sequence[tuple[Candidate, Comparison]]], Kin]
"""Says what the related candidates are to the suspect."""

UNKNOWN = "an unknown common ancestor"
"""What a parent set holds beside enrolled models."""


def trace(
    suspect: Model,
    candidates: Sequence[Candidate],
    evidence: Callable[[Candidate], Comparison],
    *,
    alpha: float = 0.01,
    n_searched: int | None = None,
    standings: Standings | None = None,
    not_tested: Sequence[NotTested] = (),
    coverage: float = 0.95,
) -> Trace:
    """Say where a model comes from, among the candidates.

    Copies (same digest, or the same tensors under other names) are set aside first. The p-value of every other
    candidate's weights is corrected by Holm for the number of models searched; p-values of the function axis come
    corrected. A candidate is related if either axis says so. Which of the related is the parent is asked last, and only
    an established parent is called so.

    Args:
        suspect: The model in question.
        candidates: Models that were looked at closely.
        evidence: Gives the comparison (candidate, suspect); called once per candidate that is no copy.
        alpha: Family-wise level.
        n_searched: Models that were searched to find the candidates; at least their number.
        standings: What the related candidates are to the suspect; without, `parents` holds those tied for the largest
            effect, with direction `unknown`.
        not_tested: What could not be searched at all: files that cannot be read, models that the index does not hold.
        coverage: Of the parent set, as `role_assignment` was asked for it.

    Returns:
        The trace: `descends` with the parents that are established, else `related` where there is kin;
        `no-known-parent` only if every candidate was tested and excluded, and nothing was left out.
    """
    searched = max(len(candidates), n_searched or 0)
    copies = [c for c in candidates if _is_copy(suspect, c)]
    compared = [(c, evidence(c)) for c in candidates if c not in copies]
    rows = [_row(c, found) for c, found in compared]
    related = _holm(rows, alpha, searched)
    for row in rows:
        close = (row["function"] or {}).get("verdict") == "related"
        row["verdict"] = "related" if close or row["name"] in related else _demoted(row)
    listed = list(rows)
    rows.sort(key=_order)
    found = [r for r in rows if r["verdict"] == "related"]
    known = {id(r): pair for r, pair in zip(listed, compared, strict=True)}
    kin = _kinship(found, [known[id(r)] for r in found], standings)
    roles = {id(r): s for r, s in zip(found, kin.standings, strict=True)}
    parents = [_kin(r, roles[id(r)]) for r in found if roles[id(r)].role in (Role.PARENT, Role.SAME)]
    relatives = [_kin(r, roles[id(r)]) for r in found if roles[id(r)].role not in (Role.PARENT, Role.SAME)]
    parents.sort(key=lambda p: (p["direction"] != "parent", -(p["confidence"] or 0.0), -(p["share"] or 0.0)))
    left = (*not_tested, *_left_open(compared, listed, searched), *_beyond(candidates, rows, searched))
    return Trace(
        model=suspect.ref,
        verdict=_verdict(bool(copies), parents, found, excluded=bool(rows) and not left),
        copies=tuple(_copy(suspect, c) for c in copies),
        parents=tuple(parents),
        relatives=tuple(relatives),
        candidates=tuple(rows),
        alpha=alpha,
        n_searched=searched,
        cannot_see=(*CANNOT_SEE, *_unasked([found for _, found in compared]), *_by_sketch(candidates, searched)),
        not_tested=left,
        parent_set=_parent_set(found, kin),
        coverage=coverage if kin.parent_set else None,
    )


def _parent_set(found: Sequence[Mapping[str, Any]], kin: Kin) -> tuple[dict[str, Any], ...]:
    """The possible parents: of models that hardly differ the likeliest, with the others beside it."""
    out = []
    for member in kin.parent_set:
        rows = [found[k] for k in member.positions]
        first = {"name": rows[0]["name"], "digest": rows[0]["digest"]} if rows else {"name": UNKNOWN, "digest": None}
        out.append({**first, "probability": member.probability, "or": [r["name"] for r in rows[1:]]})
    return tuple(out)


def _is_copy(suspect: Model, c: Candidate) -> bool:
    return c.ref.digest == suspect.digest or c.names_free_digest == suspect.names_free_digest


def _copy(suspect: Model, c: Candidate) -> dict[str, Any]:
    same = c.ref.digest == suspect.digest
    return {"name": c.ref.name, "digest": c.ref.digest, "relation": "copy" if same else "reformatted",
            "reason": "the digests agree" if same else "the same tensors under other names", **_told(c)}  # fmt: skip


def _told(c: Candidate) -> dict[str, Any]:
    """What is claimed of a model, for policies and never as evidence: its licence, by whom, and its base."""
    licence = c.licence or cards.licence(c.claims)
    by = "stated" if c.licence else "card" if licence else None
    return {"licence": licence, "licence_source": by, "claims": cards.provenance_claims(c.claims)}


def _row(c: Candidate, found: Comparison) -> dict[str, Any]:
    document = found.to_dict()
    weights, function = document["weights"], document["function"]
    close = function is not None and function["verdict"] == "related" and weights["verdict"] != "related"
    return {
        "name": c.ref.name, "digest": c.ref.digest, "verdict": found.verdict,
        "relation": document["relation"], "steps": list(found.relation.steps),
        "parameters": document["relation_parameters"], "relation_reason": found.relation.reason,
        "effect": function["effect"] if close else found.weights.effect, "weights": weights, "function": function,
        **_told(c),
    }  # fmt: skip


def _holm(rows: Sequence[Mapping[str, Any]], alpha: float, searched: int) -> set[str]:
    """Names of the related candidates after Holm's correction for all models searched; proofs are not corrected."""
    related = {r["name"] for r in rows if r["verdict"] == "related" and r["relation"] in PROOF}
    tested = [r for r in rows if r["weights"]["log10_p"] is not None and r["name"] not in related]
    tested.sort(key=lambda r: r["weights"]["log10_p"])
    for rank, row in enumerate(tested):
        if 10 ** row["weights"]["log10_p"] * (searched - rank) > alpha:
            break
        if row["verdict"] == "related":
            related.add(row["name"])
    return related


def _unasked(compared: Sequence[Comparison]) -> tuple[str, ...]:
    """What the function axis did not see: all of it, or the candidates that could not be asked."""
    if not compared:
        return ()
    without = [c for c in compared if c.function is None]
    why = [u for c in without for u in c.cannot_see if u.startswith("function (") and u != NO_PROBES]
    if len(without) == len(compared) and not why:
        return (NO_PROBES,)
    first = f"{why[0].removeprefix('function (').removesuffix(')')}{'; …' if len(why) > 1 else ''}" if why else ""
    return (f"the function of {len(why)} of {len(compared)} models: {first}",) if why else ()


def _left_open(
    compared: Sequence[tuple[Candidate, Comparison]], rows: Sequence[Mapping[str, Any]], searched: int
) -> tuple[NotTested, ...]:
    """What the comparisons could not test, and candidates whose kinship does not stand up to so large a search."""
    out: list[NotTested] = []
    for (c, found), row in zip(compared, rows, strict=True):
        out += [{"what": t["what"], "model": c.ref.name, "why": t["why"]} for t in found.open_questions]
        if found.verdict == "related" and row["verdict"] == "inconclusive":
            why = f"it looks related, but not by enough for {searched:,} models searched: {found.weights.reason}"
            out.append({"what": "undecided", "model": c.ref.name, "why": why})
    return tuple(out)


def _unseen(candidates: Sequence[Candidate], searched: int) -> int:
    """How many of the models searched were not looked at closely; one with several names is several candidates."""
    return searched - len({c.ref.digest for c in candidates}) if searched > len(candidates) else 0


def _beyond(candidates: Sequence[Candidate], rows: Sequence[Mapping[str, Any]], searched: int) -> tuple[NotTested, ...]:
    """The models further away by their sketches, unless the search reached past the kin: to one that is excluded."""
    unseen = _unseen(candidates, searched)
    if not unseen or any(r["verdict"] == "independent" for r in rows):
        return ()
    why = f"{unseen:,} of {searched:,} models were seen by their sketches alone, and none that was compared is excluded"
    return ({"what": "not-looked-at", "model": "", "why": why},)


def _by_sketch(candidates: Sequence[Candidate], searched: int) -> tuple[str, ...]:
    unseen = _unseen(candidates, searched)
    return (f"{unseen:,} of {searched:,} models but by their sketches",) if unseen else ()


def _demoted(row: Mapping[str, Any]) -> str:
    return "inconclusive" if row["verdict"] == "related" else row["verdict"]


_RANK = {"related": 0, "inconclusive": 1, "independent": 2}


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    change = row["parameters"].get("relative_change")
    steps = max(1, len(row["steps"]))  # of two accounts the shorter one is the nearer kin
    return _RANK[row["verdict"]], -round(row["effect"] / TIE), steps, 1e9 if change is None else change, row["name"]


def _kinship(
    found: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[Candidate, Comparison]], standings: Standings | None
) -> Kin:
    """The standing of every related candidate, in order; without a test of parenthood the best are tied."""
    if not found:
        return Kin(())
    if standings is not None:
        return standings(pairs)
    best = max(r["effect"] for r in found)
    tied = [r for r in found if r["effect"] >= best - TIE]
    exact = [r for r in tied if r["relation"] in PROOF]
    return Kin([Standing(Role.SAME if r in (exact or tied) else Role.RELATIVE) for r in found])


def _kin(row: Mapping[str, Any], standing: Standing) -> dict[str, Any]:
    by = row["weights"] if row["weights"]["verdict"] == "related" else row["function"] or row["weights"]
    return {
        "name": row["name"], "digest": row["digest"], "relation": standing.relation or row["relation"],
        "steps": [standing.relation] if standing.relation else row["steps"],
        "p_value": by["p_value"], "log10_p": by["log10_p"], "confidence": standing.confidence,
        "direction": "parent" if standing.role is Role.PARENT else "unknown", "role": standing.role.value,
        "share": row["effect"] if standing.share is None else standing.share,
        "reason": standing.reason or by["reason"], "licence": row["licence"], "licence_source": row["licence_source"],
    }  # fmt: skip


def _verdict(copies: bool, parents: Sequence[Mapping[str, Any]], found: Sequence[Any], *, excluded: bool) -> str:
    if copies:
        return "copy"
    if any(p["direction"] == "parent" for p in parents):
        return "descends"
    if found:
        return "related"
    return "no-known-parent" if excluded else "inconclusive"
