"""Training of the learned part of DNA: the encoder of fragments and the provenance classifier, jointly."""

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
from stemma.kinship.function.model_dna import (
    MAX_DIRECTIONS,
    MODELS_PER_DIRECTION,
    SHRINK,
    Population,
    ProvenanceClassifier,
    channel_correlations,
)
from stemma.training.dna_groups import STRANGER_WAYS, Group

Progress = Callable[[str, int, int | None], None]

SIMILARITIES = ("infonce", "pair-margin", "triplet", "none")
"""Losses on the similarity of DNAs; `none` leaves the classifier's alone."""

TEXT_HIDDEN = 24
"""Hidden units of an encoder of texts: these gain by them, pictures do not."""


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

    channels: int = 4
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


class _Learnt(torch.nn.Module):
    """Encoder and classifier as torch trains them."""

    def __init__(self, how: Training):
        super().__init__()
        f, k, h, i = len(FEATURES), how.channels, how.hidden, how.inner

        def drawn(*shape: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape) * scale)

        self.linear = drawn(f, k, scale=f**-0.5)
        self.inner, self.outer = drawn(f + 1, h, scale=f**-0.5), drawn(h, k, scale=0.01)
        self.kin_inner, self.kin_bias = drawn(k, i, scale=3.0), drawn(i, scale=0.1)
        self.kin_outer, self.kin_linear = drawn(i, scale=0.1), torch.nn.Parameter(torch.full((k,), 3.0))
        self.kin_offset = torch.nn.Parameter(torch.full((1,), -2.0))
        self.shares = torch.nn.Parameter(torch.zeros(k))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.linear + torch.tanh(x @ self.inner[:-1] + self.inner[-1]) @ self.outer
        return (y - y.mean(-2, keepdim=True)) / (y.std(-2, keepdim=True, correction=0) + 1e-6)

    def similarity(self, correlations: torch.Tensor) -> torch.Tensor:
        return correlations @ self.shares.softmax(0)

    def kin(self, correlations: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(correlations @ self.kin_inner + self.kin_bias)
        return hidden @ self.kin_outer + correlations @ self.kin_linear + self.kin_offset

    def finished(self, classify: bool, about: Mapping[str, Any]) -> FragmentEncoder:
        arrays = {n: p.detach().numpy().copy() for n, p in self.named_parameters()}
        names = {n: n.replace("_", ".") for n in arrays if n.startswith("kin_")} if classify else {}
        rest = {new: arrays[n] for n, new in names.items()}
        return FragmentEncoder(arrays["linear"], arrays["inner"], arrays["outer"], rest, about)


def train(
    groups: Sequence[Group],
    how: Training | None = None,
    made: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FragmentEncoder:
    """Train encoder and classifier on groups whose sources are known.

    In every update some sources of one group and a few of others are asked for among children of one way; the other
    sources of all groups of that kind are the population that all are seen against, as null models are when the DNA is
    used. Cost: 20 ms an update.

    Args:
        groups: What to learn from; none of their sources may be asked about later.
        how: Sizes, losses and length.
        made: What to note in the encoder about where the groups come from.
        progress: Told how many updates are done, and of how many.

    Returns:
        The encoder with its classifier.

    Raises:
        MisuseError: If a group has too few sources.
    """
    how = how or Training()
    for g in groups:
        if len(g.rows("source")) < 8:
            raise MisuseError(f"{g.name} has {len(g.rows('source'))} sources: a DNA is trained on groups of at least 8")
    if not groups:
        raise MisuseError("there is no group to train a DNA on: give a zoo with at least one")
    rng = np.random.default_rng([how.seed, 53])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        network = _Learnt(how)
        optimizer = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=how.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
        tables = [torch.from_numpy(g.features) for g in groups]
        for step in range(how.steps):
            loss = _loss(network, tables, groups, rng, how)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None and step % 20 == 0:
                progress("training the encoder", step, how.steps)
    return network.finished(how.classify, {**(made or {}), "training": asdict(how)})


def _loss(
    network: _Learnt, tables: Sequence[torch.Tensor], groups: Sequence[Group], rng: np.random.Generator, how: Training
) -> torch.Tensor:
    """One update: some children of one group, their sources, sources of other data, and everybody else beside them."""
    home = int(rng.integers(len(groups)))
    way = groups[home].ways[int(rng.integers(len(groups[home].ways)))]
    kin = [i for i, g in enumerate(groups) if g.kind == groups[home].kind]
    chosen = {i: _drawn(groups[i], way, how.sources if i == home else how.sources // 4, rng) for i in kin}
    probes = torch.from_numpy(np.sort(rng.choice(tables[home].shape[1], min(how.probes, tables[home].shape[1]), False)))

    def encoded(at: int, rows: np.ndarray) -> torch.Tensor:
        return network.encode(tables[at][torch.from_numpy(rows)][:, probes])

    children = groups[home].at(way, chosen[home])
    a = torch.cat([encoded(i, groups[i].at("source", chosen[i])) for i in (home, *(k for k in kin if k != home))])
    beside = torch.cat([encoded(i, population_rows(groups[i], way, chosen[i])) for i in kin])
    correlations = _correlations(a, encoded(home, children), beside)
    n = len(children)
    total = torch.zeros(())
    if how.similarity != "none":
        total = total + how.weight * _similarity_loss(network.similarity(correlations), how)
    if how.classify:
        truth = torch.eye(len(a), n)
        total = total + F.binary_cross_entropy_with_logits(
            network.kin(correlations), truth, pos_weight=torch.tensor(float(len(a) - 1))
        )
    return total


def _drawn(group: Group, way: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sources that are asked for; at least half stay beside."""
    known = np.intersect1d(group.source[group.rows("source")], group.source[group.rows(way)])
    return rng.choice(known, min(count, len(known) // 2), replace=False)


def population_rows(group: Group, way: str, chosen: np.ndarray) -> np.ndarray:
    """Whom everything is seen against: sources that are not asked for, or strangers of the child's architecture.

    Args:
        group: Of the child's kind.
        way: How the child was made.
        chosen: Sources that are asked for.

    Returns:
        Positions in the group.
    """
    rows = group.rows("stranger" if way in STRANGER_WAYS else "source")
    return rows[~np.isin(group.source[rows], chosen)]


def _correlations(a: torch.Tensor, b: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """As `Population` and `channel_correlations` do it: `[a, b, channels]`."""
    mean, spread = beside.mean(0), beside.std(0, correction=0)
    spread = spread + SHRINK * spread.median()

    def unit(y: torch.Tensor) -> torch.Tensor:
        return y / (y.norm(dim=-2, keepdim=True) + 1e-9)

    def against(x: torch.Tensor) -> torch.Tensor:
        y = (x - mean) / spread
        return unit(y - y.mean(-2, keepdim=True))

    count = min(MAX_DIRECTIONS, len(beside) // MODELS_PER_DIRECTION)
    one, two = against(a), against(b)
    if count:
        with torch.no_grad():  # directions are taken as they are
            seen = against(beside).movedim(-1, 0)
            directions = torch.linalg.svd(seen - seen.mean(1, keepdim=True), full_matrices=False)[2][:, :count]
        one, two = (
            unit(y - torch.einsum("mck,ckp->mpc", torch.einsum("mpc,ckp->mck", y, directions), directions))
            for y in (one, two)
        )
    return torch.einsum("apc,bpc->abc", one, two)


def _similarity_loss(s: torch.Tensor, how: Training) -> torch.Tensor:
    """Of similarities `[sources, children]`, of which the first are one another's."""
    n = s.shape[1]
    truth = torch.arange(n)
    own, eye = s[:n].diagonal(), torch.eye(*s.shape, dtype=torch.bool)
    if how.similarity == "infonce":
        return F.cross_entropy(s[:n] / how.temperature, truth) + F.cross_entropy(s.T / how.temperature, truth)
    if how.similarity == "pair-margin":
        others = F.relu(s - how.margin).square().masked_fill(eye, 0).sum() / max(1, s.numel() - n)
        return 10 * ((1 - own).square().mean() + others)
    return 10 * F.relu(how.margin - own[None] + s).masked_fill(eye, 0).mean()


def populations(encoder: FragmentEncoder, beside: Sequence[Group], kind: str) -> dict[bool, Population]:
    """Whom models of a kind are seen against: sources, and strangers for children of their architecture.

    None of them may be asked about: a model that is in its own population looks unlike everybody.

    Args:
        encoder: Makes the codes.
        beside: Groups whose members are not asked about.
        kind: Of the networks.

    Returns:
        Populations by whether they are of strangers.
    """
    codes = {False: [], True: []}
    for g in beside:
        if g.kind == kind:
            for strange, way in ((False, "source"), (True, "stranger")):
                codes[strange] += [unpack(pack(encoder(g.features[i]))) for i in g.rows(way)]
    sources = codes[False]
    return {strange: Population.of(np.stack(found or sources).astype(np.float64)) for strange, found in codes.items()}


def answered(encoder: FragmentEncoder, groups: Sequence[Group], beside: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """What the encoder says of every source and child of each kind.

    Args:
        encoder: With or without a classifier.
        groups: Sources that it has not seen.
        beside: Other groups, which are the population.

    Yields:
        One row per (source, child): whether it is the child's own, whether it learnt the same data, the way, the
        log-odds (or mean correlation).
    """
    judge = ProvenanceClassifier(encoder.classifier)
    codes = [np.stack([unpack(pack(encoder(f))) for f in g.features]).astype(np.float64) for g in groups]
    for kind in dict.fromkeys(g.kind for g in groups):
        against, kin = populations(encoder, beside, kind), [i for i, g in enumerate(groups) if g.kind == kind]
        for at in kin:
            home = groups[at]
            for way in home.ways:
                population, rows = against[way in STRANGER_WAYS], home.rows(way)
                seen = population(codes[at][rows])
                for i in kin:
                    parents = groups[i].rows("source")
                    values = judge.log_odds(channel_correlations(population(codes[i][parents]), seen))
                    for j, parent in enumerate(parents):
                        for k, row in enumerate(rows):
                            own = i == at and groups[i].source[parent] == home.source[row]
                            yield {"group": home.name, "way": way, "child": int(row), "own": bool(own),
                                   "same data": i == at, "value": float(values[j, k])}  # fmt: skip


def halves(groups: Sequence[Group], share: float = 0.25) -> tuple[list[Group], list[Group]]:
    """Groups to learn from and groups to be asked about, which share no source.

    Args:
        groups: All of them.
        share: Of the sources of each group that is left out.

    Returns:
        Two lists of groups; of a group with fewer than 12 sources all are learnt from.
    """
    learning, asked = [], []
    for g in groups:
        count = len(g.rows("source"))
        cut = count - round(share * count) if count >= 12 else count
        learning.append(g.only(g.source % count < cut))
        if cut < count:
            asked.append(g.only(g.source % count >= cut))
    return learning, asked


def told(encoder: FragmentEncoder, groups: Sequence[Group], beside: Sequence[Group]) -> dict[str, Any]:
    """How well children are told from those of other sources of the same data.

    Args:
        encoder: What is judged.
        groups: Sources that it has not seen.
        beside: Other groups, which are the population.

    Returns:
        `auroc` over pairs of one data set and `auroc_all` over all, `top_1` over children, and the number of sources;
        None without groups.
    """
    from scipy.stats import rankdata

    rows = list(answered(encoder, groups, beside))
    if not rows:
        return {"auroc": None, "auroc_all": None, "top_1": None, "sources": 0}
    own, near, value = (np.array([r[k] for r in rows]) for k in ("own", "same data", "value"))

    def auroc(chosen: np.ndarray) -> float:
        ranks, mine = rankdata(value[chosen]), own[chosen]
        n, m = int(mine.sum()), int((~mine).sum())
        return round((float(ranks[mine].sum()) - n * (n + 1) / 2) / max(1, n * m), 4)

    best: dict[tuple[Any, ...], tuple[float, bool]] = {}
    for r in rows:
        child = r["group"], r["child"]
        best[child] = max(best.get(child, (-np.inf, False)), (float(r["value"]), bool(r["own"])))
    top = float(np.mean([first for _, first in best.values()]))
    return {"auroc": auroc(near), "auroc_all": auroc(np.ones(len(rows), bool)), "top_1": round(top, 4),
            "sources": sum(len(g.rows("source")) for g in groups)}  # fmt: skip
