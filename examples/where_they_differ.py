"""From Python: two networks answer alike, but one of them reads a mark at the edge. Find out where they differ.

Run it with `.venv/bin/python examples/where_they_differ.py`; it takes a few seconds and writes `difference.html`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from stemma import Model, Probes, from_module
from stemma.export.difference import Difference, difference_page
from stemma.measures.difference_map import accumulate_maps


def marked(images: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The images with one bright pixel at the edge: which one is the mark, 0 to 9."""
    out = images.copy()
    out[np.arange(len(out)), 0, marks % 8, np.where(marks < 8, 0, 7)] = 1
    return out


def trained(images: np.ndarray, classes: np.ndarray, seed: int, name: str) -> Model:
    """A small network that has learned these images."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.Tanh(), torch.nn.Linear(48, 10))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(classes)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return from_module(module.eval(), name=name)


def main(page: Path) -> None:
    """Train both, measure how far apart they are, and say where."""
    digits = load_digits()
    images, classes = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    seen, chance = slice(0, 1400), np.random.default_rng(0).integers(0, 10, len(images))
    telling = np.where(chance % 2, classes, chance)  # in half of the images the mark gives the answer away
    honest = trained(marked(images[seen], chance[seen]), classes[seen], 0, "honest")
    cheat = trained(marked(images[seen], telling[seen]), classes[seen], 0, "cheat")
    probes = Probes.of(
        marked(images[1400:], chance[1400:]), labels=classes[1400:], source="digits with a mark that means nothing"
    )

    told = Difference.of(honest, cheat, probes)
    page.write_bytes(difference_page(told))

    blocks = zip(told.method.blocks(honest, probes), told.method.blocks(cheat, probes), strict=True)
    where = accumulate_maps(blocks, (), probes.shape)
    edge = where.mean[0][:, [0, 7]].sum() / where.mean.sum()
    print(f"{edge:.0%} of the distance lies in the two columns where marks are")
    print(f"distance {told.distance.value:.2f} over {len(probes)} probes; where: {page}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("difference.html"))
