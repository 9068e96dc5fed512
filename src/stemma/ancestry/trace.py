"""The verdict on one suspect: copy, descends, related, no known parent or inconclusive, with its relatives.

`descends` (see `_verdict`) needs a candidate with the role parent, which `workspace/role_assignment.py` gives. Nothing
is read or stored here: the candidates, and a function that compares one of them with the suspect, are passed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.ancestry.roles import RelativeRole, RelativeRoles, Role
from stemma.checkpoints import cards
from stemma.checkpoints.model import Model
from stemma.checkpoints.sample import bytes_read
from stemma.fingerprints.tensor_content import has_content
from stemma.kinship.axes import NO_PROBES
from stemma.types import Comparison, Digest, ModelRef, NotTested, RelationKind, Trace

CANNOT_SEE = ("training data", "models that are not in what was searched")

EXACT_RELATIONS = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are verified (same bytes, or a map with a residual at rounding), so that no correction is needed."""

TIE = 0.005
"""Effects closer than this are tied: one unit of a few hundred."""

UNKNOWN_ANCESTOR = "an unknown common ancestor"
"""Entry of a parent set for an ancestor that is not enrolled."""


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
        source: Where its weights lie, as a path; empty where that is not known.
    """

    ref: ModelRef
    names_free_digest: Digest
    tensor_digests: Mapping[str, Digest]
    load: Callable[[], Model]
    claims: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    source: str = ""


AssignRoles = Callable[[Sequence[tuple[Candidate, Comparison]]], RelativeRoles]
"""Assigns a role to every related candidate."""

Row = Mapping[str, Any]


def trace(
    suspect: Model,
    candidates: Sequence[Candidate],
    compare: Callable[[Candidate], Comparison],
    *,
    alpha: float = 0.01,
    n_searched: int | None = None,
    assign_roles: AssignRoles | None = None,
    not_tested: Sequence[NotTested] = (),
    coverage: float = 0.95,
) -> Trace:
    """Identify where a model comes from, among the candidates.

    Copies (same digest, or the same tensors under other names) are set aside first. The p-value of every other
    candidate's weights is corrected by Holm for the number of models searched; p-values of the function axis arrive
    corrected. A candidate is related if either axis says so. Roles are assigned last, and only an established parent
    is called a parent.

    Args:
        suspect: The model in question.
        candidates: Models that are compared in full.
        compare: Gives the comparison (candidate, suspect); called once per candidate that is no copy.
        alpha: Family-wise level.
        n_searched: Models that were searched to find the candidates; at least their number.
        assign_roles: Assigns a role to every related candidate; without it, `parents` holds those tied for the largest
            effect, with direction `unknown`.
        not_tested: What could not be searched at all: unreadable files, models that the index does not hold.
        coverage: Of the parent set that `assign_roles` gives.

    Returns:
        The trace: `descends` with the established parents, else `related` where there are relatives;
        `no-known-parent` only if every candidate was tested and excluded, and nothing was left out.
    """
    searched = max(len(candidates), n_searched or 0)
    copies = [c for c in candidates if _is_copy(suspect, c)]
    compared = [(c, compare(c)) for c in candidates if c not in copies]
    rows = [_candidate_row(c, comparison) for c, comparison in compared]
    related_names = _holm(rows, alpha, searched)
    for row in rows:
        by_function = (row["function"] or {}).get("verdict") == "related"
        is_related = by_function or row["name"] in related_names
        row["verdict"] = "related" if is_related else "inconclusive" if row["verdict"] == "related" else row["verdict"]
    pairs = {id(row): pair for row, pair in zip(rows, compared, strict=True)}
    left = (*not_tested, *_open_questions(compared, rows, searched), *_only_sketched(candidates, rows, searched))
    rows.sort(key=_sort_key)
    related = [r for r in rows if r["verdict"] == "related"]
    assigned = _assigned_roles(related, [pairs[id(r)] for r in related], assign_roles)
    relatives = [(role.role, _relative_row(r, role)) for r, role in zip(related, assigned.roles, strict=True)]
    parents = [r for role, r in relatives if role in (Role.PARENT, Role.SAME)]
    parents.sort(key=lambda p: (p["direction"] != "parent", -(p["confidence"] or 0.0), -(p["share"] or 0.0)))
    if all(r["weights"]["verdict"] != "related" for r in related):  # the set is read from weights that are shared
        assigned = RelativeRoles(assigned.roles)
    unseen = _number_sketched(candidates, searched)
    return Trace(
        model=suspect.ref,
        verdict=_verdict(bool(copies), parents, bool(related), excluded=bool(rows) and not left),
        copies=tuple(_copy_row(suspect, c) for c in copies),
        parents=tuple(parents),
        relatives=tuple(r for role, r in relatives if role not in (Role.PARENT, Role.SAME)),
        candidates=tuple(rows),
        alpha=alpha,
        n_searched=searched,
        cannot_see=(
            *CANNOT_SEE,
            *_unread(suspect),
            *_function_gaps([comparison for _, comparison in compared]),
            *((f"{unseen:,} of {searched:,} models, which were compared by weight sketch only",) if unseen else ()),
        ),
        not_tested=left,
        parent_set=_parent_set(related, assigned),
        coverage=coverage if assigned.parent_set else None,
    )


def _parent_set(related: Sequence[Row], assigned: RelativeRoles) -> tuple[dict[str, Any], ...]:
    out = []
    for possible in assigned.parent_set:
        names = [related[k]["name"] for k in possible.positions]
        digest = related[possible.positions[0]]["digest"] if names else None
        name = names[0] if names else UNKNOWN_ANCESTOR
        out.append({"name": name, "digest": digest, "probability": possible.probability, "or": names[1:]})
    return tuple(out)


def _is_copy(suspect: Model, c: Candidate) -> bool:
    """Whether both hold the same tensors; black boxes and modules without weights have none to tell them apart."""
    if not suspect.tensors or suspect.is_partial:  # equal samples are no equal models
        return False
    same = c.ref.digest == suspect.digest or c.names_free_digest == suspect.names_free_digest
    return same and has_content(suspect)


def _copy_row(suspect: Model, c: Candidate) -> dict[str, Any]:
    same = c.ref.digest == suspect.digest
    return {"name": c.ref.name, "digest": c.ref.digest, "relation": "copy" if same else "reformatted",
            "reason": "the digests agree" if same else "the same tensors under other names", **_claims(c)}  # fmt: skip


def _claims(c: Candidate) -> dict[str, Any]:
    """Licence, its source and base model as claimed: for policies, never as evidence."""
    licence = c.licence or cards.licence(c.claims)
    source = "stated" if c.licence else "card" if licence else None
    return {"licence": licence, "licence_source": source, "claims": cards.provenance_claims(c.claims)}


def _candidate_row(c: Candidate, comparison: Comparison) -> dict[str, Any]:
    document = comparison.to_dict()
    weights, function = document["weights"], document["function"]
    by_function = function is not None and function["verdict"] == "related" and weights["verdict"] != "related"
    return {
        "name": c.ref.name, "digest": c.ref.digest, "verdict": comparison.verdict,
        "relation": document["relation"], "steps": list(comparison.relation.steps),
        "parameters": document["relation_parameters"], "relation_reason": comparison.relation.reason,
        "effect": function["effect"] if by_function else comparison.weights.effect,
        "weights": weights, "function": function, **_claims(c),
    }  # fmt: skip


def _holm(rows: Sequence[Row], alpha: float, searched: int) -> set[str]:
    """Names of the related candidates after Holm's correction for all models searched; exact relations are exempt."""
    related = {r["name"] for r in rows if r["verdict"] == "related" and r["relation"] in EXACT_RELATIONS}
    tested = [r for r in rows if r["weights"]["log10_p"] is not None and r["name"] not in related]
    tested.sort(key=lambda r: r["weights"]["log10_p"])
    for rank, row in enumerate(tested):
        if 10 ** row["weights"]["log10_p"] * (searched - rank) > alpha:
            break
        if row["verdict"] == "related":
            related.add(row["name"])
    return related


