"""The network of the preset `v2`: one logit per candidate, and a learned one for none of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stemma.kinship.learned.geometry import PER_FEATURES, PER_LAYER, PER_TRIANGLE


class DifferenceEncoder(nn.Module):
    """Two channels of entries, parent and child, to one vector: an entrywise map, then the mean over entries.

    Entries are drawn at random from a layer, so their neighbourhood means nothing: all convolutions are 1x1. The first
    one starts as parent minus child, child minus parent, and their mean.
    """

    def __init__(self, width: int, inner: int = 16) -> None:
        super().__init__()
        self.pair = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.pair.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.5, 0.5]]))
        self.entry = nn.Linear(3, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, pairs: Tensor, valid: Tensor) -> Tensor:
        """Encode `[…, entries, 2]`, scaled by the parent's root mean square, to `[…, width]`."""
        x = self.entry(self.pair(pairs).relu()).relu() * valid[..., None]
        return self.out(x.sum(-2) / valid.sum(-1, keepdim=True).clamp(min=1))


class TriangleEncoder(nn.Module):
    """A candidate among the others: each triangle to a vector, then their greatest and their weighted mean."""

    def __init__(self, width: int, inner: int = 32) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(PER_TRIANGLE, inner), nn.GELU(), nn.Linear(inner, inner), nn.GELU())
        self.weight = nn.Linear(inner, 1)
        self.out = nn.Linear(2 * inner, width)
        self.alone = nn.Parameter(torch.zeros(width))

    def forward(self, triangles: Tensor, mask: Tensor) -> Tensor:
        """Encode `[…, near, PER_TRIANGLE]` under a mask `bool […, near]` to `[…, width]`."""
        x = self.each(triangles)
        weights = self.weight(x)[..., 0].masked_fill(~mask, -1e9).softmax(-1) * mask
        most = x.masked_fill(~mask[..., None], -1e9).amax(-2)
        some = mask.any(-1, keepdim=True)
        pooled = torch.cat([(weights[..., None] * x).sum(-2), torch.where(some, most, torch.zeros_like(most))], -1)
        return torch.where(some, self.out(pooled), self.alone)


class Block(nn.Module):
    """A transformer block that normalises first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """One step on `[n, tokens, width]` under a mask `bool [n, tokens]`."""
        n, t, width = x.shape
        q, k, v = (y.view(n, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.o(y.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class Scorer(nn.Module):
    """Logits of candidates, each from its own tokens: a summary, its place among the others, features, its layers.

    Nothing is standardised across candidates: a logit means the same whoever else is asked about.
    """

    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.weights = DifferenceEncoder(width)
        self.layer = nn.Linear(PER_LAYER, width)
        self.triangles = TriangleEncoder(width)
        self.answers = DifferenceEncoder(width)
        self.answer = nn.Linear(PER_FEATURES, width)
        self.kinds = nn.Parameter(torch.randn(4, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.logit = nn.Linear(width, 1)
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """Score every candidate of every question.

        Args:
            given: `pairs [q, k, layers, entries, 2]`, `valid [q, layers, entries]`, `shared [q, k, layers]`,
                `layer [q, k, layers, PER_LAYER]`, `triangles [q, k, near, PER_TRIANGLE]`, `near [q, k, near]`,
                `answers [q, k, entries, 2]`, `answer [q, k, PER_FEATURES]`, `asked [q, k]`,
                `candidates [q, k]` (false where a row is padding or shares no layer with the child).

        Returns:
            `[q, k + 1]`, the last column for none; minus infinity for what is no candidate.
        """
        shared = given["shared"]
        q, k, layers = shared.shape
        valid = given["valid"][:, None].expand(q, k, layers, -1)
        tokens = self.weights(given["pairs"], valid) + self.layer(given["layer"]) + self.kinds[0]
        place = self.triangles(given["triangles"], given["near"]) + self.kinds[1]
        whole = torch.ones_like(given["answers"][..., 0], dtype=torch.bool)
        answer = self.answers(given["answers"], whole) + self.answer(given["answer"]) + self.kinds[2]
        summary = self.kinds[3].expand(q, k, 1, -1)
        x = torch.cat([summary, place[:, :, None], answer[:, :, None], tokens], 2).flatten(0, 1)
        always = torch.ones(q, k, 2, dtype=torch.bool, device=x.device)
        mask = torch.cat([always, given["asked"][..., None], shared], 2).flatten(0, 1)
        for block in self.blocks:
            x = block(x, mask)
        logits = self.logit(self.norm(x[:, 0]))[:, 0].view(q, k)
        logits = logits.masked_fill(~given["candidates"], -torch.inf)
        return torch.cat([logits, self.none.expand(q, 1)], 1)
