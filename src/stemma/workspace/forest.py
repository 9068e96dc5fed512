"""The family tree of models that are at hand: families by sketches, trees by sampled entries, tests by pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stemma.ancestry.geometry import MOST, WIDE, Geometry, counted
from stemma.ancestry.parenthood import Parenthood
from stemma.ancestry.trees.cycles import leads, without_circles
from stemma.ancestry.trees.distances import ByNorm, Distances, RowAngles, squared_distances
from stemma.ancestry.trees.families import ALL_PAIRS, families
from stemma.ancestry.trees.forest import Family, Forest, Named
from stemma.ancestry.trees.known_parents import known_parents
from stemma.ancestry.trees.rooting import ByDistance, ByWeights, Chances, Direction
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.kinship.relation.grids import lies_on_grid
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.correspondence import candidates
from stemma.kinship.weights.entries import Entries, entries
from stemma.registry import comparisons
from stemma.registry.ingest import fingerprinters
from stemma.types import Comparison, Edge, Evidence, Lineage, NotTested, RelationKind, Verdict
from stemma.workspace.comparison_cache import compared
from stemma.workspace.number_formats import age, is_coded, ranks, roundings
from stemma.workspace.role_assignment import trained
from stemma.workspace.stacked_models import stacked
from stemma.workspace.workspace import ALPHA

Progress = Callable[[str, int, int | None], None]

DETAILED = 200
"""Up to so many models every edge is compared in full, which names its relation; of more the test alone is run."""

CANNOT_SEE = ("training data", "models that are not among these", "what was handed down without weights (distillation)")

FAR, APART = 0.5, 1.5
"""Squared distance from all relatives, in squared norms: from the first on, a model may be one of them in other
coordinates; from the second on, its distances say nothing else."""

HALF = 0.5
"""Share of the weights that two models must have in the same shapes for a distance."""

EXACT = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are exhibited; the one is the other in another form."""

NO_CHILD = frozenset({RelationKind.SIBLINGS, RelationKind.SAME_INIT})
"""Relations of which neither was made from the other."""

FAR_SKETCHES = "pairs whose sketches are no nearer than chance"

NO_COUNTERPART = "no other model here has hidden units that could be put beside its own"

CIRCULAR = "drawn with the rest, it would make a model its own ancestor"

OTHER_SHAPES = "related, but of other shapes, and neither is shown to be made from the other"


