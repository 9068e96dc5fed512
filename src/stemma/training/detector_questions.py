"""Questions for a detector: a child, candidates drawn from its family and from others, and the right answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.learned import batches, geometry
from stemma.kinship.learned.weight_samples import WeightSamples, sample_weights
from stemma.probes import Probes
from stemma.training.relatives import Relative

LEAST = 8
"""Models of one architecture below which no questions are asked about it."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        child: Position of the child in its pool.
        others: Positions of the candidates.
        label: Which of them is the nearest ancestor; their number for none.
    """

    child: int
    others: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class Drawing:
    """How questions are drawn.

    Attributes:
        most: Candidates at most; the number is drawn log-uniformly from 2 on.
        orphans: Share of questions whose true parent is taken out; from half of those every ancestor.
        roots: Share of questions about a model that has no ancestor at all.
        descendants: Share of questions whose candidates may descend from the child.
        closed: Every question has its parent among the candidates.
    """

    most: int = 64
    orphans: float = 0.2
    roots: float = 0.05
    descendants: float = 0.1
    closed: bool = False


@dataclass(frozen=True, eq=False)
class Pool:
    """Models of one architecture, read once.

    Attributes:
        relatives: The models' names and history.
        views: What the detector sees of them, in the same order.
        matrix: One layer of each, `[models, rows, columns]`, for preset `paper`; None unless asked for.
    """

    relatives: tuple[Relative, ...]
    views: WeightSamples
    matrix: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of models."""
        return len(self.relatives)

    @cached_property
    def squares(self) -> np.ndarray:
        """Squared distances between all models, `[layers, models, models]`."""
        everything = np.arange(len(self))
        return geometry.squares(self.views, everything, everything)

    @cached_property
    def _at(self) -> dict[str, int]:
        return {r.name: i for i, r in enumerate(self.relatives)}

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the ancestors that are there, nearest first."""
        return tuple(tuple(self._at[a] for a in r.ancestors if a in self._at) for r in self.relatives)

    @cached_property
    def _family(self) -> Mapping[str, tuple[int, ...]]:
        out: dict[str, list[int]] = {}
        for i, r in enumerate(self.relatives):
            out.setdefault(r.family, []).append(i)
        return {k: tuple(v) for k, v in out.items()}

    def draw(self, families: Sequence[str], rng: np.random.Generator, how: Drawing, size: int) -> Question | None:
        """One question about the families given.

        Args:
            families: Which children and candidates may come from.
            rng: Draws.
            how: Shares of kinds of questions.
            size: Candidates wanted.

        Returns:
            The question; None where these families have none to ask.
        """
        own = [f for f in families if f in self._family]
        inside = [i for f in own for i in self._family[f]]
        orphaned = not how.closed and rng.random() < how.orphans
        rootless = not how.closed and rng.random() < how.roots
        children = [i for i in inside if self.relatives[i].child and bool(self.ancestors[i]) != rootless]
        if not children or len(inside) < 3:
            return None
        child = int(rng.choice(children))
        kin = self._kin(child, orphaned, rng.random() < how.descendants, rng, closed=how.closed)
        if kin is None:
            return None
        must, may = kin
        share = rng.random()
        may = [i for i in may if rng.random() < share][: max(0, size - len(must))]
        home = self.relatives[child].family
        foreign = [i for i in inside if self.relatives[i].family != home and self.relatives[i].candidate]
        wanted = min(len(foreign), max(0, size - len(must) - len(may)))
        others = [*must, *may, *(int(i) for i in rng.choice(foreign, wanted, replace=False))] if foreign else must + may
        if not others:
            return None
        others = [others[i] for i in rng.permutation(len(others))]
        label = next((others.index(a) for a in self.ancestors[child] if a in others), len(others))
        return Question(child, tuple(others), label)

    def _kin(
        self, child: int, orphaned: bool, down: bool, rng: np.random.Generator, *, closed: bool
    ) -> tuple[list[int], list[int]] | None:
        """Relatives that must be among the candidates, and those that may, in random order."""
        above = [i for i in self.ancestors[child] if self.relatives[i].candidate]
        if closed and (not above or above[0] != self.ancestors[child][0]):
            return None
        gone = set(above[:1] if rng.random() < 0.5 else above) if orphaned else set()
        family = self._family[self.relatives[child].family]
        may = [i for i in family if i != child and i not in gone and i not in above[:1] and self.relatives[i].candidate]
        may = [i for i in may if down or child not in self.ancestors[i]]
        must = [] if orphaned else above[:1]
        return must, [may[i] for i in rng.permutation(len(may))]

    def asked(
        self, question: Question, preset: str, crop: int, layers: np.ndarray | None = None
    ) -> batches.Arrays:  # fmt: skip
        """A question as arrays.

        Args:
            question: Of this pool.
            preset: Of the detector.
            crop: Entries per layer that its encoder sees.
            layers: `bool [layers]`: which ones there are; all unless given.

        Returns:
            As `batches` makes them.
        """
        others = np.array(question.others)
        if preset == "paper" and self.matrix is not None and self.views.features is not None:
            return batches.paper_question(self.matrix, self.views.features, question.child, others)
        seen = self.views if layers is None else replace(self.views, present=self.views.present & layers)
        return batches.v2_question(seen, question.child, others, crop, self._squares)

    def _squares(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.squares[:, rows[:, None], columns[None]]

    @cached_property
    def unasked(self) -> "Pool":
        """The same pool as if nobody had asked the models."""
        return (
            self
            if self.views.features is None
            else replace(self, views=replace(self.views, features=None, has_features=None))
        )


def pools(
    relatives: Sequence[Relative], *, cap: int, per_layer: int, seed: int = 0,
    probes: Callable[[Model], Probes | None] | None = None, matrix: bool = False,
) -> list[Pool]:  # fmt: skip
    """Read models, those of one architecture together.

    Args:
        relatives: Models with their history.
        cap: Layers of each.
        per_layer: Entries of each layer.
        seed: Of the draw of entries.
        probes: Gives what models of an architecture are asked, for features.
        matrix: Whether to keep one whole layer for preset `paper`.

    Returns:
        Pools of at least `LEAST` models, the largest first.
    """
    by_shape: dict[tuple[tuple[int, ...], ...], list[Relative]] = {}
    for r in relatives:
        by_shape.setdefault(_body(r.model), []).append(r)
    out = []
    for group in sorted(by_shape.values(), key=len, reverse=True):
        if len(group) < LEAST:
            continue
        models = [r.model for r in group]
        seen = sample_weights(models, cap=cap, per_layer=per_layer, seed=seed)
        asked = None if probes is None else probes(models[0])
        if asked is not None:
            seen = batches.with_features(seen, models, asked)
        layer = batches.layer_matrices(models, batches.shared_layer(models)) if matrix else None
        out.append(Pool(tuple(group), seen, layer))
    return out


def _body(model: Model) -> tuple[tuple[int, ...], ...]:
    """Shapes of the larger half of a model's matrices: a head may differ."""
    shapes = sorted((tuple(sorted(t.shape)) for t in matrices(model).values()), key=lambda s: (-int(np.prod(s)), s))
    return tuple(shapes[: (len(shapes) + 1) // 2])
