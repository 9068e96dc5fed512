"""How often learning-free methods put a child's source first among sources, and what they say where it is not there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemma.kinship.function.finetuning_approximation import FineTuningApproximation
from stemma.probes import Probes
from testbeds.held_back.members import GRANDCHILDREN, KINDS, SAME_START, Member
from testbeds.held_back.rates import rate
from testbeds.held_back.tasks import examples
from testbeds.parent_scores import all_scores, right
from testbeds.parent_zoos import Question

CANDIDATES, PROBES = 12, 64
ASKED, CONTROLS, LEVEL = 8, 11, 0.1
WITHOUT = 2 / 9
"""Level without controls: twice the smallest p-value of eight candidates, as a true parent may give."""
REFUTED = ("new head", "long new head", "relabelled")
METHODS = {
    "l1 plain": ("l1", "plain"), "l1 linear": ("l1", "linear 1"), "cka plain": ("cka", "plain"),
    "cka linear": ("cka", "linear 1 bounded"), "direction": ("direction", "plain"), "combined": ("combined", "plain"),
    "weights": ("weights", "plain"),
}  # fmt: skip


def own_probes(member: Member) -> Probes:
    """Inputs of the task that a member learnt last."""
    x, _ = examples(member.task, "test", PROBES)
    if member.bed == "garments":
        return Probes.of(x.astype(np.float32) / 255, kind="image")
    return Probes.of(x, kind="tensor")


def scores(members: Sequence[Member], every: int = 1, seed: int = 4) -> list[dict[str, Any]]:
    """Every descended child against its source and others: who comes first, by method."""
    known = {(m.source, m.kind): m for m in members}
    sources = sorted({m.source for m in members})
    rows = []
    for s in sources[::every]:
        rng = np.random.default_rng([seed, s])
        for kind in (*(k for k in KINDS if k in SAME_START), *GRANDCHILDREN):
            child = known[s, kind]
            others = rng.choice([i for i in sources if i != s], CANDIDATES - 1, replace=False)
            candidates = [known[int(i), "source"] for i in (s, *others)]
            rows.append({"kind": kind, "source": s, **_first(child, candidates, own_probes(child))})
    return rows


def _first(child: Member, candidates: Sequence[Member], probes: Probes) -> dict[str, float]:
    truth = np.zeros(1, int)
    asked = Question([c.model for c in candidates], [child.model], truth, truth, probes)
    found = all_scores(asked, taylor=(), names=("l1", "cka"))
    return {name: float(right(found[row][form], truth)[0]) for name, (row, form) in METHODS.items()}


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


def none_of_these(members: Sequence[Member], every: int = 1, seed: int = 6) -> dict[str, Any]:
    """How often `none of these` is refuted, where the source is among the candidates and where it is not.

    Controls are children of the same kind of sources that are no candidates; without them, the candidates themselves.
    """
    known = {(m.source, m.kind): m for m in members}
    sources = sorted({m.source for m in members})
    method = FineTuningApproximation("combined")
    found: dict[str, list[tuple[bool, int]]] = {}
    for s in sources[::every]:
        rng = np.random.default_rng([seed, s])
        for kind in REFUTED:
            child = known[s, kind]
            others = [int(i) for i in rng.permutation([i for i in sources if i != s])]
            controls = [known[i, kind].model for i in others[ASKED : ASKED + CONTROLS]]
            for where, chosen in (("source there", [s, *others[: ASKED - 1]]), ("source not there", others[:ASKED])):
                candidates = [known[i, "source"].model for i in chosen]
                p = method.none_of_these(candidates, child.model, own_probes(child), controls).p_value
                found.setdefault(where, []).append((p <= LEVEL, s))
                if kind == REFUTED[0]:
                    p = method.none_of_these(candidates, child.model, own_probes(child)).p_value
                    found.setdefault(f"{where}, no controls", []).append((p <= WITHOUT, s))
    return {w: rate([hit for hit, _ in rows], [s for _, s in rows]) for w, rows in found.items()}
