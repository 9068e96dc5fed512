"""The exact test of the order of units: do two models keep the same units in the same positions?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from stemma.architectures.structure import Structure
from stemma.checkpoints.model import Model
from stemma.kinship.weights.constants.identity import near_identity
from stemma.kinship.weights.constants.tables import is_table
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.order.counts import Counts, GroupCount
from stemma.kinship.weights.order.pair_reader import COORDINATES, PairReader, owned_members, unit_vectors
from stemma.kinship.weights.order.similarity import assign, directions, distinct
from stemma.types import Spec, UnitMember

SHAPES = "inferred:shapes"


@dataclass(frozen=True)
class UnitsInPlace:
    """Match the units of two models by linear assignment and count those that are matched to themselves.

    Under the null (independent trainings that treat units alike) the matching composed with the identity is a uniform
    permutation, so its fixed points have an exact law. Where the structure is certain, each tensor is used once, in the
    latest group it touches, and the groups' counts are independent: their sum has an exact law (`sum`). Where only
    single axes are known to be hidden, e-values of all of them are averaged, which holds under any dependence
    (`mean-e`). Groups whose width differs (units removed) are judged by the order of the matched units (Mahonian law).
    Cost: the first rows of each large tensor, one assignment per block of `block` units.

    Attributes:
        block: Units per assignment; larger groups are cut into blocks, which keeps the law exact.
        max_blocks: Most blocks per group.
        seed: Seed of the relabelling that breaks ties.
        min_effect: Smallest share of units in place that counts as a relation; below it a small p-value may come from a
            shared random initialisation. Fixed beforehand; its error rate is in benchmarks/results/null.json.
        margin: `independent` needs an upper bound of the share in place below this.

    Source: linear assignment and rank statistics of matched units go back to Zhu et al., ICML 2025 (arXiv:2502.12292);
    the fixed-point sum, its independence by causal order and the relabelling are this project's.
    """

    block: int = 256
    max_blocks: int = 4
    seed: int = 0
    min_effect: float = 0.05
    margin: float = 0.25

    name = "units-in-place"
    version = 2

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def count(self, a: Model, b: Model, pairings: Sequence[Pairing], structure: Structure) -> Counts:
        """Count units in place for one pairing of tensors, which must not depend on the order of units."""
        cuts = PairReader(a, b, {p.a: p for p in pairings})
        # Groups inferred from sizes are exact but leave most tensors unused; single axes use more.
        if structure.certain and structure.source != SHAPES:
            return Counts("sum", tuple(self._by_group(cuts, structure)))
        return Counts("mean-e", tuple(self._by_axis(cuts, structure)))

    def _by_group(self, cuts: PairReader, structure: Structure) -> Iterator[GroupCount]:
        owned = owned_members(structure.groups)
        matched: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for order, group in enumerate(structure.groups):
            if not group.exchangeable or group.size < 2:
                continue
            views = []
            for tensor, axis, segments in owned[group.name]:
                view = _view(cuts, structure, tensor, axis, segments, group.size, matched)
                if view is not None:
                    views.append(view)
                cuts.drop(tensor)
            widths = {(len(x), len(y)) for x, y in views}
            if not views:
                continue
            n_a, n_b = min(w[0] for w in widths), min(w[1] for w in widths)
            views = _not_near_identity([(x[:n_a], y[:n_b]) for x, y in views])
            generator = np.random.default_rng([self.seed, order])
            if not views:
                continue
            if n_a == n_b:
                yield from self._blocks(group.name, views, n_a, group.orbits, generator)
            else:
                count, pairs = _count_in_order(group.name, views, generator)
                matched[group.name] = pairs
                if count is not None:
                    yield count

    def _by_axis(self, cuts: PairReader, structure: Structure) -> Iterator[GroupCount]:
        for i, (name, pairing) in enumerate(cuts.pairings.items()):
            for position, axis in enumerate(pairing.axes_a):
                label = structure.axes[name][axis]
                if not label.hidden or label.kind == "head":
                    continue
                cut = cuts[name]
                if is_table(cut.a) or is_table(cut.b):
                    continue
                x, y = np.moveaxis(cut.a, position, 0), np.moveaxis(cut.b, position, 0)
                if x.shape != y.shape or len(label.segments) != 1:
                    continue
                segment = label.segments[0]
                count = len(x) // segment.block
                index = segment.index()[:count]
                index = index[index.max(axis=1) < len(x)]
                x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
                step = -(-x.shape[1] * segment.block // COORDINATES)
                views = [(x[index, ::step].reshape(len(index), -1), y[index, ::step].reshape(len(index), -1))]
                generator = np.random.default_rng([self.seed, i, axis])
                for found in self._blocks(f"{name}[{axis}]", views, len(index), (), generator):
                    yield replace(found, of=label.group)
            cuts.drop(name)

    def _blocks(
        self,
        name: str,
        views: list[tuple[np.ndarray, np.ndarray]],
        n: int,
        orbits: tuple[int, ...],
        generator: np.random.Generator,
    ) -> Iterator[GroupCount]:
        labels = np.array(orbits[:n]) if orbits else np.zeros(n, int)
        views = _not_near_identity(views)
        for orbit in np.unique(labels) if views else ():
            members = np.flatnonzero(labels == orbit)
            for start in range(0, min(len(members), self.block * self.max_blocks), self.block):
                index = members[start : start + self.block]
                similarity, good = _similarity([(x[index], y[index]) for x, y in views])
                similarity = similarity[np.ix_(good, good)]
                if len(similarity) >= 2:
                    r, c = assign(similarity, generator)
                    yield GroupCount(name, len(similarity), int((r == c).sum()))


def _not_near_identity(views: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Views in which neither model is near the identity."""
    return [(x, y) for x, y in views if not (near_identity(x) or near_identity(y))]


