"""Builds a family tree: families by sketches, trees by sampled entries, edges tested pair by pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stemma.ancestry.geometry import LARGEST_TENSORS, WIDE_SAMPLE, Geometry, trained_batches
from stemma.ancestry.parent_model import ParentModel
from stemma.ancestry.trees.cycles import is_ancestor, remove_cycles
from stemma.ancestry.trees.distances import Distances, OddsFromNorms, RowAngles, squared_distances
from stemma.ancestry.trees.families import ALL_PAIRS, find_families
from stemma.ancestry.trees.forest import Family, Forest, PairResult
from stemma.ancestry.trees.known_parents import find_known_parents
from stemma.ancestry.trees.rooting import AncestryOdds, OddsFromWeights, ParentProbabilities, ProbabilitiesFromDistances
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.kinship.relation.grids import lies_on_grid
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.correspondence import candidates
from stemma.kinship.weights.entries import Entries, entries
from stemma.registry import comparisons
from stemma.registry.ingest import fingerprinters
from stemma.types import Comparison, Edge, Evidence, Lineage, NotTested, RelationKind, Verdict
from stemma.workspace.comparison_cache import compare_weights
from stemma.workspace.number_formats import is_coded, modified_time, originality_ranks, rounded_copies
from stemma.workspace.role_assignment import with_finetuned
from stemma.workspace.stacked_models import find_stacked
from stemma.workspace.unread_pairs import unread_pairs

Progress = Callable[[str, int, int | None], None]

DETAILED = 200
"""Up to this many models every edge is compared in full, which names its relation; beyond, only the test is run."""

CANNOT_SEE = ("training data", "models that are not among these", "models derived without weights (distillation)")

OTHER_COORDINATES, UNPLACEABLE = 0.5, 1.5
"""Squared distance from all relatives, in squared norms: from the first on, a model may be one of them in other
coordinates; from the second on, its distances carry no information."""

MIN_SHARED_WEIGHTS = 0.5
"""Share of the weights that two models must have in the same shapes for a distance."""

EXACT = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are verified exactly; one model is the other in another form."""

WITHOUT_DESCENT = frozenset({RelationKind.SIBLINGS, RelationKind.SAME_INIT})
"""Relations in which neither model was made from the other."""

NOT_COMPARED = "pairs whose weight sketches are no nearer than chance"

NO_COUNTERPART = "no other model here has hidden units that can be matched with its own"

CIRCULAR = "this edge would make a model its own ancestor"

OTHER_SHAPES = "related, but of different shapes, and neither is shown to be made from the other"

NOT_PLACED = "related, but its hidden units are in another order, so that it has no place in the tree"


