"""How often learning-free methods put a child's source first among sources, and what they say where it is not there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemma.kinship.function.finetuning_approximation import FORMS, FineTuningApproximation
from stemma.probes import Probes
from testbeds.held_back.members import GRANDCHILDREN, KINDS, SAME_START, Member
from testbeds.held_back.rates import rate
from testbeds.held_back.tasks import examples

CANDIDATES, PROBES = 12, 64
METHODS = {
    "l1 plain": ("plain", "l1"), "l1 linear": ("linear", "l1"), "cka plain": ("plain", "cka"),
    "cka linear": ("linear", "cka"), "direction": ("direction", "l1"), "combined": ("combined", "l1"),
}  # fmt: skip


def own_probes(member: Member) -> Probes:
    """Inputs of the task that a member learnt last."""
    x, _ = examples(member.task, "test", PROBES)
    if member.bed == "garments":
        return Probes.of(x.astype(np.float32) / 255, kind="image")
    return Probes.of(x, kind="tensor")


def scores(members: Sequence[Member], seed: int = 4) -> list[dict[str, Any]]:
    """Every descended child against its source and others: who comes first, by method."""
    known = {(m.source, m.kind): m for m in members}
    sources = sorted({m.source for m in members})
    rows = []
    for s in sources:
        rng = np.random.default_rng([seed, s])
        for kind in (*(k for k in KINDS if k in SAME_START), *GRANDCHILDREN):
            child = known[s, kind]
            others = rng.choice([i for i in sources if i != s], CANDIDATES - 1, replace=False)
            candidates = [known[int(i), "source"] for i in (s, *others)]
            rows.append({"kind": kind, "source": s, **_first(child, candidates, own_probes(child))})
    return rows


def _first(child: Member, candidates: Sequence[Member], probes: Probes) -> dict[str, Any]:
    out: dict[str, Any] = {"weights": float(_nearest(child, candidates) == 0)}
    models = [c.model for c in candidates]
    for name, (form, similarity) in METHODS.items():
        if form in FORMS:
            found = FineTuningApproximation(form, similarity).matrix(models, [child.model], probes).values[:, 0]  # ty: ignore[invalid-argument-type]
            best = np.flatnonzero(found == found.max())
            out[name] = float(0 in best) / len(best)
    return out


def _nearest(child: Member, candidates: Sequence[Member]) -> int:
    names = [n for n in child.arrays if n.endswith(("weight", "bias")) and not n.startswith("answer")]
    far = [sum(float(np.square(c.arrays[n] - child.arrays[n]).sum()) for n in names) for c in candidates]
    return int(np.argmin(far))


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Top-1 by kind and method."""
    methods = [n for n in rows[0] if n not in ("kind", "source")]
    kinds = ["all", *dict.fromkeys(r["kind"] for r in rows)]
    return {
        k: {
            m: rate(
                [r[m] for r in rows if k in ("all", r["kind"])], [r["source"] for r in rows if k in ("all", r["kind"])]
            )
            for m in methods
        }
        for k in kinds
    }
