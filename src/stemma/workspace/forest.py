"""The family tree of models that are at hand: families by sketches, trees by sampled entries, tests by pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from stemma.errors import MisuseError, NotAModelError, StemmaError
from stemma.kinship.weights.aligned import UnitsInPlace
from stemma.kinship.weights.correspondence import candidates
from stemma.kinship.weights.counts import evidence
from stemma.kinship.weights.entries import entries
from stemma.lineage.distances import RowAngles, squared_distances
from stemma.lineage.families import families
from stemma.lineage.forest import Family, Forest, Named
from stemma.lineage.known_parents import known_parents
from stemma.models.model import Model
from stemma.models.units import structure
from stemma.registry import describe
from stemma.registry.examine import fingerprinters
from stemma.types import Comparison, Edge, Evidence, Lineage, ModelRef, RelationKind, Verdict
from stemma.workspace.candidates import from_files
from stemma.workspace.recall import compared
from stemma.workspace.workspace import ALPHA, Workspace

Progress = Callable[[str, int, int | None], None]

DETAILED = 200
"""Up to so many models every edge is compared in full, which names its relation; of more the test alone is run."""

CANNOT_SEE = ("training data", "models that are not among these", "what was handed down without weights (distillation)")

EXACT = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are exhibited; the one is the other in another form."""


