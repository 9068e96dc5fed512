"""Adds models to a family tree: only the families that changed are drawn again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stemma.ancestry.trees.families import find_families
from stemma.checkpoints.model import Model
from stemma.types import UNREAD, Lineage
from stemma.workspace.forest import lineage
from stemma.workspace.lineage_builder import DETAILED, EXACT, LineageBuilder, Progress
from stemma.workspace.unread_pairs import unread_pairs
from stemma.workspace.workspace import ALPHA


@dataclass(frozen=True)
class UpdatedLineage:
    """A lineage of which a part was drawn before.

    Attributes:
        lineage: The whole.
        kept: Names of the models in families that were kept as they were.
    """

    lineage: Lineage
    kept: frozenset[str] = frozenset()


def update_lineage(
    before: Lineage,
    models: Sequence[Model],
    *,
    alpha: float = ALPHA,
    sketches: Mapping[str, np.ndarray] | None = None,
    detailed: int = DETAILED,
    progress: Progress | None = None,
) -> UpdatedLineage:
    """The lineage of models most of which were drawn before.

    Families that no model joined or left are kept as they were, unless an edge was significant only among fewer
    models; the others are drawn again. Two models that were both there before are not tested again: a test of all
    pairs would look at no more of them, at a stricter level.
    Cost: a sketch of every model that none is given for, tests of the new models, and what `lineage` costs for the
    families that changed.

    Args:
        before: The lineage of other models, most of them among these.
        models: The models.
        alpha: As for `lineage`.
        sketches: As for `lineage`.
        detailed: As for `lineage`.
        progress: As for `lineage`.

    Returns:
        The lineage, and what was kept.
    """
    position = {(m.name, m.digest): i for i, m in enumerate(models)}
    digest = {m.name: m.digest for m in before.models}
    groups = [[position[n, digest[n]] for n in f if (n, digest[n]) in position] for f in before.families]
    complete = {frozenset(g) for g, f in zip(groups, before.families, strict=True) if len(g) == len(f)}
    bits = dict(sketches or {})
    builder = LineageBuilder(list(models), alpha, bits, detailed, None, progress or (lambda what, done, total: None))
    readable = [i for i in range(len(models)) if builder.is_readable(i)]
    row = {i: k for k, i in enumerate(readable)}
    codes = np.stack([builder.sketch(i) for i in readable]) if readable else np.zeros((0, 256), np.uint8)
    known = [rows for g in groups if len(rows := [row[i] for i in g if i in row]) > 1]
    old = {i for g in groups for i in g}
    found = find_families(
        codes, lambda a, b: builder.are_related(readable[a], readable[b]), known_groups=known,
        new=[k for k, i in enumerate(readable) if i not in old],
    )  # fmt: skip
    weak = _weak_children(before, builder.pair_level())
    kept = {
        models[i].name
        for f in (frozenset(readable[k] for k in rows) for rows in found)
        if f in complete and not any(models[i].name in weak for i in f)
        for i in f
    }
    changed = [m for m in models if m.name not in kept]
    parts = [_kept_part(before, kept)] if kept else []
    if changed:
        few = detailed if len(models) <= detailed else 0
        parts.append(lineage(changed, alpha=alpha, sketches=bits, detailed=few, total=len(models), progress=progress))
    return UpdatedLineage(_with_untested(join_lineages(parts), builder), frozenset(kept))


def _with_untested(joined: Lineage, builder: LineageBuilder) -> Lineage:
    """The lineage with what is not tested among all models, not only among those that were drawn together."""
    if len(builder.models) == 1:
        return joined
    alone = {f[0] for f in joined.families if len(f) == 1}
    compared = {
        builder.models[i].name for pair, e in builder.in_place_tests.items() if e.p_value is not None for i in pair
    }
    entries = [t for t in joined.not_tested if t["what"] not in ("nothing-searched", "not-comparable", UNREAD)]
    before = {t["model"]: t for t in joined.not_tested if t["what"] == "not-comparable" and t["model"] in alone}
    found = before | {t["model"]: t for t in builder.untested(alone)}
    untested = [found[n] for n in sorted(found.keys() - compared)]
    return replace(joined, not_tested=(*entries, *untested, *unread_pairs(builder.models, joined.families)))


def _weak_children(before: Lineage, level: float) -> set[str]:
    """Models below an edge that is not significant at a level of a pair."""
    missing = {m["name"] for m in before.missing_ancestors}
    exact = {kind.value for kind in EXACT}
    return {
        e.child
        for e in before.edges
        if e.parent not in missing and e.relation not in exact and (e.p_value is None or e.p_value > level)
    }


def _kept_part(whole: Lineage, names: set[str]) -> Lineage:
    missing = {str(m["name"]): m for m in whole.missing_ancestors}
    kept, waiting = set(names), True
    while waiting:
        waiting = {n for n, m in missing.items() if n not in kept and set(m["children"]) & kept}
        kept |= waiting
    return replace(
        whole, models=tuple(m for m in whole.models if m.name in names),
        edges=tuple(e for e in whole.edges if e.child in kept), roots=tuple(r for r in whole.roots if r in kept),
        families=tuple(f for f in whole.families if names.issuperset(f)),
        missing_ancestors=tuple(m for n, m in missing.items() if n in kept),
        refused=tuple(r for r in whole.refused if kept.issuperset(r["models"])),
        evidence=tuple(e for e in whole.evidence if not names.isdisjoint(e["family"])),
        not_tested=tuple(t for t in whole.not_tested if t["model"] in names),
    )  # fmt: skip


def join_lineages(parts: Sequence[Lineage]) -> Lineage:
    """Lineages (at least one) without a common model, as one; missing ancestors are numbered again."""
    count, renumbered = 0, []
    for part in parts:
        names = {str(m["name"]): f"(missing {count + i + 1})" for i, m in enumerate(part.missing_ancestors)}
        count += len(names)
        renumbered.append(_renamed(part, names))
    return replace(
        renumbered[-1],
        models=tuple(sorted((m for p in renumbered for m in p.models), key=lambda m: m.name)),
        edges=tuple(sorted((e for p in renumbered for e in p.edges), key=lambda e: (e.child, e.parent))),
        roots=tuple(sorted(r for p in renumbered for r in p.roots)),
        families=tuple(sorted((f for p in renumbered for f in p.families), key=lambda f: (-len(f), f))),
        missing_ancestors=tuple(m for p in renumbered for m in p.missing_ancestors),
        refused=tuple(r for p in renumbered for r in p.refused),
        evidence=tuple(e for p in renumbered for e in p.evidence),
        not_tested=tuple(t for p in renumbered for t in p.not_tested),
    )


def _renamed(part: Lineage, names: Mapping[str, str]) -> Lineage:
    def new(name: Any) -> Any:
        return names.get(name, name)

    return replace(
        part,
        edges=tuple(replace(e, parent=new(e.parent), child=new(e.child)) for e in part.edges),
        missing_ancestors=tuple(
            {**m, "name": new(m["name"]), "children": [new(c) for c in m["children"]], "parent": new(m["parent"])}
            for m in part.missing_ancestors
        ),
        refused=tuple({**r, "models": [new(m) for m in r["models"]]} for r in part.refused),
    )
