"""Fingerprints of many networks at once, and their distances by the views of the unlearning test and by baselines.

The same numbers as `stemma.verification.distances.look`, for thousands of pairs; `twin` holds the two together.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import rel_entr, softmax

from stemma.checkpoints.model import Model
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.probes import Probes
from stemma.types import Spec
from stemma.verification.distances import VIEWS, ViewInputs, field_method, measure_distances, separation
from stemma.verification.unlearning import UnlearningTest
from stemma.zoo import cache
from stemma.zoo.memory import model_of
from testbeds.unlearning_models import CONFIG, Arrays, Data

TEST = UnlearningTest()


@dataclass(frozen=True, eq=False)
class Group:
    """What was seen of some networks.

    Attributes:
        answers: `[m, k, classes]` probabilities on the forget probes.
        curves: `[m, entries]` gradient fields, so scaled that a product is the mean cosine.
        grams: `[m, k * k]` centred Gram matrices of the last hidden layer, of length one.
        separation: `[m]`.
        accuracy: `[m]`, on the forget probes.
    """

    answers: np.ndarray
    curves: np.ndarray
    grams: np.ndarray
    separation: np.ndarray
    accuracy: np.ndarray

    def __len__(self) -> int:
        return len(self.answers)


def questions(data: Data, probes: int) -> ViewInputs:
    """Forget probes are images that originals were trained on; twice as many of the rest."""
    forget = Probes.of(data.forget.inputs[:probes], data.forget.targets[:probes])
    rest = Probes.of(data.retained.inputs[: 2 * probes], data.retained.targets[: 2 * probes])
    return ViewInputs(forget, rest, TEST.steps, TEST.ridge)


def models(nets: Sequence[Arrays], name: str = "net") -> list[Model]:
    return [model_of(f"{name}-{i}", net, CONFIG) for i, net in enumerate(nets)]


def seen(data: Data, nets: Sequence[Arrays], probes: int) -> Group:
    """What is seen of some networks, from the cache or by asking them."""
    content = hashlib.sha256(Path(__file__).read_bytes())
    for net in nets:
        for name in sorted(net):
            content.update(np.ascontiguousarray(net[name]).data)
    asked = questions(data, probes)
    methods = [m.spec for m in (Outputs(), Activations(), field_method(asked.steps))]
    recipe = {"nets": content.hexdigest(), "probes": asked.forget.digest, "methods": methods, "ridge": asked.ridge}
    digest = Spec("unlearning-group", cache.VERSION, recipe).digest
    found, _ = cache.recall(digest, lambda: (vars(ask(asked, nets)), {}), keep=True)
    return Group(**found)


def ask(asked: ViewInputs, nets: Sequence[Arrays]) -> Group:
    """Ask every network."""
    assert asked.retained is not None
    method, parts = field_method(asked.steps), []
    for model in models(nets):
        out = Outputs()(model, asked.forget).values["outputs"]
        inside = [Activations()(model, p).values["features"] for p in (asked.forget, asked.retained)]
        parts.append((
            softmax(out.astype(np.float64), axis=-1),
            scaled(method(model, asked.forget).values),
            centred_gram(inside[0]),
            separation(*inside, asked.ridge),
            (out.argmax(1) == asked.forget.labels).mean(),
        ))  # fmt: skip
    return Group(*(np.array(p) for p in zip(*parts, strict=True)))


def scaled(field: dict[str, np.ndarray]) -> np.ndarray:
    """Curves of which the product of two is one minus their `FieldCosine` distance."""
    assert field["defined"].all()
    curve = field["curve"].astype(np.float64)
    weights = field["weights"] / field["weights"].sum(1, keepdims=True) / len(curve)
    return (
        (curve / np.linalg.norm(curve, axis=2, keepdims=True) * np.sqrt(weights)[..., None]).astype(np.float32).ravel()
    )


def centred_gram(features: np.ndarray) -> np.ndarray:
    """Of which the product of two is the debiased linear CKA (Szekely and Rizzo 2014)."""
    x = features.astype(np.float64)
    n, g = len(x), x @ x.T
    np.fill_diagonal(g, 0)
    rows = g.sum(1) / (n - 2)
    g = g - rows - rows[:, None] + g.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(g, 0)
    return (g / np.linalg.norm(g)).ravel()


def between(a: Group, b: Group) -> dict[str, np.ndarray]:
    """Distances `[a, b]` by view, and by the trivial baselines."""
    return {
        "outputs": rooted_divergence(a.answers, b.answers),
        "field": 1 - np.clip(a.curves.astype(np.float64) @ b.curves.astype(np.float64).T, -1, 1),
        "features": 1 - np.clip(a.grams @ b.grams.T, -1, 1),
        "separation": np.abs(a.separation[:, None] - b.separation),
        "label disagreement": np.stack([(p.argmax(1) != b.answers.argmax(2)).mean(1) for p in a.answers]),
        "softmax difference": np.stack([np.abs(p - b.answers).sum(2).mean(1) / 2 for p in a.answers]),
    }


def rooted_divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over probes of the Jensen-Shannon distance."""
    out = np.empty((len(a), len(b)))
    for i, p in enumerate(a):
        middle = (p + b) / 2
        bits = (rel_entr(p, middle) + rel_entr(b, middle)).sum(2) / (2 * np.log(2))
        out[i] = np.sqrt(np.clip(bits, 0, 1)).mean(1)
    return out


