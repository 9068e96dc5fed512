"""Policies on descent: whether models come from one that is refused, directly or through other models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.ancestry.trees.kin import Kin, KinOf, kin_of
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.registry import model_records
from stemma.types import WEIGHTS_GONE, Digest, Lineage, ModelRef, NotTested, Trace
from stemma.workspace.candidates import candidates_from_files, is_same_file
from stemma.workspace.forest import lineage
from stemma.workspace.named_models import find_named, with_named
from stemma.workspace.search_scope import search_registry, unreadable_files
from stemma.workspace.workspace import LIMIT, Workspace

if TYPE_CHECKING:
    from stemma.workspace.lineage import ModelsToDraw

MAX_DRAWN = 2 * LIMIT
"""Models that the lineage around a traced model holds at most."""


@dataclass(frozen=True)
class DescentFindings:
    """What a lineage says about descent from refused models.

    Attributes:
        violations: One sentence for each model that descends from one.
        untested: One sentence for each model for which that is not decided.
    """

    violations: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()


def check_lineage(found: Lineage, refused: Sequence[str]) -> DescentFindings:
    """Whether any model of a lineage descends from one that is refused.

    Args:
        found: The lineage.
        refused: Names in the lineage.

    Returns:
        What is refused, and what is not decided.
    """
    kin = [kin_of(found, name, "descendants") for name in refused]
    violations = [_violation(k, of.of) for of in kin for k in of.models if not k.missing and k.name not in refused]
    untested = [_undecided(name, why, of.of) for of in kin for name, why in of.undecided if name not in refused]
    return DescentFindings(tuple(dict.fromkeys(violations)), tuple(dict.fromkeys(untested)))


def _violation(kin: Kin, of: str) -> str:
    if kin.same:
        return f"{kin.name} is {of} in another form"
    low, high = kin.reached.at_least, kin.reached.at_most
    chance = f"probability {high:.2f}" if high - low < 0.005 else f"probability {low:.2f} to {high:.2f}"
    through = kin.paths[0].names_from(of)[1:-1] if kin.paths else ()
    by_way = f" through {', '.join(through)}" if through else ""
    return f"{kin.name} descends from {of}{by_way} ({chance})"


def _undecided(name: str, why: str, of: str) -> str:
    return f"whether {name} descends from {of} is not decided: {why}" if name else why


def check_trace(
    refused: Sequence[str], found: Trace, subject: Model, workspace: Workspace, against: Sequence[str] | None
) -> DescentFindings:
    """Whether a traced model descends from one that is refused, directly or through other models.

    A lineage is drawn of the model, of those that were searched (of a large registry: its relatives and the nearest of
    the refused ones), and of the refused models.

    Args:
        refused: Names of models, as typed: of those searched, paths, or enrolled.
        found: The trace.
        subject: The traced model.
        workspace: Holds the registry.
        against: Files and folders that were searched instead of the registry.

    Returns:
        What is refused, and what is not decided.

    Raises:
        UnknownNameError: If a name leads to no model.
    """
    if _excluded(refused, found):
        return DescentFindings()
    around = _models_around(found, subject, workspace, against)
    around, names = with_named(around, refused, workspace)
    around, own = _with_subject(around, subject, set(names.values()), workspace)
    if own in names.values():
        return DescentFindings((f"{subject.name} is {next(t for t, n in names.items() if n == own)} itself",))
    if against is None and workspace.registry.count() > LIMIT:
        around = _with_nearest(around, [m for m in around.models if m.name in names.values()], workspace)
    drawn = lineage(around.models, alpha=found.alpha, sketches=around.sketches)
    violations, untested = list[str](), list[str]()
    for name in dict.fromkeys(names.values()):
        of = kin_of(drawn, name, "descendants")
        shown = next((k for k in of.models if k.name == own), None)
        parent = next((p for p in found.parents if p["name"] == name and p["direction"] == "parent"), None)
        if shown is not None:
            violations.append(_violation(shown, name))
        elif parent is not None:
            violations.append(f"{own} descends from {name}")
        else:
            untested += _open(of, own, drawn, found, _Pair(name, around, subject, workspace))
    excluded = {r["name"] for r in found.candidates if r["verdict"] == "independent"}
    left = [t for t in around.not_tested if not (t["what"] == WEIGHTS_GONE and t["model"] in excluded)]
    untested += [f"{t['model']}: {t['why']}" if t["model"] else t["why"] for t in left]
    return DescentFindings(tuple(violations), tuple(dict.fromkeys(untested)))


def _excluded(refused: Sequence[str], found: Trace) -> bool:
    """Whether the trace alone excludes descent: every model searched is independent, the refused ones among them."""
    if found.copies or found.parents or found.relatives or found.not_tested:
        return False
    rows = {r["name"]: r for r in found.candidates}
    refs = [ModelRef(r["name"], r["digest"]) for r in found.candidates]
    names = [find_named(text, refs) for text in refused]
    return all(name is not None and rows[name]["verdict"] == "independent" for name in names)


@dataclass(frozen=True)
class _Pair:
    """A refused model, and the traced one, for a comparison of the two alone."""

    name: str
    around: "ModelsToDraw"
    subject: Model
    workspace: Workspace

    def verdict(self, found: Trace) -> str:
        model = next(m for m in self.around.models if m.name == self.name)
        row = next((r for r in found.candidates if r["digest"] == model.digest), None)
        if row is not None:
            return str(row["verdict"])
        try:
            return self.workspace.compare(model, self.subject, found.alpha).verdict
        except StemmaError:
            return "inconclusive"


def _open(of: KinOf, own: str, drawn: Lineage, found: Trace, pair: _Pair) -> Iterator[str]:
    """Why it is not decided whether the traced model descends from a refused one; nothing where it does not."""
    why = next((why for name, why in of.undecided if name == own), "")
    family = {n for f in drawn.families if own in f for n in f}
    if why:
        yield _undecided(own, why, of.of)
    elif of.of not in family and (verdict := pair.verdict(found)) != "independent":
        yield _undecided(own, f"the comparison of the two is {verdict}, and no edge connects them", of.of)
    else:
        below = {of.of, *(k.name for k in of.models), *(name for name, _ in of.undecided)}
        for row in (*found.copies, *found.parents, *found.relatives):
            if row["name"] in below and row["name"] not in family:
                yield _undecided(own, f"it is related to {row['name']}, which comes from there or may do so", of.of)


def _models_around(found: Trace, subject: Model, workspace: Workspace, against: Sequence[str] | None) -> "ModelsToDraw":
    """The models that were searched: all of few, of many those that are related."""
    related = {(r["name"], r["digest"]) for r in (*found.copies, *found.parents, *found.relatives)}
    if against is not None:
        candidates, unreadable = candidates_from_files([Path(p) for p in against], subject)
        chosen = candidates if len(candidates) <= LIMIT else [c for c in candidates if _key(c.ref) in related]
        models = [model_records.with_name(c.load(), c.ref.name) for c in chosen]
        return _to_draw(models, unreadable_files(unreadable))
    records = workspace.list() if workspace.registry.count() <= LIMIT else _enrolled(related, workspace)
    return _to_draw([workspace.reopen(r) for r in records if not is_same_file(r, subject)])


def _key(ref: Any) -> tuple[str, str]:
    return ref.name, ref.digest


def _enrolled(keys: set[tuple[str, str]], workspace: Workspace) -> list[Any]:
    found = [r for _, digest in sorted(keys) for r in workspace.registry.by_digest(Digest(digest))]
    return list({r.name: r for r in found if _key(r) in keys}.values())


def _to_draw(models: Sequence[Model], not_tested: tuple[NotTested, ...] = ()) -> "ModelsToDraw":
    from stemma.workspace.lineage import ModelsToDraw, weights_gone

    gone = [m for m in models if model_records.has_no_weights(m)]
    left = [m for m in models if not model_records.has_no_weights(m)]
    rest = tuple({"what": "not-drawn", "model": m.name, "why": TOO_MANY} for m in left[MAX_DRAWN:])
    return ModelsToDraw(left[:MAX_DRAWN], (*not_tested, *map(weights_gone, gone), *rest), {}, {})


TOO_MANY = f"more than {MAX_DRAWN} related models were found, and descent through this one was not examined"


def _with_subject(
    around: "ModelsToDraw", subject: Model, refused: set[str], workspace: Workspace
) -> tuple["ModelsToDraw", str]:
    """The models with the traced one, and its name among them, which no other has."""
    records = [r.name for r in workspace.own_records(subject)]
    if itself := next((name for name in records if name in refused), None):
        return around, itself
    taken, name = {m.name for m in around.models}, subject.name
    same = next((m for m in around.models if m.source == subject.source and m.digest == subject.digest), None)
    if same is not None:
        return around, same.name
    while name in taken:
        name = f"{name} (in question)"
    return replace(around, models=[*around.models, model_records.with_name(subject, name)]), name


def _with_nearest(around: "ModelsToDraw", refused: Sequence[Model], workspace: Workspace) -> "ModelsToDraw":
    """The models with those of a large registry that are nearest to the refused ones: descent may run through them."""
    from stemma.workspace.lineage import weights_gone

    taken, more, left = {m.name for m in around.models}, list[Model](), list[NotTested]()
    for model in refused:
        for c in search_registry(workspace.registry, model, LIMIT, workspace.reopen).candidates:
            if c.ref.name in taken:
                continue
            taken.add(c.ref.name)
            if len(around.models) + len(more) >= MAX_DRAWN:
                left.append({"what": "not-drawn", "model": c.ref.name, "why": TOO_MANY})
            elif model_records.has_no_weights(near := c.load()):
                left.append(weights_gone(near))
            else:
                more.append(near)
    return replace(around, models=[*around.models, *more], not_tested=(*around.not_tested, *left))
