"""The network of the preset `v3`: a logit per related candidate, and one for relatives whose order does not show."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stemma.kinship.learned.evidence import EVEN, ODD, PER_CANDIDATE, PER_TRIANGLE

ORDERS = 4
"""Learned numbers of a pair that change their sign with its order; the first one is trained to be its log odds."""


class Order(nn.Module):
    """Which of two models came first: an odd function of what changes its sign, weighed by what does not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.odd = nn.Linear(2 * len(ODD), width, bias=False)
        self.gate = nn.Linear(2 * len(EVEN), width)
        self.out = nn.Linear(width, ORDERS, bias=False)
        self.neither = nn.Sequential(nn.Linear(2 * (len(ODD) + len(EVEN)), width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Odd numbers `[..., ORDERS]` and the logit of neither `[...]` of pairs `[..., PER_PAIR]`."""
        odd, even = pairs[..., : 2 * len(ODD)], pairs[..., 2 * len(ODD) :]
        order = self.out(torch.tanh(self.odd(odd)) * torch.sigmoid(self.gate(even)))
        return order, self.neither(torch.cat([odd.abs(), even], -1))[..., 0]


class Scorer(nn.Module):
    """Logits of the related candidates from what each pair shows, and from where each lies among the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2 * (len(ODD) + len(EVEN))), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(2 * (len(ODD) + len(EVEN))), requires_grad=False)
        self.order = Order(width)
        self.triangle = nn.Sequential(
            nn.Linear(PER_TRIANGLE + 3 * (ORDERS + 1), width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.alone = nn.Parameter(torch.zeros(2 * width))
        self.even = nn.Linear(2 * len(EVEN), width)
        self.candidate = nn.Sequential(
            nn.Linear(3 * width + ORDERS + 1 + PER_CANDIDATE, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.logit = nn.Linear(width, 1)
        self.unordered = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Score the related candidates of every question.

        Args:
            given: `pairs [q, k + 1, k + 1, PER_PAIR]` (the child is the first model), `triangles
                [q, k, k, PER_TRIANGLE]`, `together bool [q, k, k]`, `own [q, k, PER_CANDIDATE]`, `known bool [q, k]`.

        Returns:
            Logits `[q, k + 1]`, the last for unordered, minus infinity for what is no candidate; the log odds of each
            pair's order and the logit of neither, `[q, k + 1, k + 1]`.
        """
        pairs = ((given["pairs"] - self.shift) * self.scale).clamp(-5, 5)
        order, neither = self.order(pairs)
        both = torch.cat([order, neither[..., None]], -1)
        known, together = given["known"], given["together"]
        to_child = both[:, 1:, 0]
        between = both[:, 1:, 1:]
        k = known.shape[1]
        mine, theirs = to_child[:, :, None].expand(-1, -1, k, -1), to_child[:, None].expand(-1, k, -1, -1)
        x = self.triangle(torch.cat([given["triangles"], between, mine, theirs], -1))
        some = together.any(-1, keepdim=True)
        mean = (x * together[..., None]).sum(2) / together.sum(-1, keepdim=True).clamp(min=1)
        most = x.masked_fill(~together[..., None], -1e4).amax(2)
        place = torch.where(some, torch.cat([mean, most], -1), self.alone)
        even = self.even(pairs[:, 1:, 0, 2 * len(ODD) :])
        x = self.candidate(torch.cat([place, even, to_child, given["own"]], -1))
        logits = self.logit(x)[..., 0].masked_fill(~known, -torch.inf)
        everyone = (x * known[..., None]).sum(1) / known.sum(1, keepdim=True).clamp(min=1)
        best = x.masked_fill(~known[..., None], -1e4).amax(1)
        unordered = self.unordered(torch.cat([everyone, torch.where(known.any(1, keepdim=True), best, everyone)], -1))
        return torch.cat([logits, unordered], 1), order[..., 0], neither
