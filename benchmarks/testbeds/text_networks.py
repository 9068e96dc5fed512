"""A text classifier: which of ten parts of four authors' books a passage is from.

Words are hashed to ids; passages that are tested lie between those that are learnt. Needs `text_authors.npz`.
"""

import re
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from testbeds.edited_networks import Data

WORDS, LENGTH, WIDTH, CLASSES = 2048, 40, 64, 10
PARTS = {"shakespeare": 2, "bronte": 3, "darwin": 3, "dubois": 2}


def passages(folder: Path, part: str, count: int) -> Data:
    """Passages of `LENGTH` words with the part that they are from; every fifth is `test`."""
    inputs, labels = [], []
    with np.load(folder / "text_authors.npz") as file:
        for author, parts in PARTS.items():
            words = re.findall(r"[a-z']+", file[author].tobytes().decode("latin-1").lower())
            ids = np.array([1 + zlib.crc32(w.encode()) % (WORDS - 1) for w in words], np.int64)
            for piece in np.array_split(ids, parts):
                rows = piece[: len(piece) // LENGTH * LENGTH].reshape(-1, LENGTH)
                test = np.arange(len(rows)) % 5 == 4
                rows = rows[test if part == "test" else ~test]
                inputs.append(rows)
                labels.append(np.full(len(rows), len(labels), np.int64))
    order = np.random.default_rng(0).permutation(sum(map(len, labels)))[:count]
    return Data(np.concatenate(inputs)[order], np.concatenate(labels)[order])


class Block(nn.Module):
    """Attention and feed-forward, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (p(y).reshape(n, length, 4, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
        x = x + self.o(found)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextClassifier(nn.Module):
    """Two transformer blocks over word ids, and the mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.words(x) + self.places)).mean(1))


def trained_text(data: Data, seed: int, epochs: float, kept: Path | None = None, tag: str = "") -> nn.Module:
    """A text classifier from its random start: AdamW, one cycle, words dropped at random."""
    file = None if kept is None else kept / f"text-{seed}-{epochs:g}-{len(data.labels)}{tag}.pt"
    torch.manual_seed(seed)
    net = TextClassifier()
    if file is not None and file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    draw = torch.Generator().manual_seed(seed)
    steps = max(1, round(epochs * len(y) / 64))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.2)
    for _ in range(steps):
        rows = torch.randint(0, len(y), (64,), generator=draw)
        words = torch.where(torch.rand(64, LENGTH, generator=draw) < 0.2, 0, x[rows])
        loss = F.cross_entropy(net(words), y[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)
    return net.eval()
