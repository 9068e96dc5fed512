"""The design that the specification of Model DNA sketches: fragments pooled by attention, and an ordered pair score.

A fragment is what a probe looks like beside what the model answers; four learned seeds pool a model's fragments to one
code of 128 numbers, so that the code forgets which probe was answered how. Trained on the same groups as ours.

Source: reconstruction of Mu et al., ECAI 2024 (arXiv:2308.02121), whose architecture is not public; pooling after Lee
et al., Set Transformer, ICML 2019.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stemma.fingerprints.canonical_outputs import FEATURES
from stemma.training.dna_groups import Group, standard_probes

WIDTH, SEEDS = 128, 4


class SetPooling(nn.Module):
    def __init__(self, inputs: np.ndarray):
        super().__init__()
        flat = inputs.reshape(len(inputs), -1).astype(np.float32)
        self.register_buffer("seen", torch.from_numpy((flat - flat.mean(0)) / (flat.std(0) + 1e-3)))
        self.of_input, self.of_answer = nn.Linear(flat.shape[1], WIDTH), nn.Linear(len(FEATURES), WIDTH)
        self.mixed, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.seeds = nn.Parameter(torch.randn(SEEDS, WIDTH) * WIDTH**-0.5)
        self.out = nn.Linear(SEEDS * WIDTH, WIDTH)
        self.pair = nn.Sequential(nn.Linear(3 * WIDTH + 1, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def forward(self, features: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
        a, b = self.of_input(self.seen[probes]), self.of_answer(features)
        fragments = self.norm(a + b + self.mixed(a * b))
        weights = (fragments @ self.seeds.T / WIDTH**0.5).softmax(-2)
        return F.normalize(self.out(torch.einsum("mps,mpw->msw", weights, fragments).flatten(1)), dim=-1)

    def scores(self, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        u, v = torch.broadcast_tensors(sources[:, None], targets[None])
        cosine = (u * v).sum(-1, keepdim=True)
        return self.pair(torch.cat([u - v, (u - v).abs(), u * v, cosine], -1))[..., 0]


def learnt(groups: Sequence[Group], steps: int = 1500, sources: int = 16, seed: int = 0) -> SetPooling:
    """Joint training: binary cross-entropy of the pair score and InfoNCE of the codes."""
    rng = np.random.default_rng([seed, 61])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SetPooling(standard_probes("lm" if groups[0].name.startswith("lm") else "mlp").inputs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        tables = [torch.from_numpy(g.features) for g in groups]
        for _ in range(steps):
            at = int(rng.integers(len(groups)))
            g, way = groups[at], groups[at].ways[int(rng.integers(len(groups[at].ways)))]
            parents, children = g.rows("source"), g.rows(way)
            chosen = rng.choice(len(parents), min(sources, len(parents)), replace=False)
            probes = torch.from_numpy(np.sort(rng.choice(tables[at].shape[1], 64, replace=False)))
            codes = [model(tables[at][torch.from_numpy(r[chosen])][:, probes], probes) for r in (parents, children)]
            truth, n = torch.arange(len(chosen)), len(chosen)
            similar = codes[0] @ codes[1].T / 0.1
            loss = F.cross_entropy(similar, truth) + F.cross_entropy(similar.T, truth)
            loss = loss + F.binary_cross_entropy_with_logits(
                model.scores(*codes), torch.eye(n), pos_weight=torch.tensor(float(n - 1))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def scored(model: SetPooling, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pair scores `[sources, targets]` of features `[models, probes, features]`."""
    probes = torch.arange(sources.shape[1])
    with torch.no_grad():
        codes = [torch.cat([model(torch.from_numpy(x[i : i + 32]), probes) for i in range(0, len(x), 32)])
                 for x in (sources, targets)]  # fmt: skip
        return model.scores(*codes).double().numpy()
