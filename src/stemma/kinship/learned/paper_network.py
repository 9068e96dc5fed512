"""The network of the preset `paper`: the detector of Neural Lineage as its authors released it.

Source: Yu and Wang, CVPR 2024, arXiv:2406.11129, and the code they released, whose architecture this follows; written
anew. Departure: the 1x1 convolution starts with explicit differences, as an initialiser does that the release holds but
never calls.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """A matrix of the parent and one of the child, as two channels, to one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = nn.Conv2d(2, 3, 1, bias=False)
        with torch.no_grad():
            self.pair.weight[:2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[..., None, None]
        self.conv = nn.Conv2d(3, width, 3, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Encode `[n, 2, height, width]` to `[n, width]`."""
        return self.norm(self.conv(self.pair(images).relu())).relu().mean((2, 3))


class PaperScorer(nn.Module):
    """Logits of candidates from one layer's weights and one layer's features, standardised across the candidates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights, self.answers = ImageEncoder(width), ImageEncoder(width)
        self.summary = nn.Parameter(torch.full((width,), 0.01))
        self.kinds = nn.Parameter(torch.randn(2, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.none = nn.Parameter(torch.zeros(width))
        self.logit = nn.Linear(width, 1)

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """Score every candidate of every question.

        Args:
            given: `matrices [q, k, 2, rows, columns]`, `features [q, k, 2, probes, channels]`, `candidates [q, k]`.

        Returns:
            `[q, k + 1]`, the last column for none; minus infinity for what is no candidate.
        """
        known = given["candidates"]
        q, k = known.shape
        weights = self.weights(given["matrices"].flatten(0, 1)) + self.kinds[0]
        answers = self.answers(given["features"].flatten(0, 1)) + self.kinds[1]
        tokens = torch.stack([self.summary.expand(q * k, -1), weights, answers], 1)
        summary = self.attention(tokens, tokens, tokens, need_weights=False)[0][:, 0].view(q, k, -1)
        count = known.sum(1).clamp(min=1)[:, None, None] * summary.shape[-1]
        mask = known[..., None]
        mean = (summary * mask).sum((1, 2), keepdim=True) / count
        spread = (((summary - mean) * mask).square().sum((1, 2), keepdim=True) / count + 1e-8).sqrt()
        standard = torch.cat([(summary - mean) / spread, self.none.expand(q, 1, -1)], 1)
        logits = self.logit(standard)[..., 0]
        logits[:, :k] = logits[:, :k].masked_fill(~known, -torch.inf)
        return logits