@dataclass
class LineageBuilder:
    """State of one lineage under construction; models are identified by their position in `models`."""

    models: list[Model]
    alpha: float
    sketches: dict[str, np.ndarray]
    detailed: int
    parent_model: ParentModel | None
    progress: Progress
    total: int = 0
    originals: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    unplaced: list[int] = field(default_factory=list)
    stacked_edges: dict[int, list[Edge]] = field(default_factory=dict)
    families: list[list[tuple[list[int], Entries]]] = field(default_factory=list)
    not_tested: list[NotTested] = field(default_factory=list)
    full_comparisons: dict[tuple[int, int], Comparison] = field(default_factory=dict)
    in_place_tests: dict[tuple[int, int], Evidence] = field(default_factory=dict)

    def build(self, method: Forest) -> Lineage:
        """Set copies aside, find families, draw a tree for each, and put the copies back."""
        readable = [i for i in range(len(self.models)) if self.is_readable(i)]
        self.set_aside_copies(readable)
        originals = [i for i in readable if i not in self.originals]
        bits = np.stack([self.sketch(i) for i in originals]) if originals else np.zeros((0, 256), np.uint8)
        found = find_families(bits, lambda a, b: self.are_related(originals[a], originals[b]))
        to_draw, alone = [], []
        for number, rows in enumerate(found):
            self.progress("drawing families", number, len(found))
            members = [originals[k] for k in rows]
            self.stacked_edges |= find_stacked(self.models, members, self.sketch)
            parts = self.split_by_shape(members)
            self.families.append(parts)
            for part, values in parts:
                if len(part) == 1:
                    alone.append(self.models[part[0]].ref)
                else:
                    to_draw.append(self.describe_family(part, values))
        return self.with_other_forms(self.with_joined_parts(method(to_draw, alone)))

    def split_by_shape(self, members: list[int]) -> list[tuple[list[int], Entries]]:
        """A family by the shapes of its models, for distances need the same entries; the largest part comes first."""
        out, left = [], list(members)
        wide = (LARGEST_TENSORS, WIDE_SAMPLE) if len(self.models) <= self.detailed else (0, 0)
        stacked = {self.models[i].architecture for i in self.stacked_edges}
        for name in sorted({self.models[i].architecture for i in members} & stacked):  # in no tree with their parents
            part = [i for i in members if self.models[i].architecture == name]
            out.append((part, entries([self.models[i] for i in part], wide=wide)))
            left = [i for i in left if i not in part]
        while left:
            values = entries([self.models[i] for i in left], wide=wide)
            shared = squared_distances(values).shared >= MIN_SHARED_WEIGHTS if len(left) > 1 else np.ones((1, 1), bool)
            centre = int(np.argmax(shared.sum(axis=1)))
            kept = [k for k in range(len(left)) if shared[centre, k] or k == centre]
            out.append(([left[k] for k in kept], values.of(kept)))
            left = [m for k, m in enumerate(left) if k not in kept]
        return sorted(out, key=lambda part: -len(part[0]))

    def with_joined_parts(self, drawn: Lineage) -> Lineage:
        """Roots of parts of other shapes below the model that they were cut from, where the comparison shows it."""
        edges, roots, refused = list(drawn.edges), set(drawn.roots), list(drawn.refused)
        families = {name: frozenset(f) for f in drawn.families for name in f}
        position = {m.name: i for i, m in enumerate(self.models)}
        for parts in (p for p in self.families if len(p) > 1):
            names = [{self.models[i].name for i in part} for part, _ in parts]
            whole = frozenset[str]().union(*names)
            replaced = whole.union(*(families.get(name, whole) for name in whole))
            families = {**{n: f for n, f in families.items() if n not in replaced}, **dict.fromkeys(whole, whole)}
            linked, nearest = set[int](), dict[int, tuple[str, str]]()
            for k, (part, _) in enumerate(parts):
                if any(i in self.stacked_edges for i in part):
                    linked.add(k)
                others = [i for other, _ in parts if other is not part for i in other]
                for root in sorted(r for r in roots & names[k] if position[r] not in self.stacked_edges):
                    edge, near = self.find_source(position[root], others)
                    if edge is not None and not is_ancestor(edges, root, edge.parent):
                        edges.append(edge)
                        roots.discard(root)
                        linked |= {k, next(j for j, held in enumerate(names) if edge.parent in held)}
                    else:
                        nearest[k] = root, near
            unlinked = [k for k in nearest if k and k not in linked]
            refused += [{"models": sorted(nearest[k]), "reason": OTHER_SHAPES} for k in unlinked]
        stacked = {self.models[i].name: made for i, made in self.stacked_edges.items()}
        edges = [e for e in edges if e.child not in stacked] + [e for made in stacked.values() for e in made]
        return replace(drawn, edges=tuple(edges), roots=tuple(sorted(roots - stacked.keys())),
                       families=_sorted_families({*families.values()}), refused=tuple(refused))  # fmt: skip

    def find_source(self, child: int, others: list[int]) -> tuple[Edge | None, str]:
        """The edge from the model that one of other shapes was made from, of the twelve nearest; and the nearest."""
        bits = self.sketch(child)
        near = sorted(others, key=lambda i: int(np.unpackbits(self.sketch(i) ^ bits).sum()))[:12]
        ranked = sorted(((self.compare(i, child), i) for i in near), key=lambda c: _closeness(c[0]))
        for c, i in ranked:
            if c.verdict == "related" and self.original_of(i, child) == i:
                edge = Edge(
                    parent=self.name_of_original(i),
                    child=self.models[child].name,
                    relation=c.relation.kind.value,
                    p_value=c.weights.p_value,
                    log10_p=c.weights.log10_p,
                    reason=c.relation.reason,
                )
                return edge, edge.parent
        return None, self.models[ranked[0][1]].name

    def set_aside_copies(self, readable: Sequence[int]) -> None:
        """Of models with the same tensors, whatever their names, the oldest file stands for all, or the first name."""
        first: dict[str, int] = {}
        for i in sorted(readable, key=lambda i: (modified_time(self.models[i]), self.models[i].name)):
            model = self.models[i]
            if not model.tensors or model.is_partial:
                continue  # equal samples are no copies; nothing tells black boxes, or modules without weights, apart
            original = first.setdefault(model.names_free_digest, i)
            if original != i and model.digest == self.models[original].digest:
                self.originals[i] = original, RelationKind.COPY.value, "the digests agree"
            elif original != i:
                self.originals[i] = original, RelationKind.REFORMATTED.value, "the same tensors under other names"

    def is_readable(self, i: int) -> bool:
        """Whether the weights can be read; the error is kept otherwise."""
        try:
            self.models[i].names_free_digest  # noqa: B018
            self.sketch(i)
        except StemmaError as e:
            self.not_tested.append({"what": "unreadable-file", "model": self.models[i].name, "why": str(e)})
            return False
        return True

    def sketch(self, i: int) -> np.ndarray:
        """The bits of a model's weight sketch, `uint8 [256]`."""
        model = self.models[i]
        if model.digest not in self.sketches:
            self.progress("sketching", i, len(self.models))
            self.sketches[model.digest] = np.asarray(fingerprinters()[0](model).values["bits"])
        return self.sketches[model.digest]

    def pair_level(self) -> float:
        """The level of one pair: Bonferroni over all pairs, whether they were tested or not."""
        n = max(self.total, len(self.models))
        return self.alpha / max(1, n * (n - 1) // 2)

    def are_related(self, i: int, j: int) -> bool:
        """Whether two models are related: by units in the same places, or by an exact map of units."""
        if self.compare_in_place(i, j).verdict is Verdict.SUPPORTED:
            return True
        if len(self.models) > self.detailed and np.unpackbits(self.sketch(i)[128:] ^ self.sketch(j)[128:]).sum() >= 400:
            return False  # far apart by the half of the sketch that no permutation changes
        return self.compare(i, j).verdict == "related"

    def compare_in_place(self, i: int, j: int) -> Evidence:
        """The test of units in the same places, under the first correspondence of tensors."""
        key = (min(i, j), max(i, j))
        if key not in self.in_place_tests:
            a, b = (self.models[k] for k in key)
            if a.is_partial or b.is_partial:  # a correspondence without names needs what was not read
                return self.compare(i, j).weights
            pairings = next((p for _, p in candidates(a, b, contents=False)), ())
            self.in_place_tests[key] = contents_in_place(a, b, pairings, self.pair_level())
        return self.in_place_tests[key]

    def compare(self, i: int, j: int) -> Comparison:
        """All evidence on the weights of a pair."""
        key = (min(i, j), max(i, j))
        if key not in self.full_comparisons:
            a, b = (self.models[k] for k in key)
            try:
                self.full_comparisons[key] = compare_weights(a, b, self.pair_level())
            except StemmaError as e:
                self.full_comparisons[key] = comparisons.failed_comparison(a.ref, b.ref, str(e))
        return self.full_comparisons[key]

    def describe_family(self, members: list[int], values: Entries) -> Family:
        """What the tree of a family is drawn from."""
        distances = squared_distances(values)
        self.set_aside_rounded(members, values)
        kept = [
            k for k, m in enumerate(members)
            if m not in self.originals and not self.set_aside_permuted(members, distances, k)
        ]  # fmt: skip
        values, distances, members = values.of(kept), distances.subset(kept), [members[k] for k in kept]
        odds, probabilities = self.direction_and_parents(values, distances, members)
        return Family(
            values.models,
            distances,
            odds,
            probabilities,
            lambda a, b: self.compare_edge(members[a], members[b]),
            RowAngles(values),
            frozenset(k for k, m in enumerate(members) if self.is_childless(m)),
            frozenset(k for k, m in enumerate(members) if self.models[m].is_partial),
            find_known_parents(values, distances),
            originality_ranks([self.models[m] for m in members], values),
            self.parent_model.edge_confidence if self.parent_model is not None else float,
            self.parent_model.parent_threshold(1) if self.parent_model is not None else 0.5,
        )

    def set_aside_rounded(self, members: list[int], values: Entries) -> None:
        """Of one network in several number formats the widest stands for all, whatever files are called."""
        if len(self.models) > self.detailed:
            return  # what is the same up to a small rounding is found by distances
        for narrow, wide in rounded_copies(values):
            relation = self.compare(members[wide], members[narrow]).relation
            if not {members[narrow], members[wide]} & self.originals.keys() and relation.kind in EXACT:
                self.originals[members[narrow]] = members[wide], relation.kind.value, relation.reason

    def is_childless(self, i: int) -> bool:
        """Whether a model is stored in integer codes, or as the numbers they stand for: nothing was made from it."""
        return is_coded(self.models[i]) or (len(self.models) <= self.detailed and lies_on_grid(self.models[i]))

    def set_aside_permuted(self, members: list[int], distances: Distances, k: int) -> bool:
        """Set a model aside that is another one in other coordinates, so that its distances carry no information."""
        own = members[k]
        ratio = np.delete(distances.squared[k] / np.maximum(distances.norms[k], 1e-300), k)
        has_copies = any(original == own for original, *_ in self.originals.values())
        if not ratio.size or ratio.min() < OTHER_COORDINATES or has_copies:
            return False
        bits = self.sketch(own)[128:]
        near = sorted((int(np.unpackbits(self.sketch(m)[128:] ^ bits).sum()), m) for m in members if m != own)[:5]
        for _, other in near:
            relation, original = self.compare(other, own).relation, self.original_of(other, own)
            if relation.kind in EXACT and other not in self.originals and original != own:
                self.originals[own] = other, relation.kind.value, relation.reason
                return True
        if any(self.compare_in_place(m, own).verdict is Verdict.SUPPORTED for _, m in near):
            return False  # in the same coordinates, only of another scale: norms were folded
        if ratio.min() > UNPLACEABLE:
            self.unplaced.append(own)
        return bool(ratio.min() > UNPLACEABLE)

    def direction_and_parents(
        self, values: Entries, distances: Distances, members: list[int]
    ) -> tuple[AncestryOdds, ParentProbabilities]:
        """Log-odds of which of two came first, and the probabilities of parents."""
        norms, model = OddsFromNorms(distances), self.parent_model
        if model is None:
            return norms, ProbabilitiesFromDistances(distances)
        geometry = Geometry(values, [trained_batches(self.models[m]) for m in members])
        return (
            OddsFromWeights(model.direction, geometry, norms),
            lambda rows: model.parent_probabilities(geometry, rows),
        )

    def original_of(self, i: int, j: int) -> int | None:
        """Which of two the other was made from, where the comparison shows it for certain."""
        origin = self.compare(i, j).relation.parameters.get("made_from")
        return {"a": min(i, j), "b": max(i, j)}.get(str(origin))

    def compare_edge(self, parent: int, child: int) -> PairResult:
        """The test of one edge."""
        if len(self.models) > self.detailed:
            e = self.compare_in_place(parent, child)
            return PairResult(
                RelationKind.RELATED.value, e.verdict is Verdict.SUPPORTED, e.p_value, e.log10_p, e.reason
            )
        c, original = self.compare(parent, child), self.original_of(parent, child)
        return PairResult(
            c.relation.kind.value, c.verdict == "related", c.weights.p_value, c.weights.log10_p,
            c.relation.reason or c.weights.reason, original == child, original == parent,
            c.relation.kind in WITHOUT_DESCENT, with_finetuned(c.relation).kind.value,
        )  # fmt: skip

    def with_other_forms(self, drawn: Lineage) -> Lineage:
        """The lineage with copies and other forms under their originals, and with the models that have no place."""
        edges, forms = list(drawn.edges), {m.name: list[str]() for m in self.models}
        for i, (original, relation, reason) in sorted(self.originals.items()):
            edges.append(
                Edge(
                    parent=self.models[original].name,
                    child=self.models[i].name,
                    relation=relation,
                    length=0.0,
                    reason=reason,
                )
            )
            forms[self.name_of_original(original)].append(self.models[i].name)
        edges, circular = remove_cycles(edges)
        freed = {e.child for e in circular} - {e.child for e in edges}
        placed = {m.name for m in drawn.models}
        refused = [*drawn.refused, *({"models": sorted([e.parent, e.child]), "reason": CIRCULAR} for e in circular)]
        refused += [{"models": [self.models[i].name], "reason": NOT_PLACED} for i in self.unplaced]
        families = [tuple(sorted({*f, *(c for m in f for c in forms.get(m, ()))})) for f in drawn.families]
        refs = [*drawn.models, *(m.ref for i, m in enumerate(self.models) if i in self.originals or i in self.unplaced)]
        lost = sorted(self.models[i].name for i in self.unplaced if self.models[i].name not in placed)
        return replace(
            drawn, models=tuple(sorted(refs, key=lambda m: m.name)),
            edges=tuple(sorted(edges, key=lambda e: (e.child, e.parent))),
            roots=tuple(sorted({*drawn.roots, *lost, *freed})),
            families=_sorted_families([*families, *((n,) for n in lost)]),
            refused=tuple(refused), cannot_see=CANNOT_SEE + ((NOT_COMPARED,) if len(self.models) > ALL_PAIRS else ()),
            not_tested=(
                *self.not_tested, *self.untested({n for f in families if len(f) == 1 for n in f}),
                *unread_pairs(self.models, families),
            ),
        )  # fmt: skip

    def untested(self, names: set[str]) -> list[NotTested]:
        """Models without relatives that nothing here could be compared with: that is no finding."""
        position = {m.name: i for i, m in enumerate(self.models)}
        out: list[NotTested] = []
        tests: dict[int, list[float | None]] = {position[name]: [] for name in names}
        for pair, e in self.in_place_tests.items():
            for i in tests.keys() & pair:
                tests[i].append(e.p_value)
        for pair, c in self.full_comparisons.items():
            for i in tests.keys() & pair:
                tests[i].append(c.weights.p_value)
        for name in sorted(names):
            tested = tests[position[name]]
            if len(self.models) == 1:
                why = "there is no other model to compare with"
                out.append({"what": "nothing-searched", "model": name, "why": why})
            elif tested and all(p is None for p in tested):
                out.append({"what": "not-comparable", "model": name, "why": NO_COUNTERPART})
        return out

    def name_of_original(self, i: int) -> str:
        """The name of the model that a model is a form of, through further forms of it."""
        while i in self.originals:
            i = self.originals[i][0]
        return self.models[i].name


def _sorted_families(families: "set[frozenset[str]] | list[tuple[str, ...]]") -> tuple[tuple[str, ...], ...]:
    return tuple(sorted((tuple(sorted(f)) for f in families), key=lambda f: (-len(f), f)))


def _closeness(comparison: Comparison) -> tuple[float, int, float]:
    """The larger effect first, then the shorter explanation, then the smaller change."""
    change = comparison.relation.parameters.get("relative_change")
    steps = len(comparison.relation.steps)
    return -round(comparison.weights.effect, 3), steps, 1e9 if change is None else float(change)
