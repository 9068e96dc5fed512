"""Training of Model DNA: the encoder of fragments and the provenance classifier, jointly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.errors import MisuseError
from stemma.fingerprints.canonical_outputs import FEATURES
from stemma.fingerprints.dna import pack, unpack
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.dna_closeness import ProvenanceClassifier
from stemma.kinship.function.dna_population import (
    MAX_DIRECTIONS,
    MODELS_PER_DIRECTION,
    SHRINK,
    Population,
    channel_correlations,
)
from stemma.training.dna_groups import OTHER_ARCHITECTURE_WAYS, Group

Progress = Callable[[str, int, int | None], None]

SIMILARITIES = ("infonce", "pair-margin", "triplet", "none")
"""Losses on the similarity of DNAs; `none` leaves the classifier's alone."""

TEXT_HIDDEN = 24
"""Hidden units of an encoder for text, which benefits from them; images do not."""


@dataclass(frozen=True)
class Training:
    """How encoder and classifier are trained.

    Attributes:
        channels: Of the encoder.
        hidden: Hidden units of the encoder; 0 is a linear map.
        inner: Hidden units of the classifier.
        steps: Updates.
        sources: Sources in one update.
        probes: Probes drawn for one update.
        rate: Highest rate of AdamW, falling as a cosine.
        weight_decay: Of AdamW.
        similarity: One of `SIMILARITIES`; the classifier's loss alone did best in `benchmarks/dna.py`.
        weight: Of the similarity loss beside the classifier's.
        classify: Learn the classifier; without, only the similarity loss is there.
        temperature: Of InfoNCE.
        margin: Of the pair margin and of the triplet.
        seed: Of start and order.
    """

    channels: int = 8
    hidden: int = 0
    inner: int = 16
    steps: int = 2000
    sources: int = 16
    probes: int = 256
    rate: float = 5e-3
    weight_decay: float = 1e-3
    similarity: str = "none"
    weight: float = 1.0
    classify: bool = True
    temperature: float = 0.05
    margin: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise MisuseError(f"no similarity loss is called '{self.similarity}'. There are: {', '.join(SIMILARITIES)}")
        if self.similarity == "none" and not self.classify:
            raise MisuseError("without a similarity loss and without a classifier nothing is learnt: keep one of them")