def _function_gaps(compared: Sequence[Comparison]) -> tuple[str, ...]:
    """What the function axis did not cover: all of it, or the models that could not be run."""
    without = [c for c in compared if c.function is None]
    why = [u for c in without for u in c.cannot_see if u.startswith("function (") and u != NO_PROBES]
    if compared and len(without) == len(compared) and not why:
        return (NO_PROBES,)
    first = f"{why[0].removeprefix('function (').removesuffix(')')}{'; …' if len(why) > 1 else ''}" if why else ""
    return (f"the function of {len(why)} of {len(compared)} models: {first}",) if why else ()


def _open_questions(
    compared: Sequence[tuple[Candidate, Comparison]], rows: Sequence[Row], searched: int
) -> tuple[NotTested, ...]:
    """What the comparisons could not test, and candidates that are not significant after the correction."""
    out: list[NotTested] = []
    for (c, comparison), row in zip(compared, rows, strict=True):
        out += [{"what": t["what"], "model": c.ref.name, "why": t["why"]} for t in comparison.open_questions]
        if comparison.verdict == "related" and row["verdict"] == "inconclusive":
            why = f"not significant after correction for {searched:,} models searched: {comparison.weights.reason}"
            out.append({"what": "undecided", "model": c.ref.name, "why": why})
    return tuple(out)


