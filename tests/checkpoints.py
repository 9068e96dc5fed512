"""Small checkpoints with a known relation, for the tests of the command line."""

import sys
from collections.abc import Callable

import numpy as np

Run = Callable[..., tuple[int, str, str]]
PROGRAM = [sys.executable, "-c", "from stemma.cli import main; main()"]
WIDTH = 48


def arrays_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"fc0": (WIDTH, 20), "fc1": (WIDTH, WIDTH), "fc2": (WIDTH, WIDTH), "out": (10, WIDTH)}
    weights = {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return weights | {f"{n}.bias": rng.normal(size=s[0]).astype(np.float32) for n, s in shapes.items()}


def child_of(arrays: dict[str, np.ndarray], seed: int, amount: float = 0.2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (a + amount * rng.normal(size=a.shape)).astype(np.float32) for n, a in arrays.items()}
