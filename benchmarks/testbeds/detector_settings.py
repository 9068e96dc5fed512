"""Settings in which parents are looked for, on families that no detector was trained on, and the methods that look.

A setting is a pool of models of one architecture with closed questions (the parent, or an ancestor, is among the
candidates) or open ones. Every method gives each candidate a number, larger for nearer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from stemma.kinship.function.finetuning_approximation import FineTuningApproximation
from stemma.kinship.learned.detector import LineageDetector
from stemma.training.detector_questions import Pool, Question, pools
from stemma.training.detector_zoo import probes_for
from stemma.training.relatives import Relative, relatives_from_zoo
from stemma.zoo.lineages import Recipes, as_zoo, flat, forest, sibling_candidates

Scores = Callable[[Pool, Sequence[Question]], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Setting:
    """Questions about one pool.

    Attributes:
        pool: The models.
        questions: With their right answers; the number of candidates stands for none.
        family: Of the child of each question, for intervals.
    """

    pool: Pool
    questions: tuple[Question, ...]
    family: tuple[str, ...]


def read(relatives: Sequence[Relative]) -> Pool:
    """All models as one pool, asked and with one whole layer."""
    pool = pools(relatives, cap=12, per_layer=4096, probes=probes_for, matrix=True)
    assert len(pool) == 1, "a setting is of one architecture"
    return pool[0]


def made(recipes: Recipes, family: Callable[[str], str]) -> list[Relative]:
    """Relatives of a zoo whose families are told by name."""
    zoo = as_zoo(recipes)
    return [Relative(r.name, r.model, family(r.name), r.ancestors) for r in relatives_from_zoo(zoo, "zoo")]


def closed(pool: Pool, children: Sequence[int], candidates: Callable[[int], Sequence[int]]) -> Setting:
    """One question per child whose nearest ancestor is among its candidates."""
    questions, families = [], []
    for child in children:
        others = tuple(i for i in candidates(child) if i != child)
        label = next((others.index(a) for a in pool.ancestors[child] if a in others), len(others))
        questions.append(Question(child, others, label))
        families.append(pool.relatives[child].family)
    return Setting(pool, tuple(questions), tuple(families))


def independent(kind: str, seed: int, roots: int, children: int) -> Setting:
    """Parents trained apart, and their fine-tunes."""
    pool = read(made(flat(kind, seed, roots, children), lambda n: n.split("-finetune-")[0]))
    parents = [i for i in range(len(pool)) if not pool.ancestors[i]]
    return closed(pool, [i for i in range(len(pool)) if pool.ancestors[i]], lambda _: parents)


def siblings(kind: str, seed: int, families: int, candidates: int = 8, children: int = 4) -> Setting:
    """Parents that are fine-tunes of one root: only candidates of the child's own family are asked about."""
    recipes: Recipes = {}
    for i in range(families):
        recipes |= sibling_candidates(kind, 1000 * seed + i, candidates, children, name=f"family-{i}")
    pool = read(made(recipes, lambda n: n.split("/")[0]))
    depth = [len(a) for a in pool.ancestors]

    def asked(child: int) -> list[int]:
        home = pool.relatives[child].family
        return [i for i in range(len(pool)) if depth[i] == 1 and pool.relatives[i].family == home]

    return closed(pool, [i for i in range(len(pool)) if depth[i] == 2], asked)


def generations(kind: str, seed: int, forests: int) -> tuple[Pool, list[list[list[int]]]]:
    """Forests of five trees in four generations: positions by forest and generation."""
    recipes: Recipes = {}
    for i in range(forests):
        recipes |= forest(kind, 100 * seed + i, name=f"forest-{i}")
    pool = read(made(recipes, lambda n: n.rsplit("/", 1)[0]))
    rows: list[list[list[int]]] = [[[] for _ in range(4)] for _ in range(forests)]
    for i, r in enumerate(pool.relatives):
        rows[int(r.family.split("forest-")[1].split("/")[0])][len(pool.ancestors[i])].append(i)
    return pool, rows


def weight_l2(pool: Pool, questions: Sequence[Question]) -> list[np.ndarray]:
    """Minus the distance of all weights read."""
    total = np.sqrt(np.nansum(pool.squares, 0))
    return [-total[q.child, list(q.others)] for q in questions]


def weight_cosine(pool: Pool, questions: Sequence[Question]) -> list[np.ndarray]:
    """Cosine of all weights read."""
    square, length = np.nansum(pool.squares, 0), pool.views.lengths.sum(0)
    return [
        ((length[q.child] + length[list(q.others)] - square[q.child, list(q.others)]) / 2)
        / np.sqrt(length[q.child] * length[list(q.others)])
        for q in questions
    ]


def by_detector(detector: LineageDetector) -> Scores:
    """Probabilities, the last for no parent: unordered, or none of these."""

    def scores(pool: Pool, questions: Sequence[Question]) -> list[np.ndarray]:
        return [detector.probabilities(detector.logits([pool.arrays(q, detector.preset)]))[0] for q in questions]

    return scores


def by_features(form: str, similarity: str) -> Scores:
    """The learning-free method, on the 64 inputs that the detector sees too."""

    def scores(pool: Pool, questions: Sequence[Question]) -> list[np.ndarray]:
        method = FineTuningApproximation(form, similarity)  # ty: ignore[invalid-argument-type]
        probes = probes_for(pool.relatives[0].model)
        assert probes is not None
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, q in enumerate(questions):
            groups.setdefault(q.others, []).append(i)
        out: list[np.ndarray] = [np.zeros(0)] * len(questions)
        for others, rows in groups.items():
            models = [pool.relatives[i].model for i in others]
            found = method.matrix(models, [pool.relatives[questions[i].child].model for i in rows], probes)
            for column, i in enumerate(rows):
                out[i] = found.values[:, column]
        return out

    return scores


def right(setting: Setting, scores: Scores) -> np.ndarray:
    """Whether the highest candidate is the right one; none is not an answer."""
    found = scores(setting.pool, setting.questions)
    return np.array(
        [int(np.argmax(s[: len(q.others)])) == q.label for s, q in zip(found, setting.questions, strict=True)]
    )


def rate(hits: np.ndarray, families: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """A share with its n, and the wider of two 95 % intervals: exact binomial, and bootstrap over families."""
    hits = np.asarray(hits, float)
    if not len(hits):
        return {"n": 0}
    names = sorted(set(families))
    sums = {f: (hits[[g == f for g in families]].sum(), sum(g == f for g in families)) for f in names}
    table = np.array([sums[f] for f in names])
    drawn = table[np.random.default_rng(seed).integers(len(names), size=(2000, len(names)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    exact = binomtest(int(hits.sum()), len(hits)).proportion_ci()
    return {
        "n": len(hits),
        "families": len(names),
        "share": round(float(hits.mean()), 4),
        "low": round(float(min(low, exact.low)), 4),
        "high": round(float(max(high, exact.high)), 4),
    }


def table(setting: Setting, methods: Mapping[str, Scores]) -> dict[str, Any]:
    """Share of children whose ancestor comes first, per method."""
    size = sorted({len(q.others) for q in setting.questions})
    found = {name: rate(right(setting, scores), setting.family) for name, scores in methods.items()}
    return {"candidates": size, "children": len(setting.questions), "methods": found}
