"""Which candidate a network was fine-tuned from: features are compared after a linear step towards its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import require_one_tokenizer
from stemma.kinship.function.no_parent import NoParent
from stemma.kinship.function.pooled_tails import FEWEST, pooled_tails
from stemma.probes import Probes
from stemma.types import Spec
from stemma.types.asking import asked_plainly

if TYPE_CHECKING:
    import torch

    from stemma.kinship.function.feature_similarities import AbstractSimilarity
    from stemma.kinship.function.network_body import Body

FORMS = ("linear", "taylor", "plain", "direction", "combined")
"""The forms of the method."""

SIMILARITIES = ("l1", "l2", "lp", "lse", "linf", "cka", "dc")
"""The similarities of features."""

ALPHA = {"linear": 1.0, "taylor": 0.01, "plain": 0.0, "direction": 1.0, "combined": 1.0}
"""Length of the step of each form by default."""


@dataclass(frozen=True)
class BestParent:
    """Which of the candidates a child was most likely fine-tuned from, if it was fine-tuned from one of them.

    A closed-set ranking: some candidate always scores highest, even if none is the parent.

    Attributes:
        child: Name of the child.
        candidates: Names, in the order given.
        scores: One per candidate, larger for nearer; comparable among these candidates only.
        winner: Position of the highest score; None where several candidates share it.
        margin: Highest score less the second highest; 0 for a tie, None for a single candidate.
        tied: Positions that share the highest score.
    """

    child: str
    candidates: tuple[str, ...]
    scores: tuple[float, ...]
    winner: int | None
    margin: float | None
    tied: tuple[int, ...]

    @property
    def parent(self) -> str | None:
        """Name of the winner, None where there is no single one."""
        return None if self.winner is None else self.candidates[self.winner]


@dataclass(frozen=True, eq=False)
class LineageScores:
    """Scores of every candidate for every child.

    Attributes:
        candidates: Names, k of them.
        children: Names, c of them.
        values: `[k, c]`, float64: larger for nearer, comparable within a column only.
        replaced: `[k, c]`: whether the approximation was not finite, so that the plain score stands in its place.
        spec: The method.
    """

    candidates: tuple[str, ...]
    children: tuple[str, ...]
    values: np.ndarray
    replaced: np.ndarray
    spec: Spec

    def best(self) -> tuple[BestParent, ...]:
        """The best candidate of each child."""
        return tuple(self._best(i) for i in range(len(self.children)))

    def _best(self, column: int) -> BestParent:
        scores = self.values[:, column]
        tied = tuple(np.flatnonzero(scores == scores.max()).tolist())
        below = np.sort(scores)[::-1]
        return BestParent(
            child=self.children[column],
            candidates=self.candidates,
            scores=tuple(scores.tolist()),
            winner=tied[0] if len(tied) == 1 else None,
            margin=float(below[0] - below[1]) if len(below) > 1 else None,
            tied=tied,
        )


@dataclass(frozen=True)
class FineTuningApproximation:
    """Compare a child's features with the parent's after a first-order step along the difference of their weights.

    With features F of the probes, weights p of a candidate and c of the child, and s a similarity, the forms score

    - `plain`: `s(F(p), F(c))`;
    - `linear`: `s(F(p) + alpha J (c - p), F(c))`, J being the derivative of F in the weights at p. From the true
      parent a short fine-tuning is nearly this step; from any other candidate the step leads astray;
    - `taylor`: `s(F(p), F(c)) + alpha <ds/dF, J (c - p)>`, the published form. Nothing bounds the second term, so a
      wrong candidate wins once alpha is large;
    - `direction`: the cosine of `J (c - p)` and `F(c) - F(p)`, both centred over the probes: whether the step leads
      where the child went, however far. The similarity plays no part;
    - `combined`: `plain` and `linear` with a norm, `linear` with `cka`, and `direction`, pooled by `pooled_tails`: in
      which of them some candidate stands out is seen from the candidates themselves. Needs all candidates at once
      (`matrix`, `best_parent`).

    No Jacobian is formed: `linear` takes one forward derivative per child, many at once and on one pass through the
    parent; `taylor` one backward pass per pair. Memory: `chunk` times that of one pass for `linear`, that of one
    backward pass for `taylor`, and the features of all children.

    Norms are best among independently trained candidates. Among fine-tunes of one root use `cka` or `dc`: there the
    linear step from the right candidate can overshoot, which norms penalise.

    Parent and child must share architecture, names of parameters, and the order of their hidden units; heads may
    differ. Weights of the head and buffers (running statistics) are no part of the difference.

    Attributes:
        form: `linear`, `taylor`, `plain`, `direction` or `combined`.
        similarity: `l1`, `l2`, `lp`, `lse`, `linf` (not with `taylor`), `cka` or `dc`.
        alpha: Length of the step; None takes 1 for `linear` and 0.01 for `taylor`. Other forms take none.
        bounded: For `linear` with `cka` and `dc`: a step that changes the features by more than they differ from the
            child's is shortened to that. These two do not depend on the length of a step, and a long one carries so
            much of the child's weights into any candidate's features that they agree. Norms are not affected.
        power: Of `lp`.
        temperature: Of `lse`.
        layer: A module whose output is compared; empty for what enters the head (the last linear or convolution
            module that is run); `all` for every layer, where scores are ranks among the candidates, averaged.
        batch: Probes at once; changes no number beyond rounding.
        chunk: Children differentiated at once; changes no number beyond rounding.

    Source: Yu and Wang 2024 (Neural Lineage, CVPR), arXiv:2406.11129. `taylor` is the published form; `linear`, which
    scores the linearised features themselves, `direction`, `combined`, `all`, and the gradients of `cka` and `dc` are
    this project's.
    """

    form: Literal["linear", "taylor", "plain", "direction", "combined"] = "linear"
    similarity: Literal["l1", "l2", "lp", "lse", "linf", "cka", "dc"] = "l1"
    alpha: float | None = None
    bounded: bool = True
    power: float = 4.0
    temperature: float = 0.01
    layer: str = ""
    batch: int = field(default=256, compare=False)
    chunk: int = field(default=16, compare=False)

    name = "finetuning-approximation"
    version = 1

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise MisuseError(f"form must be one of {', '.join(FORMS)}, not {self.form!r}")
        if self.similarity not in SIMILARITIES:
            raise MisuseError(f"there is no similarity {self.similarity!r}. There are: {', '.join(SIMILARITIES)}")
        if not 1 <= self.power < np.inf or not 0 < self.temperature < np.inf:
            raise MisuseError(
                f"power must be at least 1 and temperature positive, not {self.power} and {self.temperature}"
            )
        if self.form not in ("linear", "taylor") and self.alpha is not None:
            raise MisuseError(f"the form {self.form} has no step to choose: omit alpha, or use form='linear'")
        if not np.isfinite(self.step):
            raise MisuseError(f"alpha must be finite, not {self.alpha}")
        if self.batch < 1 or self.chunk < 1:
            raise MisuseError(f"batch and chunk must be at least 1, not {self.batch} and {self.chunk}")
        if self.form == "combined" and self.similarity in ("cka", "dc"):
            raise MisuseError("the combined form takes a norm, and adds cka by itself: use l1")
        if self.form == "taylor" and self.similarity == "linf":
            raise MisuseError("the similarity linf has no gradient for the Taylor form: use lse, or form='linear'")

    @property
    def step(self) -> float:
        """Length of the step that is taken."""
        return ALPHA[self.form] if self.alpha is None else self.alpha

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters; what changes no number is left out."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return Spec(self.name, self.version, {**kept, "alpha": self.step})

    def __call__(self, parent: Model, children: Sequence[Model], probes: Probes) -> np.ndarray:
        """Scores of one candidate.

        Args:
            parent: The candidate.
            children: Networks that may come from it.
            probes: Inputs of the kind that the children were fine-tuned on.

        Returns:
            One score per child, float64 `[c]`, larger for nearer. They rank candidates for one child; between children
            they cannot be compared.

        Raises:
            MisuseError: If architectures do not fit each other or the probes, or `layer` is `all`, or `form` is
                `combined`.
        """
        if self.layer == "all" or self.form == "combined":
            what = "layer='all' averages ranks" if self.layer == "all" else "form='combined' compares scores"
            raise MisuseError(f"{what} among candidates: call matrix with all candidates")
        return self.matrix([parent], children, probes).values[0]

    @asked_plainly
    def matrix(self, candidates: Sequence[Model], children: Sequence[Model], probes: Probes) -> LineageScores:
        """Scores of every candidate for every child.

        Cost: two forward passes per model, and per pair one forward derivative or backward pass.

        Args:
            candidates: Possible parents.
            children: Networks that may come from them.
            probes: Inputs of the kind that the children were fine-tuned on, the same for all.

        Returns:
            The scores.

        Raises:
            MisuseError: If there are no candidates, children or probes, or architectures do not fit.
            StemmaError: If a network cannot be run, or scores overflow.
        """
        values, replaced = self._parts(candidates, children, probes)
        pooled = np.stack([pooled_tails(v) for v in values]) if self.form == "combined" else values[:, 0]
        names = tuple(m.name for m in candidates), tuple(m.name for m in children)
        return LineageScores(*names, _mean_rank(pooled) if self.layer == "all" else pooled[0], replaced, self.spec)

    def none_of_these(
        self, candidates: Sequence[Model], child: Model, probes: Probes, controls: Sequence[Model] = ()
    ) -> NoParent:
        """Test that a child comes from none of the candidates.

        How far its best candidate stands out is ranked among the same of networks that come from none of them: of the
        controls, asked about the same candidates; or, without controls, of each candidate, asked about the child and
        the other candidates. Were the child one more independent network, it would be exchangeable with these, and the
        p-value exact; a fine-tune is not exchangeable with candidates trained from scratch, so give controls for it.

        Cost: as `matrix` with all controls, or with all candidates, as further children.

        Args:
            candidates: At least 3 possible parents.
            child: The network in question.
            probes: Inputs of the kind that it was fine-tuned on.
            controls: Networks of its architecture, trained like it and from none of the candidates.

        Returns:
            The p-value, and the smallest that this number of networks could give.

        Raises:
            MisuseError: As `matrix`, and if there are fewer than 3 candidates.
        """
        if len(candidates) < FEWEST:
            raise MisuseError(f"{len(candidates)} candidates show no spread to compare with: give at least {FEWEST}")
        asked = [child, *(controls or candidates)]
        values, _ = self._parts(candidates if controls else asked, asked, probes)
        parts = values.reshape(-1, *values.shape[2:])
        return NoParent.of(parts, [m.name for m in asked], [m.name for m in candidates], own=not controls)

    def _parts(
        self, candidates: Sequence[Model], children: Sequence[Model], probes: Probes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[layers, forms, k, c]`, and where the approximation was not finite `[k, c]`."""
        _check(candidates, children, probes)
        rows: list[list[np.ndarray]] = []
        replaced = np.zeros((len(candidates), len(children)), bool)
        made = [self._bodies_of(child, probes) for child in children]
        for i, candidate in enumerate(candidates):
            layers = self._bodies_of(candidate, probes)
            odd = next((c for c, m in zip(children, made, strict=True) if len(m) != len(layers)), None)
            if odd is not None:
                raise MisuseError(f"{candidate.name} and {odd.name} do not have the same number of layers")
            rows.append([])
            for k, body in enumerate(layers):
                scores, not_finite = self._scores_of(body, [m[k] for m in made], probes)
                rows[-1].append(scores)
                replaced[i] |= not_finite
        return np.array(rows).transpose(1, 2, 0, 3), replaced

    def best_parent(self, candidates: Sequence[Model], child: Model, probes: Probes) -> BestParent:
        """The candidate from which a child was most likely fine-tuned.

        Args:
            candidates: Possible parents.
            child: The network in question.
            probes: Inputs of the kind that it was fine-tuned on.

        Returns:
            All scores and the winner. This is a ranking, not a test: there is no p-value, and a candidate wins even if
            none is the parent.

        Raises:
            MisuseError: As `matrix`.
        """
        return self.matrix(candidates, [child], probes).best()[0]

    def _bodies_of(self, model: Model, probes: Probes) -> "tuple[Body, ...]":
        from stemma.kinship.function.network_body import bodies_of_all_layers, body_up_to

        return bodies_of_all_layers(model, probes) if self.layer == "all" else (body_up_to(model, probes, self.layer),)

    def _scores_of(self, parent: "Body", children: "Sequence[Body]", probes: Probes) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[forms, c]` of one candidate at one layer, and which were not finite: they use the plain form."""
        import torch

        from stemma.kinship.function.feature_similarities import similarity

        measure = similarity(self.similarity, self.power, self.temperature)
        own = parent.features_of_all(probes, self.batch)
        scores, replaced = [], []
        for start in range(0, len(children), self.chunk):
            chunk = children[start : start + self.chunk]
            theirs = torch.stack(
                [_check_same_features(parent, own, c, c.features_of_all(probes, self.batch)) for c in chunk]
            )
            plain = measure.score(measure.value(own, theirs))
            if not torch.isfinite(plain).all():
                raise StemmaError(
                    f"the features of {parent.network.name} and its children are too large for {self.similarity}: use "
                    "l1"
                )
            found = self._forms(measure, parent, chunk, own, theirs, probes, plain)
            not_finite = ~torch.isfinite(found).all(0)
            scores.append(found if self.form == "combined" else torch.where(not_finite, plain, found))
            replaced.append(not_finite)
        return torch.cat(scores, 1).numpy(), torch.cat(replaced).numpy()

    def _forms(
        self, measure: "AbstractSimilarity", parent: "Body", children: "Sequence[Body]", own: "torch.Tensor",
        theirs: "torch.Tensor", probes: Probes, plain: "torch.Tensor",
    ) -> "torch.Tensor":  # fmt: skip
        """Scores `[forms, c]`; of `combined` one row per part, each so that distances are on a logarithmic scale."""
        import torch

        from stemma.kinship.function.feature_similarities import similarity
        from stemma.kinship.function.network_body import difference, directional_derivatives, feature_tangents

        if self.form == "plain":
            return plain[None]
        added = [difference(parent, child) for child in children]
        if self.form == "taylor":
            slope = directional_derivatives(parent, added, measure.gradient(own, theirs), probes, self.batch)
            return measure.score(measure.value(own, theirs) + self.step * slope)[None]
        steps = self.step * feature_tangents(parent, added, probes, self.batch)
        if self.form == "direction":
            return direction(steps, theirs - own)[None]
        linear = self._linear(measure, steps, own, theirs)
        if self.form == "linear":
            return linear[None]
        apart = [-plain, -linear, 1 - self._linear(similarity("cka", 1, 1), steps, own, theirs)]
        angle = torch.atanh(direction(steps, theirs - own).clamp(-1 + 1e-12, 1 - 1e-12))
        return torch.stack([*(-torch.log(s.clamp(min=1e-300)) for s in apart), angle])

    def _linear(
        self, measure: "AbstractSimilarity", steps: "torch.Tensor", own: "torch.Tensor", theirs: "torch.Tensor"
    ) -> "torch.Tensor":
        short = shorten_steps(steps, theirs - own) if self.bounded and measure.scale_invariant else steps
        return measure.score(measure.value(own + short, theirs))


def shorten_steps(steps: "torch.Tensor", differences: "torch.Tensor") -> "torch.Tensor":
    """Feature steps `[c, n, d]`, shortened where they are longer than the matching difference."""
    length, longest = (t.flatten(1).norm(dim=1) for t in (steps, differences))
    return steps * (longest / length.clamp(min=1e-300)).clamp(max=1)[:, None, None]


def direction(steps: "torch.Tensor", differences: "torch.Tensor") -> "torch.Tensor":
    """Cosines `[c]` of feature steps `[c, n, d]` with the matching differences, both centred over the probes."""
    a, b = ((t - t.mean(1, keepdim=True)).flatten(1) for t in (steps, differences))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-300)


def _check(candidates: Sequence[Model], children: Sequence[Model], probes: Probes) -> None:
    for what, given in (("candidate", candidates), ("child", children)):
        if isinstance(given, Model) or not all(isinstance(m, Model) for m in given):
            raise MisuseError(f"each {what} must be in a list of models (stemma.load, stemma.from_module)")
        if not given:
            raise MisuseError(f"there is no {what}: give at least one model")
    if not isinstance(probes, Probes):
        raise MisuseError(f"probes must be made by stemma.Probes.of, but a {type(probes).__name__} was given")
    require_one_tokenizer(*candidates, *children)


def _check_same_features(parent: "Body", own: "torch.Tensor", child: "Body", theirs: "torch.Tensor") -> "torch.Tensor":
    if own.shape != theirs.shape:
        raise MisuseError(
            f"{parent.network.name} has {own.shape[1]} features per probe and {child.network.name} has "
            f"{theirs.shape[1]}: parent and child must have one architecture; only heads may differ"
        )
    return theirs


def _mean_rank(values: np.ndarray) -> np.ndarray:
    """Ranks among candidates (1 is farthest, ties share the mean), averaged over layers `[layers, k, c]`."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1).mean(0)
