"""A family tree to which models were added: only their families are drawn anew."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.ancestry.trees.families import families
from stemma.checkpoints.model import Model
from stemma.types import Lineage
from stemma.workspace.forest import DETAILED, Progress, Work, lineage
from stemma.workspace.workspace import ALPHA


def regrown(
    before: Lineage,
    models: Sequence[Model],
    *,
    alpha: float = ALPHA,
    sketches: Mapping[str, np.ndarray] | None = None,
    detailed: int = DETAILED,
    progress: Progress | None = None,
) -> Lineage:
    """The lineage of models most of which have been drawn before.

    Families that no model joined and none left are taken over as they were; the others are drawn anew.
    Cost: a sketch of every model that none is given for, and what `lineage` costs for the families that changed.

    Args:
        before: The lineage of other models, most of them among these.
        models: The models.
        alpha: As for `lineage`.
        sketches: As for `lineage`.
        detailed: As for `lineage`.
        progress: As for `lineage`.

    Returns:
        The lineage.
    """
    at = {(m.name, m.digest): i for i, m in enumerate(models)}
    digest = {m.name: m.digest for m in before.models}
    groups = [[at[n, digest[n]] for n in f if (n, digest[n]) in at] for f in before.families]
    whole = {frozenset(g) for g, f in zip(groups, before.families, strict=True) if len(g) == len(f)}
    bits = dict(sketches or {})
    work = Work(list(models), alpha, bits, 0, None, progress or (lambda what, done, total: None))
    readable = [i for i in range(len(models)) if work.readable(i)]
    place = {i: k for k, i in enumerate(readable)}
    codes = np.stack([work.bits(i) for i in readable]) if readable else np.zeros((0, 256), np.uint8)
    known = [own for g in groups if len(own := [place[i] for i in g if i in place]) > 1]
    joined = families(codes, lambda a, b: work.related(readable[a], readable[b]), known=known)
    found = [frozenset(readable[k] for k in f) for f in joined]
    kept = [f for f in found if f in whole]
    changed = [i for i in range(len(models)) if not any(i in f for f in kept)]
    parts = [_restricted(before, {models[i].name for i in f}) for f in kept]
    if changed:
        own = [models[i] for i in changed]
        parts.append(lineage(own, alpha=alpha, sketches=bits, detailed=detailed, total=len(models), progress=progress))
    return united(parts)


def _restricted(whole: Lineage, names: set[str]) -> Lineage:
    """One family of a lineage."""
    lost = {str(m["name"]): m for m in whole.missing_ancestors}
    kept = set(names)
    for _ in lost:
        kept |= {n for n, m in lost.items() if set(m["children"]) & kept}
    return replace(
        whole, models=tuple(m for m in whole.models if m.name in names),
        edges=tuple(e for e in whole.edges if e.child in kept), roots=tuple(r for r in whole.roots if r in kept),
        families=tuple(f for f in whole.families if set(f) <= names),
        missing_ancestors=tuple(m for n, m in lost.items() if n in kept),
        refused=tuple(r for r in whole.refused if set(r["models"]) <= kept),
        evidence=tuple(e for e in whole.evidence if set(e["family"]) & names),
        not_tested=tuple(t for t in whole.not_tested if t["model"] in names),
    )  # fmt: skip


def united(parts: Sequence[Lineage]) -> Lineage:
    """Several lineages that have no model in common, as one; missing ancestors are numbered anew.

    Args:
        parts: At least one.

    Returns:
        The lineage.
    """
    count, whole = 0, []
    for part in parts:
        new = {str(m["name"]): f"(missing {count + i + 1})" for i, m in enumerate(part.missing_ancestors)}
        count += len(new)
        whole.append(_renamed(part, new))
    return replace(
        whole[-1],
        models=tuple(sorted((m for p in whole for m in p.models), key=lambda m: m.name)),
        edges=tuple(sorted((e for p in whole for e in p.edges), key=lambda e: (e.child, e.parent))),
        roots=tuple(sorted(r for p in whole for r in p.roots)),
        families=tuple(sorted((f for p in whole for f in p.families), key=lambda f: (-len(f), f))),
        missing_ancestors=tuple(m for p in whole for m in p.missing_ancestors),
        refused=tuple(r for p in whole for r in p.refused), evidence=tuple(e for p in whole for e in p.evidence),
        not_tested=tuple(t for p in whole for t in p.not_tested),
    )  # fmt: skip


def _renamed(part: Lineage, new: Mapping[str, str]) -> Lineage:
    def one(name: Any) -> Any:
        return new.get(name, name)

    return replace(
        part,
        edges=tuple(replace(e, parent=one(e.parent), child=one(e.child)) for e in part.edges),
        missing_ancestors=tuple(
            {**m, "name": one(m["name"]), "children": [one(c) for c in m["children"]], "parent": one(m["parent"])}
            for m in part.missing_ancestors
        ),
        refused=tuple({**r, "models": [one(m) for m in r["models"]]} for r in part.refused),
    )
