"""Questions for a detector: a child, candidates drawn from its family and from others, and the right answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.learned import batches
from stemma.kinship.learned.evidence import Evidence
from stemma.kinship.learned.weight_samples import WeightSamples, sample_weights, squares
from stemma.probes import Probes
from stemma.training.relatives import Relative

MIN_MODELS = 8
"""Models of one architecture below which no questions are asked about it."""


@dataclass(frozen=True)
class Question:
    """Positions of a child and its candidates; `label` is that of the nearest ancestor, or their number for none."""

    child: int
    others: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class Drawing:
    """How questions are drawn.

    Attributes:
        most: Candidates at most; the number is drawn log-uniformly from 2 on.
        relatives: Relatives beside the parent at most, drawn evenly from 0 on; any share of the family unless given.
        orphans: Share of questions whose true parent is removed; from half of those every ancestor.
        roots: Share of questions about a model that has no ancestor at all.
        descendants: Share of questions whose candidates may descend from the child.
        closed: Every question has its parent among the candidates.
    """

    most: int = 64
    relatives: int | None = None
    orphans: float = 0.2
    roots: float = 0.05
    descendants: float = 0.1
    closed: bool = False


@dataclass(frozen=True, eq=False)
class Pool:
    """Models of one architecture, read once.

    Attributes:
        relatives: The models' names and history.
        views: Input of the detector for each, in the same order.
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
        return squares(self.views)

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

    def draw(self, families: Sequence[str], rng: np.random.Generator, drawing: Drawing, size: int) -> Question | None:
        """One question with about `size` candidates about some families; None where these have none to ask."""
        known_families = [f for f in families if f in self._family]
        members = [i for f in known_families for i in self._family[f]]
        orphaned = not drawing.closed and rng.random() < drawing.orphans
        rootless = not drawing.closed and rng.random() < drawing.roots
        children = [i for i in members if self.relatives[i].child and bool(self.ancestors[i]) != rootless]
        if not children or len(members) < 3:
            return None
        child = int(rng.choice(children))
        included = self._relatives_to_include(
            child, orphaned, rng.random() < drawing.descendants, rng, closed=drawing.closed
        )
        if included is None:
            return None
        required, optional = included
        if drawing.relatives is None:
            share = rng.random()
            optional = [i for i in optional if rng.random() < share][: max(0, size - len(required))]
        else:
            optional = optional[: int(rng.integers(0 if required else 1, drawing.relatives + 1))]
        own_family = self.relatives[child].family
        other_families = [i for i in members if self.relatives[i].family != own_family and self.relatives[i].candidate]
        wanted = min(len(other_families), max(0, size - len(required) - len(optional)))
        others = (
            [*required, *optional, *(int(i) for i in rng.choice(other_families, wanted, replace=False))]
            if other_families
            else required + optional
        )
        if not others:
            return None
        others = [others[i] for i in rng.permutation(len(others))]
        label = next((others.index(a) for a in self.ancestors[child] if a in others), len(others))
        return Question(child, tuple(others), label)

    def _relatives_to_include(
        self, child: int, orphaned: bool, allow_descendants: bool, rng: np.random.Generator, *, closed: bool
    ) -> tuple[list[int], list[int]] | None:
        """Relatives that must be among the candidates, and those that may, in random order."""
        ancestors = [i for i in self.ancestors[child] if self.relatives[i].candidate]
        if closed and (not ancestors or ancestors[0] != self.ancestors[child][0]):
            return None
        removed = set(ancestors[:1] if rng.random() < 0.5 else ancestors) if orphaned else set()
        family = self._family[self.relatives[child].family]
        optional = [
            i
            for i in family
            if i != child and i not in removed and i not in ancestors[:1] and self.relatives[i].candidate
        ]
        optional = [i for i in optional if allow_descendants or child not in self.ancestors[i]]
        required = [] if orphaned else ancestors[:1]
        return required, [optional[i] for i in rng.permutation(len(optional))]

    @cached_property
    def evidence(self) -> Evidence:
        """What pairs and triples of the models show, measured where it is asked for."""
        return Evidence(self.views)

    def arrays(self, question: Question, preset: str) -> batches.Arrays:
        """A question as the arrays that `batches` makes."""
        others = np.array(question.others)
        if preset == "paper" and self.matrix is not None and self.views.features is not None:
            return batches.paper_question(self.matrix, self.views.features, question.child, others)
        found = batches.v3_question(self.evidence, question.child, others)
        everyone = [question.child, *(int(others[i]) for i in found["place"])]
        above = np.array([[a in self.ancestors[b] for b in everyone] for a in everyone])
        return {**found, "order": np.where(above, 0, np.where(above.T, 1, 2))}


def pools(
    relatives: Sequence[Relative], *, cap: int, per_layer: int, seed: int = 0,
    probes: Callable[[Model], Probes | None] | None = None, matrix: bool = False,
) -> list[Pool]:  # fmt: skip
    """Read models, those of one architecture together, in pools of at least `MIN_MODELS`, the largest first."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Relative]] = {}
    for r in relatives:
        by_shape.setdefault(_shape_signature(r.model), []).append(r)
    out = []
    for group in sorted(by_shape.values(), key=len, reverse=True):
        if len(group) < MIN_MODELS:
            continue
        models = [r.model for r in group]
        sampled = sample_weights(models, cap=cap, per_layer=per_layer, seed=seed)
        group_probes = None if probes is None else probes(models[0])
        if group_probes is not None:
            sampled = batches.with_features(sampled, models, group_probes)
        layer = batches.layer_matrices(models, batches.shared_layer(models)) if matrix else None
        out.append(Pool(tuple(group), sampled, layer))
    return out


def _shape_signature(model: Model) -> tuple[tuple[int, ...], ...]:
    """Shapes of the larger half of a model's matrices: a head may differ."""
    shapes = sorted((tuple(sorted(t.shape)) for t in matrices(model).values()), key=lambda s: (-int(np.prod(s)), s))
    return tuple(shapes[: (len(shapes) + 1) // 2])