def _similarity(views: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of cosine matrices over views, and which units are informative."""
    n = len(views[0][0])
    total, good = np.zeros((n, n), np.float32), np.zeros(n, bool)
    repeated = np.ones(n, bool)
    for x, y in views:
        (u, alive_u), (v, alive_v) = directions(x), directions(y)
        alive = alive_u & alive_v
        u, v = np.where(alive_u[:, None], u, 0), np.where(alive_v[:, None], v, 0)
        total += u @ v.T
        good |= alive
        repeated &= ~(distinct(u, alive_u) & distinct(v, alive_v))
    return total, good & ~repeated


def _count_in_order(
    name: str, views: list[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator
) -> tuple[GroupCount | None, tuple[np.ndarray, np.ndarray]]:
    """Match two groups of different width and count pairs of matched units that keep their order."""
    similarity, good_a, good_b = np.float32(0.0), np.zeros(len(views[0][0]), bool), np.zeros(len(views[0][1]), bool)
    for x, y in views:
        (u, alive_u), (v, alive_v) = directions(x), directions(y)
        similarity = similarity + u @ v.T
        good_a |= distinct(u, alive_u)
        good_b |= distinct(v, alive_v)
    rows, columns = np.flatnonzero(good_a), np.flatnonzero(good_b)
    if min(len(rows), len(columns)) < 2:
        return None, (np.zeros(0, int), np.zeros(0, int))
    r, c = assign(np.asarray(similarity)[np.ix_(rows, columns)], generator)
    r, c = rows[r], columns[c]
    concordant = int(sum((c[i + 1 :] > c[i]).sum() for i in range(len(c))))
    return GroupCount(name, len(c), _longest_increasing(c), concordant), (r, c)


def _longest_increasing(values: np.ndarray) -> int:
    import bisect

    tails: list[int] = []
    for v in values.tolist():
        at = bisect.bisect_left(tails, v)
        tails[at : at + 1] = [v]
    return len(tails)


def _view(
    cuts: PairReader,
    structure: Structure,
    tensor: str,
    axis: int,
    segments: tuple[UnitMember, ...],
    size: int,
    matched: dict[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Units of a group in one tensor of both models with aligned coordinates; None if that is not possible."""
    pairing = cuts.pairings.get(tensor)
    if pairing is None or axis not in pairing.axes_a:
        return None
    cut = cuts[tensor]
    x, y = cut.a, cut.b
    if is_table(x) or is_table(y):
        return None
    for position, other in enumerate(pairing.axes_a):
        if other == axis:
            continue
        label = structure.axes[tensor][other]
        if label.group in matched and len(label.segments) == 1:
            rows, columns = matched[label.group]
            block = label.segments[0].block
            if (
                not len(rows)
                or (rows.max() + 1) * block > x.shape[position]
                or (columns.max() + 1) * block > y.shape[position]
            ):
                return None  # wrongly paired tensors, or rows that were not read
            if label.segments[0].stride == 1 and y.shape[position] % block == 0:
                spread_first = np.arange(block)
                x = np.take(x, (rows[:, None] * block + spread_first).reshape(-1), axis=position)
                y = np.take(y, (columns[:, None] * block + spread_first).reshape(-1), axis=position)
        elif x.shape[position] != y.shape[position]:
            if label.role != "token":
                return None
            shared = min(x.shape[position], y.shape[position])
            x, y = np.take(x, range(shared), axis=position), np.take(y, range(shared), axis=position)
    position = pairing.axes_a.index(axis)
    u = unit_vectors(x, position, segments, size)
    v = _target_units(y, position, segments, size, x.shape[position])
    return None if v is None or not u.shape[1] or u.shape[1] != v.shape[1] else (u, v)


def _target_units(
    y: np.ndarray, position: int, segments: tuple[UnitMember, ...], size: int, rows_a: int
) -> np.ndarray | None:
    """B's units where its axis may have another length; only whole-axis groups can change width."""
    rows_b = y.shape[position]
    if rows_a == rows_b:
        return unit_vectors(y, position, segments, size)
    only = segments[0]
    if len(segments) != 1 or only.offset or only.stride != 1 or rows_b % only.block:
        return None
    return unit_vectors(y, position, segments, rows_b // only.block)