def lineage(
    models: Sequence[Model],
    *,
    alpha: float = ALPHA,
    sketches: Mapping[str, np.ndarray] | None = None,
    method: Forest | None = None,
    detailed: int = DETAILED,
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
        detailed: Compare every edge in full up to so many models.
        progress: Told what happens, how many models are done, and of how many.

    Returns:
        The lineage.

    Raises:
        MisuseError: If there are no models, or two of one name.
    """
    if not models:
        raise MisuseError("a lineage is of one or more models; none were given")
    names = [m.name for m in models]
    if twice := sorted({n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else ()):
        raise MisuseError(f"every model needs a name of its own; {twice[0]!r} is the name of several")
    work = _Work(list(models), alpha, dict(sketches or {}), detailed, progress or (lambda what, done, total: None))
    return work.drawn(method or Forest())


@dataclass
class _Work:
    """One lineage being worked out."""

    models: list[Model]
    alpha: float
    sketches: dict[str, np.ndarray]
    detailed: int
    progress: Progress
    unread: list[str] = field(default_factory=list)
    compared: dict[tuple[int, int], Comparison] = field(default_factory=dict)
    placed: dict[tuple[int, int], Evidence] = field(default_factory=dict)

    @cached_property
    def originals(self) -> dict[int, int]:
        """For every model the first of those with the same tensors, whatever their names."""
        first: dict[str, int] = {}
        order = sorted(range(len(self.models)), key=lambda i: self.models[i].name)
        return {i: first.setdefault(self.models[i].names_free_digest, i) for i in order}

    def drawn(self, method: Forest) -> Lineage:
        """Copies apart, then families, then trees.

        Returns:
            The lineage, with the copies back in their places.
        """
        own = [i for i in range(len(self.models)) if self.originals[i] == i and self.readable(i)]
        bits = np.stack([self.bits(i) for i in own]) if own else np.zeros((0, 256), np.uint8)
        found = [[own[k] for k in family] for family in families(bits, lambda a, b: self.related(own[a], own[b]))]
        drawn, alone = [], []
        for at, members in enumerate(found):
            self.progress("drawing families", at, len(found))
            if len(members) == 1:
                alone.append(self.models[members[0]].ref)
            else:
                drawn.append(self.family(members))
        return self.with_copies(method(drawn, alone))

    def readable(self, i: int) -> bool:
        """Whether there are weights to look at; what is wrong is kept."""
        try:
            self.models[i].names_free_digest  # noqa: B018
            self.bits(i)
        except StemmaError as e:
            self.unread.append(f"{self.models[i].name}: {e}")
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
        n = len(self.models)
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
        """The test of units in place, under the first correspondence of tensors."""
        key = (min(i, j), max(i, j))
        if key not in self.placed:
            a, b = (self.models[k] for k in key)
            test = UnitsInPlace()
            pairings = next((p for _, p in candidates(a, b, contents=False)), ())
            known = structure(a)
            counts = test.count(a, b, pairings, known)
            self.placed[key] = evidence(test, a, b, counts, 2, {"structure": known.source}, self.level())
        return self.placed[key]

    def whole(self, i: int, j: int) -> Comparison:
        """All evidence of the weights of a pair."""
        key = (min(i, j), max(i, j))
        if key not in self.compared:
            self.compared[key] = compared(self.models[key[0]], self.models[key[1]], self.level())
        return self.compared[key]

    def family(self, members: list[int]) -> Family:
        """What the tree is drawn from."""
        models = [self.models[i] for i in members]
        values = entries(models)
        distances = squared_distances(values)
        known = known_parents(values, distances)
        return Family(tuple(m.ref for m in models), distances, None, lambda a, b: self.named(members[a], members[b]),
                      RowAngles(values), frozenset(), known)  # fmt: skip

    def named(self, parent: int, child: int) -> Named:
        """The test of one edge."""
        if len(self.models) > self.detailed:
            e = self.in_place(parent, child)
            return Named(RelationKind.RELATED.value, e.verdict is Verdict.SUPPORTED, e.p_value, e.log10_p, e.reason)
        c = self.whole(parent, child)
        return Named(c.relation.kind.value, c.verdict == "related", c.weights.p_value, c.weights.log10_p,
                     c.relation.reason or c.weights.reason)  # fmt: skip

    def with_copies(self, found: Lineage) -> Lineage:
        """Copies under the model that they are copies of."""
        copies = [(i, o) for i, o in sorted(self.originals.items()) if i != o]
        edges = list(found.edges)
        names: dict[str, list[str]] = {}
        for i, o in copies:
            same = self.models[i].digest == self.models[o].digest
            kind = RelationKind.COPY if same else RelationKind.REFORMATTED
            why = "the digests agree" if same else "the same tensors under other names"
            edges.append(Edge(self.models[o].name, self.models[i].name, kind.value, length=0.0, reason=why))
            names.setdefault(self.models[o].name, []).append(self.models[i].name)
        grown = [tuple(sorted([*f, *(c for m in f for c in names.get(m, ()))])) for f in found.families]
        refs: list[ModelRef] = [*found.models, *(self.models[i].ref for i, _ in copies)]
        unseen = [f"{len(self.unread)} models that cannot be read: {'; '.join(self.unread[:3])}"] if self.unread else []
        return Lineage(
            tuple(sorted(refs, key=lambda m: m.name)), tuple(sorted(edges, key=lambda e: (e.child, e.parent))),
            found.roots, tuple(sorted(grown, key=lambda f: (-len(f), f))), found.missing_ancestors, found.refused,
            found.evidence, (*CANNOT_SEE, *unseen),
        )  # fmt: skip


def lineage_of(
    workspace: Workspace,
    paths: Sequence[Path] | None = None,
    *,
    alpha: float = ALPHA,
    progress: Progress | None = None,
) -> Lineage:
    """The lineage of files, or of everything that is enrolled.

    Args:
        workspace: Holds the registry.
        paths: Checkpoints, or folders of them; the registry unless given.
        alpha: Level of the decision that two models are related, over all pairs.
        progress: Told what happens, how many models are done, and of how many.

    Returns:
        The lineage. Enrolled models whose weights are gone are named in what it cannot see.

    Raises:
        NotAModelError: If there is nothing to read.
    """
    if paths is not None:
        found, unread = from_files([Path(p) for p in paths])
        models = [c.load() for c in found]
        models = [
            m if m.name == c.ref.name else describe.renamed(m, c.ref.name) for m, c in zip(models, found, strict=True)
        ]
        gone = [f"{len(unread)} files that cannot be read: {'; '.join(unread[:3])}"] if unread else []
        kept: dict[str, np.ndarray] = {}
    else:
        records = workspace.list()
        opened = [workspace.reopen(r) for r in records]
        models = [m for m in opened if not describe.is_remembered(m)]
        lost = sorted(m.name for m in opened if describe.is_remembered(m))
        gone = [f"the weights of {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}, which are gone"] if lost else []
        spec = fingerprinters()[0].spec
        kept = {str(f.model): np.asarray(f.values["bits"]) for f in workspace.registry.fingerprints(spec)}
    if not models:
        where = (
            f"in {', '.join(map(str, paths))}" if paths is not None else "enrolled (enrol some with: stemma add PATH)"
        )
        raise NotAModelError(f"there is no checkpoint {where} to draw a lineage of")
    result = lineage(models, alpha=alpha, sketches=kept, progress=progress)
    return replace(result, cannot_see=(*result.cannot_see, *gone))
