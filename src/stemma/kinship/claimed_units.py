"""A plan that lies beside a pruned model says which units it kept: a claim, which is checked against the weights.

The parent is cut as the plan says and compared with the child in place, unit by unit. Whoever writes a plan can choose
the rows so that they look alike. So the p-value is multiplied by the number of plans that could have been written: a
false plan helps no more than trying them all. Nothing else of a plan or a receipt is used, not even whom it names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import comb, log, log10
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.kinship.relaid_pair import SAME_FUNCTION
from stemma.kinship.relation import name_relation
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.decision import NotTested
from stemma.kinship.weights.units_kept import LEVELS
from stemma.networks.load import from_arrays
from stemma.types import Comparison, Evidence, Null, Relation, RelationKind, Verdict
from stemma.types.edits import PLAN

LARGEST_PLAN = 1 << 26
"""Bytes up to which a plan is read."""

LARGEST_MODEL = 1 << 27
"""Entries up to which a parent is cut in memory."""

ATTEMPTS = 4
"""What the p-value is multiplied by besides, because the usual tests come first, and two tests follow a plan."""

SHARED = 0.05
"""Least share of the smaller model that has to be equal bit by bit, as in `units-kept`."""

Rows = Mapping[str, Mapping[int, np.ndarray]]


@dataclass(frozen=True, eq=False)
class ClaimedCut:
    """A parent cut to the rows that a plan says the child kept.

    Attributes:
        parent: The cut parent, with the child's shapes.
        kept: Rows kept and rows before, by weight and axis: `name[axis]`.
        possible: Number of plans that could have been written for these two models.
    """

    parent: Model
    kept: Mapping[str, tuple[int, int]]
    possible: int


@dataclass(frozen=True, eq=False)
class CheckedClaim:
    """A plan that the weights bear out.

    Attributes:
        evidence: That the rows it names are those of the parent.
        relation: `pruned`, with what else changed.
        pairings: The tensors compared, from the first model to the second.
        parent: The parent, cut as the plan says.
        child: The child.
    """

    evidence: Evidence
    relation: Relation
    pairings: tuple[Pairing, ...]
    parent: Model
    child: Model


def check_claimed_units(a: Model, b: Model, alpha: float) -> CheckedClaim | None:
    """What a plan beside one of two models shows about the pair; None without one, or where weights do not show it."""
    for parent, child, first in ((a, b, True), (b, a, False)):
        cut = cut_as_claimed(parent, child)
        if cut is None:
            continue
        pairings = by_name(cut.parent, child)
        tried = ATTEMPTS * cut.possible
        found = contents_in_place(cut.parent, child, pairings, alpha, tried=tried)
        if found.verdict is not Verdict.SUPPORTED:
            found = _equal_entries(cut, child, found, tried, alpha)
        if found.verdict is Verdict.SUPPORTED:
            said = f"{found.reason}, in the units that a plan beside the smaller model names; corrected for all plans"
            evidence = replace(found, inputs=(a.digest, b.digest), reason=said)
            way = pairings if first else tuple(p.swapped() for p in pairings)
            relation = _relation(cut, child, found, pairings, first=first)
            return CheckedClaim(evidence, relation, way, cut.parent, child)
    return None


def needs_claim(found: Comparison) -> bool:
    """Whether a plan could say more than the usual tests do."""
    return found.verdict != "related" or found.relation.kind not in (*SAME_FUNCTION, RelationKind.PRUNED)


def with_claim(found: Comparison, checked: CheckedClaim, cannot_see: tuple[str, ...]) -> Comparison:
    """The comparison of a pair of which a plan was borne out."""
    others = tuple(e for e in found.evidence if e.spec != checked.evidence.spec)
    return replace(
        found, verdict="related", relation=checked.relation, weights=checked.evidence,
        evidence=(checked.evidence, *others), not_tested=(), cannot_see=cannot_see,
    )  # fmt: skip


def plan_beside(source: str) -> bytes:
    """The plan beside a model that lies at a path; empty where there is none, or too large a one."""
    if source.startswith("python:"):
        return b""
    try:
        place = Path(source)
        file = (place if place.is_dir() else place.parent) / PLAN
        return file.read_bytes() if file.is_file() and file.stat().st_size <= LARGEST_PLAN else b""
    except (OSError, ValueError):
        return b""


def claimed_rows(model: Model) -> Rows:
    """The rows that the plan beside a model says were kept, by weight and axis; empty where there is no usable one."""
    plan = plan_beside(model.source)
    if not plan:
        return {}
    try:
        slices = json.loads(plan)["slices"]
        found = {str(t): {int(a): np.array(r, np.int64) for a, r in axes.items()} for t, axes in slices.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    usable = all(_ascending(r) for axes in found.values() for r in axes.values())
    return found if usable else {}


def _ascending(rows: np.ndarray) -> bool:
    return rows.ndim == 1 and len(rows) > 0 and rows[0] >= 0 and bool((np.diff(rows) > 0).all())


def cut_as_claimed(parent: Model, child: Model) -> ClaimedCut | None:
    """The parent cut as the child's plan says; None unless that gives the child's shapes, smaller somewhere."""
    fit = _fit(parent, child)
    if fit is None or parent.is_partial or child.is_partial or parent.parameters > LARGEST_MODEL:
        return None
    rows, shared, kept = fit
    arrays = dict[str, np.ndarray]()
    for name, other in shared.items():
        array = parent.tensors[name].array()
        for a, r in rows.get(name, {}).items():
            array = np.take(array, r, axis=a)
        arrays[other] = np.ascontiguousarray(array)
    return ClaimedCut(from_arrays(arrays, parent.name), kept, _plans(rows, parent))


def plan_not_checked(a: Model, b: Model) -> list[NotTested]:
    """The gap of a pair of which a plan says that one was cut from the other, where that is too large to be checked."""
    why = "{} has more parameters than are cut in memory, so the plan beside {} was not checked"
    return [
        {"what": "plan", "model": parent.name, "why": why.format(parent.name, child.name)}
        for parent, child in ((a, b), (b, a))
        if parent.parameters > LARGEST_MODEL and _fit(parent, child) is not None
    ]


def _fit(parent: Model, child: Model) -> tuple[Rows, dict[str, str], dict[str, tuple[int, int]]] | None:
    """The rows of the child's plan, the tensors of both, and rows kept; None where the sizes are not those it says."""
    rows = claimed_rows(child)
    if not rows:
        return None
    inner = {n.removeprefix("inner."): n for n in child.tensors}  # a program holds the network under that name
    named = {n: n if n in child.tensors else inner.get(n) for n in parent.tensors}
    shared = {n: other for n, other in named.items() if other is not None}
    if not rows.keys() <= shared.keys():
        return None
    kept: dict[str, tuple[int, int]] = {}
    for name, other in shared.items():  # sizes first: nothing is read of models that do not fit
        shape, axes = parent.tensors[name].shape, rows.get(name, {})
        if not all(0 <= a < len(shape) and r[-1] < shape[a] for a, r in axes.items()):
            return None
        cut = tuple(len(axes[a]) if a in axes else n for a, n in enumerate(shape))
        if cut != tuple(child.tensors[other].shape):
            return None
        kept |= {f"{name}[{a}]": (len(r), shape[a]) for a, r in axes.items()}
    return (rows, shared, kept) if any(k < n for k, n in kept.values()) else None