def lineage(
    models: Sequence[Model],
    *,
    alpha: float = ALPHA,
    sketches: Mapping[str, np.ndarray] | None = None,
    method: Forest | None = None,
    parenthood: Parenthood | None = None,
    detailed: int = DETAILED,
    total: int = 0,
    progress: Progress | None = None,
) -> Lineage:
    """Who comes from whom among some models.

    Cost: one sketch per model, about one test of a pair per model, and one comparison per edge; a thousand small models
    take about two minutes.

    Args:
        models: The models, each under a name of its own.
        alpha: Level of the decision that two models are related, over all pairs.
        sketches: Bits of the weight sketches of some of them, by digest; the rest is computed.
        method: Draws the tree; with its defaults unless given.
        parenthood: Says how likely a model is another one's parent; what ships with the package unless given.
        detailed: Compare every edge in full up to so many models.
        total: Models that were searched where these are a part of them: the level is corrected for all pairs.
        progress: Told what happens, how many models are done, and of how many.

    Returns:
        The lineage.

    Raises:
        MisuseError: If there are no models, or two of one name.
    """
    from stemma.training import shipped_parenthood

    if not models:
        raise MisuseError("a lineage is of one or more models; none were given")
    names = [m.name for m in models]
    if twice := sorted({n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else ()):
        raise MisuseError(f"every model needs a name of its own; {twice[0]!r} is the name of several")
    work = Work(list(models), alpha, dict(sketches or {}), detailed, parenthood or shipped_parenthood(),
                 progress or (lambda what, done, total: None), total)  # fmt: skip
    return work.drawn(method or Forest())


@dataclass
class Work:
    """One lineage being worked out."""

    models: list[Model]
    alpha: float
    sketches: dict[str, np.ndarray]
    detailed: int
    parenthood: Parenthood | None
    progress: Progress
    total: int = 0
    forms: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    elsewhere: list[int] = field(default_factory=list)
    stacked: dict[int, list[Edge]] = field(default_factory=dict)
    shapes: list[list[tuple[list[int], Entries]]] = field(default_factory=list)
    unread: list[NotTested] = field(default_factory=list)
    compared: dict[tuple[int, int], Comparison] = field(default_factory=dict)
    placed: dict[tuple[int, int], Evidence] = field(default_factory=dict)

    def drawn(self, method: Forest) -> Lineage:
        """Copies apart, then families, then trees.

        Returns:
            The lineage, with the copies back in their places.
        """
        readable = [i for i in range(len(self.models)) if self.readable(i)]
        self.copies(readable)
        own = [i for i in readable if i not in self.forms]
        bits = np.stack([self.bits(i) for i in own]) if own else np.zeros((0, 256), np.uint8)
        found = [[own[k] for k in family] for family in families(bits, lambda a, b: self.related(own[a], own[b]))]
        drawn, alone = [], []
        for at, members in enumerate(found):
            self.progress("drawing families", at, len(found))
            self.stacked |= stacked(self.models, members, self.bits)
            parts = self.parts(members)
            self.shapes.append(parts)
            for part, values in parts:
                if len(part) == 1:
                    alone.append(self.models[part[0]].ref)
                else:
                    drawn.append(self.family(part, values))
        return self.with_forms(self.joined(method(drawn, alone)))

    def parts(self, members: list[int]) -> list[tuple[list[int], Entries]]:
        """A family by the shapes of its models: distances need the same entries. The largest part comes first."""
        out, left = [], list(members)
        wide = (MOST, WIDE) if len(self.models) <= self.detailed else (0, 0)
        composed = {self.models[i].architecture for i in self.stacked}
        for name in sorted({self.models[i].architecture for i in members} & composed):  # of no tree with their parents
            own = [i for i in members if self.models[i].architecture == name]
            out.append((own, entries([self.models[i] for i in own], wide=wide)))
            left = [i for i in left if i not in own]
        while left:
            values = entries([self.models[i] for i in left], wide=wide)
            shared = squared_distances(values).shared >= HALF if len(left) > 1 else np.ones((1, 1), bool)
            most = int(np.argmax(shared.sum(axis=1)))
            kept = [k for k in range(len(left)) if shared[most, k] or k == most]
            out.append(([left[k] for k in kept], values.of(kept)))
            left = [m for k, m in enumerate(left) if k not in kept]
        return sorted(out, key=lambda part: -len(part[0]))

    def joined(self, found: Lineage) -> Lineage:
        """Roots of parts of other shapes below the model that they were cut from, where the comparison shows it."""
        edges, roots, refused = list(found.edges), set(found.roots), list(found.refused)
        families = {frozenset(f) for f in found.families}
        at = {m.name: i for i, m in enumerate(self.models)}
        for parts in (p for p in self.shapes if len(p) > 1):
            own = [{self.models[i].name for i in part} for part, _ in parts]
            names = frozenset[str]().union(*own)
            families = {f for f in families if not f & names} | {names}
            linked, nearest = set[int](), dict[int, tuple[str, str]]()
            for k, (part, _) in enumerate(parts):
                if any(i in self.stacked for i in part):
                    linked.add(k)
                others = [i for other, _ in parts if other is not part for i in other]
                for root in sorted(r for r in roots & own[k] if at[r] not in self.stacked):
                    edge, near = self.source(at[root], others)
                    if edge is not None and not leads(edges, root, edge.parent):
                        edges.append(edge)
                        roots.discard(root)
                        linked |= {k, next(j for j, held in enumerate(own) if edge.parent in held)}
                    else:
                        nearest[k] = root, near
            lone = [k for k in nearest if k and k not in linked]
            refused += [{"models": sorted(nearest[k]), "reason": OTHER_SHAPES} for k in lone]
        grown = sorted((tuple(sorted(f)) for f in families), key=lambda f: (-len(f), f))
        put = [(self.models[i].name, made) for i, made in self.stacked.items()]
        edges = [e for e in edges if e.child not in dict(put)] + [e for _, made in put for e in made]
        return replace(found, edges=tuple(edges), roots=tuple(sorted(roots - dict(put).keys())), families=tuple(grown),
                       refused=tuple(refused))  # fmt: skip

    def source(self, child: int, others: list[int]) -> tuple[Edge | None, str]:
        """The model that one of other shapes was made from, of the twelve nearest, and the nearest of all."""
        own = self.bits(child)
        near = sorted(others, key=lambda i: int(np.unpackbits(self.bits(i) ^ own).sum()))[:12]
        found = sorted(((self.whole(i, child), i) for i in near), key=lambda c: _nearest_account(c[0]))
        for c, i in found:
            if c.verdict == "related" and self.first(i, child) == i:
                test, named = c.weights, c.relation
                edge = Edge(parent=self.root_form(i), child=self.models[child].name, relation=named.kind.value,
                            p_value=test.p_value, log10_p=test.log10_p, reason=named.reason)  # fmt: skip
                return edge, edge.parent
        return None, self.models[found[0][1]].name

    def copies(self, readable: Sequence[int]) -> None:
        """Of models with the same tensors, whatever their names, the oldest file stands for all, or the first name."""
        first: dict[str, int] = {}
        for i in sorted(readable, key=lambda i: (age(self.models[i]), self.models[i].name)):
            model = self.models[i]
            o = first.setdefault(model.names_free_digest, i)
            if o != i and model.digest == self.models[o].digest:
                self.forms[i] = o, RelationKind.COPY.value, "the digests agree"
            elif o != i:
                self.forms[i] = o, RelationKind.REFORMATTED.value, "the same tensors under other names"

    def readable(self, i: int) -> bool:
        """Whether there are weights to look at; what is wrong is kept."""
        try:
            self.models[i].names_free_digest  # noqa: B018
            self.bits(i)
        except StemmaError as e:
            self.unread.append({"what": "unreadable-file", "model": self.models[i].name, "why": str(e)})
            return False
        return True

    def bits(self, i: int) -> np.ndarray:
        """The bits of a model's weight sketch."""
        model = self.models[i]
        if model.digest not in self.sketches:
            self.progress("sketching", i, len(self.models))
            self.sketches[model.digest] = np.asarray(fingerprinters()[0](model).values["bits"])
        return self.sketches[model.digest]

    def level(self) -> float:
        """The level of one pair: Bonferroni over all pairs, whether they were tested or not."""
        n = max(self.total, len(self.models))
        return self.alpha / max(1, n * (n - 1) // 2)

    def related(self, i: int, j: int) -> bool:
        """Whether two models are related: units in place, or an exact map of units."""
        if self.in_place(i, j).verdict is Verdict.SUPPORTED:
            return True
        if len(self.models) > self.detailed and not self.alike(i, j):
            return False
        return self.whole(i, j).verdict == "related"

    def alike(self, i: int, j: int) -> bool:
        """Whether the codes that no permutation changes are near."""
        return bool(np.unpackbits(self.bits(i)[128:] ^ self.bits(j)[128:]).sum() < 400)

    def in_place(self, i: int, j: int) -> Evidence:
        """What units in their places contain, under the first correspondence of tensors."""
        key = (min(i, j), max(i, j))
        if key not in self.placed:
            a, b = (self.models[k] for k in key)
            pairings = next((p for _, p in candidates(a, b, contents=False)), ())
            self.placed[key] = contents_in_place(a, b, pairings, self.level())
        return self.placed[key]

    def whole(self, i: int, j: int) -> Comparison:
        """All evidence of the weights of a pair."""
        key = (min(i, j), max(i, j))
        if key not in self.compared:
            a, b = (self.models[k] for k in key)
            try:
                self.compared[key] = compared(a, b, self.level())
            except StemmaError as e:
                self.compared[key] = comparisons.failed_comparison(a.ref, b.ref, str(e))
        return self.compared[key]

    def family(self, members: list[int], values: Entries) -> Family:
        """What the tree is drawn from."""
        distances = squared_distances(values)
        self.rounded(members, values)
        kept = [k for k, m in enumerate(members) if m not in self.forms and not self.set_aside(members, distances, k)]
        values, distances, members = values.of(kept), distances.of(kept), [members[k] for k in kept]
        direction, chances = self.weighed(values, distances, [counted(self.models[m]) for m in members])
        return Family(
            values.models, distances, direction, chances, lambda a, b: self.named(members[a], members[b]),
            RowAngles(values), frozenset(k for k, m in enumerate(members) if self.coded(m)),
            known_parents(values, distances), ranks([self.models[m] for m in members], values),
            self.parenthood.confidence if self.parenthood is not None else float,
            self.parenthood.named_from(1) if self.parenthood is not None else 0.5,
        )  # fmt: skip

    def rounded(self, members: list[int], values: Entries) -> None:
        """Of one network in several number formats the widest stands for all, whatever files are called."""
        if len(self.models) > self.detailed:
            return  # what is the same up to a small rounding is found by distances
        for k, o in roundings(values):
            found = self.whole(members[o], members[k]).relation
            if members[k] not in self.forms and members[o] not in self.forms and found.kind in EXACT:
                self.forms[members[k]] = members[o], found.kind.value, found.reason

    def coded(self, i: int) -> bool:
        """Whether a model is stored in integer codes, or as the numbers they stand for: nothing was made from it."""
        return is_coded(self.models[i]) or (len(self.models) <= self.detailed and lies_on_grid(self.models[i]))

    def set_aside(self, members: list[int], distances: Distances, k: int) -> bool:
        """Whether a model is another one in other coordinates, so that its distances say nothing; which one is kept."""
        ratio = np.delete(distances.squared[k] / np.maximum(distances.norms[k], 1e-300), k)
        stands = any(o == members[k] for o, *_ in self.forms.values())  # for another one
        if not ratio.size or ratio.min() < FAR or stands:
            return False
        own = self.bits(members[k])[128:]
        near = sorted((int(np.unpackbits(self.bits(m)[128:] ^ own).sum()), m) for m in members if m != members[k])
        for _, other in near[:5]:
            found, first = self.whole(other, members[k]), self.first(other, members[k])
            if found.relation.kind in EXACT and other not in self.forms and first != members[k]:
                self.forms[members[k]] = other, found.relation.kind.value, found.relation.reason
                return True
        in_order = any(self.in_place(m, members[k]).verdict is Verdict.SUPPORTED for _, m in near[:5])
        if in_order:  # in the same coordinates, only of another scale: norms were folded
            return False
        if ratio.min() > APART:
            self.elsewhere.append(members[k])
        return bool(ratio.min() > APART)

    def weighed(self, values: Entries, distances: Distances, counters: list[int]) -> tuple[Direction, Chances]:
        """Which of two came first, and who is whose parent, as weights make it likely."""
        norms, asked = ByNorm(distances), self.parenthood
        if asked is None:
            return norms, ByDistance(distances)
        geometry = Geometry(values, counters)
        return ByWeights(asked.direction, geometry, norms), lambda rows: asked.chances(geometry, rows)

    def first(self, i: int, j: int) -> int | None:
        """Which of two the other was made from, where the comparison shows it for certain."""
        told = self.whole(i, j).relation.parameters.get("made_from")
        return {"a": min(i, j), "b": max(i, j)}.get(str(told))

    def named(self, parent: int, child: int) -> Named:
        """The test of one edge."""
        if len(self.models) > self.detailed:
            e = self.in_place(parent, child)
            return Named(RelationKind.RELATED.value, e.verdict is Verdict.SUPPORTED, e.p_value, e.log10_p, e.reason)
        c, first = self.whole(parent, child), self.first(parent, child)
        return Named(c.relation.kind.value, c.verdict == "related", c.weights.p_value, c.weights.log10_p,
                     c.relation.reason or c.weights.reason, first == child, first == parent,
                     c.relation.kind in NO_CHILD, trained(c.relation).kind.value)  # fmt: skip

    def with_forms(self, found: Lineage) -> Lineage:
        """Models in another form under the model that they are, and those that could not be placed."""
        edges, names = list(found.edges), {m.name: list[str]() for m in self.models}
        for i, (o, relation, why) in sorted(self.forms.items()):
            original, form = self.models[o].name, self.models[i].name
            edges.append(Edge(parent=original, child=form, relation=relation, length=0.0, reason=why))
            names[self.root_form(o)].append(self.models[i].name)
        edges, circular = without_circles(edges)
        freed = {e.child for e in circular} - {e.child for e in edges}
        placed = {m.name for m in found.models}
        refused = [*found.refused, *({"models": sorted([e.parent, e.child]), "reason": CIRCULAR} for e in circular)]
        for i in self.elsewhere:
            near = self.models[i].name
            refused.append({"models": [near], "reason": "related, but its units lie in another order: not placed"})
        grown = [tuple(sorted({*f, *(c for m in f for c in names.get(m, ()))})) for f in found.families]
        refs = [*found.models, *(m.ref for i, m in enumerate(self.models) if i in self.forms or i in self.elsewhere)]
        lost = sorted(self.models[i].name for i in self.elsewhere if self.models[i].name not in placed)
        return replace(
            found, models=tuple(sorted(refs, key=lambda m: m.name)),
            edges=tuple(sorted(edges, key=lambda e: (e.child, e.parent))),
            roots=tuple(sorted({*found.roots, *lost, *freed})),
            families=tuple(sorted([*grown, *((n,) for n in lost)], key=lambda f: (-len(f), f))),
            refused=tuple(refused), cannot_see=CANNOT_SEE + ((FAR_SKETCHES,) if len(self.models) > ALL_PAIRS else ()),
            not_tested=(*self.unread, *self.lone({n for f in grown if len(f) == 1 for n in f})),
        )  # fmt: skip

    def lone(self, names: set[str]) -> list[NotTested]:
        """Models without relatives that nothing here could be compared with: that is no finding."""
        at = {m.name: i for i, m in enumerate(self.models)}
        out: list[NotTested] = []
        for name in sorted(names):
            tested = [e.p_value for pair, e in self.placed.items() if at[name] in pair]
            tested += [c.weights.p_value for pair, c in self.compared.items() if at[name] in pair]
            if len(self.models) == 1:
                out.append(
                    {"what": "nothing-searched", "model": name, "why": "there is no other model to compare with"}
                )
            elif tested and all(p is None for p in tested):
                out.append({"what": "not-comparable", "model": name, "why": NO_COUNTERPART})
        return out

    def root_form(self, i: int) -> str:
        """The name of the model that a model is, through other forms of it."""
        while i in self.forms:
            i = self.forms[i][0]
        return self.models[i].name


def _nearest_account(found: Comparison) -> tuple[float, int, float]:
    """The larger effect first, then the shorter account, then the smaller change."""
    change = found.relation.parameters.get("relative_change")
    return -round(found.weights.effect, 3), len(found.relation.steps), 1e9 if change is None else float(change)
