"""Prune a network of your own, train the smaller one, and save it: a plain loop.

    python examples/prune_and_train.py

Takes a few seconds. The data are drawn here; with your own, replace `images` and `Net`.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import stemma
from stemma.edits.artefacts.save import write


class Net(nn.Module):
    """A small convolutional network; any class of yours will do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.second, self.head = nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Four scores for each image."""
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes in four directions, with noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([torch.sin(a * x + b * y) for a, b in ((1.3, 0), (0, 1.3), (0.9, 0.9), (0.9, -0.9))])
    return waves[labels][:, None] + 1.5 * torch.randn(count, 1, 12, 12, generator=draw), labels


def train(net: nn.Module, epochs: int) -> None:
    """An ordinary training loop."""
    x, y = images(2000, 1)
    optimizer = torch.optim.Adam(net.train().parameters(), 0.003)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


def accuracy(net: nn.Module) -> float:
    """Share of right answers on images that no training saw."""
    x, y = images(2000, 2)
    with torch.no_grad():
        return (net.eval()(x).argmax(1) == y).double().mean().item()


def main() -> None:
    """Train, prune to half of the multiplications, train on, save, and ask where the result comes from."""
    torch.manual_seed(0)
    net = Net()
    train(net, 4)
    print(f"before           {accuracy(net):.1%}, {sum(p.numel() for p in net.parameters()):,} parameters")

    parent = stemma.from_module(net, "parent", stemma.InputSpec("image", (1, 12, 12), 0.0, 1.0))
    probes = stemma.Probes.of(images(256, 3)[0].numpy())  # no labels are needed
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "smaller"
        write(stemma.prune(parent, probes, budget="macs", keep_ratio=0.5), folder, probes)

        smaller = stemma.edits.load(folder, Net())  # your own class, with fewer channels
        print(f"pruned           {accuracy(smaller):.1%}, {sum(p.numel() for p in smaller.parameters()):,} parameters")
        train(smaller, 2)
        print(f"trained further  {accuracy(smaller):.1%}")

        torch.save(smaller.state_dict(), Path(place) / "smaller.pt")
        print(stemma.trace(Path(place) / "smaller.pt", against=[parent]))


if __name__ == "__main__":
    main()