def _plans(rows: Rows, parent: Model) -> int:
    """Number of plans as complex as this one, for the sizes of these two models."""
    # Sizes leave open which rows are chosen, how many choices there are for axes of equal sizes, and which is whose.
    classes: dict[tuple[int, int], list[bytes]] = {}
    for tensor, found in rows.items():
        for axis, r in found.items():
            classes.setdefault((parent.tensors[tensor].shape[axis], len(r)), []).append(r.tobytes())
    out = 1
    for (n, k), chosen in classes.items():
        choices = len(set(chosen))
        out *= len(chosen) * comb(n, k) ** choices * choices ** len(chosen)
    return out


def _equal_entries(cut: ClaimedCut, child: Model, found: Evidence, tried: int, alpha: float) -> Evidence:
    """Evidence of entries that are equal bit by bit in the places that the plan names; no single tensor decides."""
    counts, equal = dict[str, int](), 0
    for name, tensor in cut.parent.tensors.items():
        if not tensor.is_float or not child.tensors[name].is_float:
            continue
        x, y = tensor.array().reshape(-1), child.tensors[name].array().reshape(-1)
        same = x[(x == y) & (x != 0) & (np.abs(x) != 1)]
        counts[name], equal = len(np.unique(same)), equal + len(same)
    telling = sum(counts.values()) - max(counts.values(), default=0)
    log10_p = min(0.0, log(tried) / log(10) - telling * log10(LEVELS))
    effect = equal / max(1, sum(t.size for t in cut.parent.tensors.values() if t.is_float))
    if log10_p > log10(alpha) or effect < SHARED:
        return found
    return replace(
        found, claim="entries are identical bit for bit", statistic="entries-kept", value=float(equal),
        null=Null(f"equal numbers by chance, 1 in {LEVELS} each: a bound"), p_value=10**log10_p, log10_p=log10_p,
        effect=effect, verdict=Verdict.SUPPORTED, details={"entries": equal, "telling": telling},
        reason=f"{equal:,} entries ({effect:.1%}) are identical bit for bit",
    )  # fmt: skip


def _relation(
    cut: ClaimedCut, child: Model, evidence: Evidence, pairings: tuple[Pairing, ...], *, first: bool
) -> Relation:  # fmt: skip
    """Units were removed, and what the rest of the difference is."""
    rest = name_relation(cut.parent, child, evidence, pairings)
    after, before = (sum(k[i] for k in cut.kept.values()) for i in (0, 1))
    removed = f"{before - after:,} of {before:,} rows in {len(cut.kept)} places were removed"
    parameters: dict[str, Any] = {k: v for k, v in rest.parameters.items() if k != "made_from"}
    parameters |= {"ratio": 1 - after / before, "claimed_units": True}
    unchanged = rest.kind in (RelationKind.COPY, RelationKind.REFORMATTED)
    if unchanged or parameters.get("where") not in (None, "all layers"):  # some layer is still as it was
        parameters["made_from"] = "a" if first else "b"
    steps = ("units removed", *(s for s in rest.steps if not unchanged))
    said = removed if unchanged else f"{removed}; then {rest.reason}"
    return Relation(RelationKind.PRUNED, parameters, steps, said)