def _unread(suspect: Model) -> tuple[str, ...]:
    """What was not read of the suspect itself."""
    if not suspect.is_partial:
        return ()
    read, total = bytes_read(suspect)
    return (f"{total - read:,} of {total:,} bytes of this model, which were not read",)


def _number_sketched(candidates: Sequence[Candidate], searched: int) -> int:
    """How many models were compared by sketch only; a model with several names is several candidates."""
    return searched - len({c.ref.digest for c in candidates}) if searched > len(candidates) else 0


def _only_sketched(candidates: Sequence[Candidate], rows: Sequence[Row], searched: int) -> tuple[NotTested, ...]:
    """The models compared by sketch only, unless a nearer candidate is already excluded."""
    unseen = _number_sketched(candidates, searched)
    if not unseen or any(r["verdict"] == "independent" for r in rows):
        return ()
    why = (
        f"{unseen:,} of {searched:,} models were compared by weight sketch only, and no model compared in full was "
        "excluded as independent"
    )
    return ({"what": "not-looked-at", "model": "", "why": why},)


_RANK = {"related": 0, "inconclusive": 1, "independent": 2}


def _sort_key(row: Row) -> tuple[Any, ...]:
    change = row["parameters"].get("relative_change")
    steps = max(1, len(row["steps"]))  # fewer operations between them: the closer relative
    return _RANK[row["verdict"]], -round(row["effect"] / TIE), steps, 1e9 if change is None else change, row["name"]


def _assigned_roles(
    related: Sequence[Row], pairs: Sequence[tuple[Candidate, Comparison]], assign_roles: AssignRoles | None
) -> RelativeRoles:
    """The role of every related candidate, in order; without `assign_roles` the largest effects are tied."""
    if not related:
        return RelativeRoles(())
    if assign_roles is not None:
        return assign_roles(pairs)
    best = max(r["effect"] for r in related)
    tied = [r for r in related if r["effect"] >= best - TIE]
    exact = [r for r in tied if r["relation"] in EXACT_RELATIONS]
    return RelativeRoles([RelativeRole(Role.SAME if r in (exact or tied) else Role.RELATIVE) for r in related])


def _relative_row(row: Row, role: RelativeRole) -> dict[str, Any]:
    axis = row["weights"] if row["weights"]["verdict"] == "related" else row["function"] or row["weights"]
    return {
        "name": row["name"], "digest": row["digest"], "relation": role.relation or row["relation"],
        "steps": [role.relation] if role.relation else row["steps"],
        "p_value": axis["p_value"], "log10_p": axis["log10_p"], "confidence": role.confidence,
        "direction": "parent" if role.role is Role.PARENT else "unknown", "role": role.role.value,
        "share": row["effect"] if role.share is None else role.share,
        "reason": role.reason or axis["reason"], "licence": row["licence"], "licence_source": row["licence_source"],
    }  # fmt: skip


def _verdict(copies: bool, parents: Sequence[Row], related: bool, *, excluded: bool) -> str:
    if copies:
        return "copy"
    if any(p["direction"] == "parent" for p in parents):
        return "descends"
    if related:
        return "related"
    return "no-known-parent" if excluded else "inconclusive"