def published(data: Data, pairs: Sequence[tuple[Arrays, Arrays]], probes: int) -> np.ndarray:
    """The published figure: official field of the forget class's logit, 50 steps, between two networks of each pair."""
    method = GradientField.official(potential="label")
    asked = questions(data, probes).forget
    known: dict[int, np.ndarray] = {}

    def curve(net: Arrays) -> np.ndarray:
        if id(net) not in known:
            c = method(models([net])[0], asked).values["curve"].astype(np.float64)
            length = np.linalg.norm(c, axis=2, keepdims=True)
            known[id(net)] = (c / np.where(length > 0, length, 1)).astype(np.float32)
        return known[id(net)]

    return np.array([1 - (curve(a) * curve(b)).sum(2, dtype=np.float64).mean() for a, b in pairs])


def twin(data: Data, nets: Sequence[Arrays], group: Group, probes: int) -> float:
    """Largest difference between these distances and those of the shipped test, on a few networks."""
    shipped = measure_distances(models(nets), questions(data, probes), VIEWS).distances
    few = Group(*(getattr(group, n)[: len(nets)] for n in ("answers", "curves", "grams", "separation", "accuracy")))
    own = between(few, few)
    return max(float(np.abs(shipped[v] - own[v] * (1 - np.eye(len(nets)))).max()) for v in VIEWS)


def exact_verdicts(groups: Mapping[str, Group]) -> dict[str, list[str]]:
    """What the exact test says of each network of each group, its original being that of the same place.

    Args:
        groups: Among them `retrained`, and `nothing done`: the originals.

    Returns:
        The verdicts, by group other than `retrained`.
    """
    gold = len(groups["retrained"])
    gold_to_gold, first_to_gold = (between(groups[n], groups["retrained"]) for n in ("retrained", "nothing done"))
    out: dict[str, list[str]] = {}
    for name, group in groups.items():
        if name == "retrained":
            continue
        to_gold, to_first = (between(group, groups[n]) for n in ("retrained", "nothing done"))
        out[name] = []
        for i in range(len(group)):
            pools = {}
            for view in TEST.views:
                d = np.zeros((gold + 2, gold + 2))
                d[0, 1:-1], d[0, -1] = to_gold[view][i], to_first[view][i, i]
                d[1:-1, 1:-1], d[1:-1, -1] = gold_to_gold[view], first_to_gold[view][i]
                pools[view] = np.triu(d, 1) + np.triu(d, 1).T
            out[name].append(TEST.conclude(pools, 1).verdict.value)
    return out