class _Network(torch.nn.Module):
    """Encoder and classifier as torch trains them."""

    def __init__(self, training: Training):
        super().__init__()
        f, k, h, i = len(FEATURES), training.channels, training.hidden, training.inner

        def random_parameter(*shape: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape) * scale)

        self.linear = random_parameter(f, k, scale=f**-0.5)
        self.inner, self.outer = random_parameter(f + 1, h, scale=f**-0.5), random_parameter(h, k, scale=0.01)
        self.kin_inner, self.kin_bias = random_parameter(k, i, scale=3.0), random_parameter(i, scale=0.1)
        self.kin_outer, self.kin_linear = random_parameter(i, scale=0.1), torch.nn.Parameter(torch.full((k,), 3.0))
        self.kin_offset = torch.nn.Parameter(torch.full((1,), -2.0))
        self.shares = torch.nn.Parameter(torch.zeros(k))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.linear + torch.tanh(x @ self.inner[:-1] + self.inner[-1]) @ self.outer
        return (y - y.mean(-2, keepdim=True)) / (y.std(-2, keepdim=True, correction=0) + 1e-6)

    def similarity(self, correlations: torch.Tensor) -> torch.Tensor:
        return correlations @ self.shares.softmax(0)

    def log_odds(self, correlations: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(correlations @ self.kin_inner + self.kin_bias)
        return hidden @ self.kin_outer + correlations @ self.kin_linear + self.kin_offset

    def finished(self, classify: bool, about: Mapping[str, Any]) -> FragmentEncoder:
        arrays = {n: p.detach().numpy().copy() for n, p in self.named_parameters()}
        names = {n: n.replace("_", ".") for n in arrays if n.startswith("kin_")} if classify else {}
        rest = {new: arrays[n] for n, new in names.items()}
        return FragmentEncoder(arrays["linear"], arrays["inner"], arrays["outer"], rest, about)


def train(
    groups: Sequence[Group],
    training: Training | None = None,
    made: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FragmentEncoder:
    """Train encoder and classifier on groups whose sources are known.

    In every update some sources of one group and a few of others are compared with children of one kind; the other
    sources of all groups of that kind of network are the reference population, as control models are when the DNA is
    used.
    Cost: 20 ms an update.

    Args:
        groups: Training data; none of their sources may be evaluated later.
        training: Sizes, losses and length.
        made: Notes about where the groups come from.
        progress: Called with how many updates are done, and of how many.

    Returns:
        The encoder with its classifier.

    Raises:
        MisuseError: If a group has too few sources.
    """
    training = training or Training()
    for g in groups:
        if len(g.rows("source")) < 8:
            raise MisuseError(f"{g.name} has {len(g.rows('source'))} sources: a DNA is trained on groups of at least 8")
    if not groups:
        raise MisuseError("there is no group to train a DNA on: give a zoo with at least one")
    rng = np.random.default_rng([training.seed, 53])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = _Network(training)
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=training.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
        tables = [torch.from_numpy(g.features) for g in groups]
        for step in range(training.steps):
            loss = _loss(network, tables, groups, rng, training)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None and step % 20 == 0:
                progress("training the encoder", step, training.steps)
    return network.finished(training.classify, {**(made or {}), "training": asdict(training)})


def _loss(
    network: _Network,
    tables: Sequence[torch.Tensor],
    groups: Sequence[Group],
    rng: np.random.Generator,
    training: Training,
) -> torch.Tensor:
    """Loss of one update: some children of one group, their sources, sources of other data, and the population."""
    chosen_group = int(rng.integers(len(groups)))
    way = groups[chosen_group].ways[int(rng.integers(len(groups[chosen_group].ways)))]
    same_kind = [i for i, g in enumerate(groups) if g.kind == groups[chosen_group].kind]
    chosen = {
        i: _draw_sources(groups[i], way, training.sources if i == chosen_group else training.sources // 4, rng)
        for i in same_kind
    }
    probes = torch.from_numpy(
        np.sort(rng.choice(tables[chosen_group].shape[1], min(training.probes, tables[chosen_group].shape[1]), False))
    )

    def encoded(at: int, rows: np.ndarray) -> torch.Tensor:
        return network.encode(tables[at][torch.from_numpy(rows)][:, probes])

    children = groups[chosen_group].at(way, chosen[chosen_group])
    a = torch.cat(
        [
            encoded(i, groups[i].at("source", chosen[i]))
            for i in (chosen_group, *(k for k in same_kind if k != chosen_group))
        ]
    )
    population_groups = torch.cat([encoded(i, population_rows(groups[i], way, chosen[i])) for i in same_kind])
    correlations = _correlations(a, encoded(chosen_group, children), population_groups)
    n = len(children)
    total = torch.zeros(())
    if training.similarity != "none":
        total = total + training.weight * _similarity_loss(network.similarity(correlations), training)
    if training.classify:
        truth = torch.eye(len(a), n)
        total = total + F.binary_cross_entropy_with_logits(
            network.log_odds(correlations), truth, pos_weight=torch.tensor(float(len(a) - 1))
        )
    return total


def _draw_sources(group: Group, way: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sources to compare with; at least half stay in the population."""
    known = np.intersect1d(group.source[group.rows("source")], group.source[group.rows(way)])
    return rng.choice(known, min(count, len(known) // 2), replace=False)


def population_rows(group: Group, way: str, chosen: np.ndarray) -> np.ndarray:
    """Positions of the reference population: sources that were not chosen, or models of the child's architecture."""
    rows = group.rows("stranger" if way in OTHER_ARCHITECTURE_WAYS else "source")
    return rows[~np.isin(group.source[rows], chosen)]


def _correlations(a: torch.Tensor, b: torch.Tensor, population_groups: torch.Tensor) -> torch.Tensor:
    """As `Population` and `likeness` compute it: `[a, b, channels]`."""
    mean, spread = population_groups.mean(0), population_groups.std(0, correction=0)
    spread = spread + SHRINK * spread.median()

    def unit(y: torch.Tensor) -> torch.Tensor:
        return y / (y.norm(dim=-2, keepdim=True) + 1e-9)

    def against(x: torch.Tensor) -> torch.Tensor:
        y = (x - mean) / spread
        return unit(y - y.mean(-2, keepdim=True))

    count = min(MAX_DIRECTIONS, len(population_groups) // MODELS_PER_DIRECTION)
    a_scores, b_scores = against(a), against(b)
    if count:
        with torch.no_grad():  # directions are taken as they are
            population_scores = against(population_groups).movedim(-1, 0)
            directions = torch.linalg.svd(
                population_scores - population_scores.mean(1, keepdim=True), full_matrices=False
            )[2][:, :count]
        a_scores, b_scores = (
            unit(y - torch.einsum("mck,ckp->mpc", torch.einsum("mpc,ckp->mck", y, directions), directions))
            for y in (a_scores, b_scores)
        )
    return torch.einsum("apc,bpc->abc", a_scores, b_scores)


def _similarity_loss(s: torch.Tensor, training: Training) -> torch.Tensor:
    """Of similarities `[sources, children]`, of which the first sources belong to the children in order."""
    n = s.shape[1]
    truth = torch.arange(n)
    own, eye = s[:n].diagonal(), torch.eye(*s.shape, dtype=torch.bool)
    if training.similarity == "infonce":
        return F.cross_entropy(s[:n] / training.temperature, truth) + F.cross_entropy(s.T / training.temperature, truth)
    if training.similarity == "pair-margin":
        others = F.relu(s - training.margin).square().masked_fill(eye, 0).sum() / max(1, s.numel() - n)
        return 10 * ((1 - own).square().mean() + others)
    return 10 * F.relu(training.margin - own[None] + s).masked_fill(eye, 0).mean()


def populations(encoder: FragmentEncoder, population_groups: Sequence[Group], kind: str) -> dict[bool, Population]:
    """Reference populations of a kind of network: sources, and models of the other architecture for its children.

    A model in its own population looks unlike all others, so that none of them may be evaluated.

    Args:
        encoder: Makes the codes.
        population_groups: Groups whose members are not evaluated.
        kind: Of the networks.

    Returns:
        Populations by whether they are of the other architecture.
    """
    codes = {False: [], True: []}
    for g in population_groups:
        if g.kind == kind:
            for other_architecture, way in ((False, "source"), (True, "stranger")):
                codes[other_architecture] += [unpack(pack(encoder(g.features[i]))) for i in g.rows(way)]
    sources = codes[False]
    return {
        other_architecture: Population.of(np.stack(found or sources).astype(np.float64))
        for other_architecture, found in codes.items()
    }


def score_pairs(
    encoder: FragmentEncoder, groups: Sequence[Group], population_groups: Sequence[Group]
) -> Iterator[dict[str, Any]]:
    """Scores of every source and child of each kind.

    Args:
        encoder: With or without a classifier.
        groups: Sources that it was not trained on.
        population_groups: Other groups, which are the population.

    Yields:
        One row per (source, child): whether it is the child's own, whether it learned the same data, the way, the
        log-odds (or mean correlation).
    """
    classifier = ProvenanceClassifier(encoder.classifier)
    codes = [np.stack([unpack(pack(encoder(f))) for f in g.features]).astype(np.float64) for g in groups]
    for kind in dict.fromkeys(g.kind for g in groups):
        population_of, same_kind = (
            populations(encoder, population_groups, kind),
            [i for i, g in enumerate(groups) if g.kind == kind],
        )
        for at in same_kind:
            group = groups[at]
            for way in group.ways:
                population, rows = population_of[way in OTHER_ARCHITECTURE_WAYS], group.rows(way)
                child_codes = population(codes[at][rows])
                for i in same_kind:
                    parents = groups[i].rows("source")
                    values = classifier.log_odds(channel_correlations(population(codes[i][parents]), child_codes))
                    for j, parent in enumerate(parents):
                        for k, row in enumerate(rows):
                            is_source = i == at and groups[i].source[parent] == group.source[row]
                            yield {"group": group.name, "way": way, "child": int(row), "own": bool(is_source),
                                   "same data": i == at, "value": float(values[j, k])}  # fmt: skip


def split_sources(groups: Sequence[Group], share: float = 0.25) -> tuple[list[Group], list[Group]]:
    """Split groups by source into training and evaluation groups; groups of fewer than 12 sources are trained on."""
    learning, held_out = [], []
    for g in groups:
        count = len(g.rows("source"))
        boundary = count - round(share * count) if count >= 12 else count
        learning.append(g.only(g.source % count < boundary))
        if boundary < count:
            held_out.append(g.only(g.source % count >= boundary))
    return learning, held_out


def evaluate(encoder: FragmentEncoder, groups: Sequence[Group], population_groups: Sequence[Group]) -> dict[str, Any]:
    """How well a child's source is distinguished from other sources of the same data.

    Args:
        encoder: To be evaluated.
        groups: Sources that it was not trained on.
        population_groups: Other groups, which are the population.

    Returns:
        `auroc` over pairs of one data set and `auroc_all` over all, `top_1` over children, and the number of sources;
        None without groups.
    """
    from scipy.stats import rankdata

    rows = list(score_pairs(encoder, groups, population_groups))
    if not rows:
        return {"auroc": None, "auroc_all": None, "top_1": None, "sources": 0}
    is_source, same_data, value = (np.array([r[k] for r in rows]) for k in ("own", "same data", "value"))

    def auroc(chosen: np.ndarray) -> float:
        ranks, positive = rankdata(value[chosen]), is_source[chosen]
        n, m = int(positive.sum()), int((~positive).sum())
        return round((float(ranks[positive].sum()) - n * (n + 1) / 2) / max(1, n * m), 4)

    best: dict[tuple[Any, ...], tuple[float, bool]] = {}
    for r in rows:
        child = r["group"], r["child"]
        best[child] = max(best.get(child, (-np.inf, False)), (float(r["value"]), bool(r["own"])))
    top = float(np.mean([first for _, first in best.values()]))
    return {"auroc": auroc(same_data), "auroc_all": auroc(np.ones(len(rows), bool)), "top_1": round(top, 4),
            "sources": sum(len(g.rows("source")) for g in groups)}  # fmt: skip
