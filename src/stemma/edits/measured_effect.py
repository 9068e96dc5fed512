"""What an edit changed, as measured."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.groups import Network
from stemma.edits.editable_network import Asked
from stemma.edits.fidelity.compensation import given_to
from stemma.edits.layer_inputs import batch_of
from stemma.probes import Probes
from stemma.types import Plan

TIMED, RUNS, MOST = 64, 7, 512
"""Inputs at once, and passes, for latency; inputs for errors of layers."""


def latency(asked: Asked, inputs: np.ndarray, batch: int = TIMED, runs: int = RUNS) -> float:
    """Median seconds of a forward pass.

    Args:
        asked: The network.
        inputs: Raw inputs; repeated where there are fewer than a batch.
        batch: Inputs at once.
        runs: Passes that count, after two that do not.

    Returns:
        Seconds.
    """
    x = batch_of(np.resize(inputs, (batch, *inputs.shape[1:])), asked.like)
    times = []
    with torch.no_grad():
        for turn in range(runs + 2):
            start = time.perf_counter()
            asked.forward(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if turn >= 2:
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def accuracy(asked: Asked, probes: Probes) -> float | None:
    """Share of right answers, where the probes have labels and the network answers with one score per class.

    Returns:
        The share, None where there is none.
    """
    if probes.labels is None:
        return None
    answers = asked.answers(probes.inputs)
    if answers.ndim != 2:
        return None
    return float((answers.argmax(1).numpy() == probes.labels).mean())


def agreement(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """How far two networks' answers are apart.

    Returns:
        Share of equal top answers, where there are scores to choose from (the last axis; of maps the second), and the
        squared difference as a share of the first's deviation from its mean, of its square where it never varies.
    """
    if a.ndim == 4:
        a, b = a.movedim(1, -1), b.movedim(1, -1)
    flat_a, flat_b = (x.double().reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in (a, b))
    apart = float((flat_a - flat_b).square().sum())
    spread = float((flat_a - flat_a.mean(0)).square().sum()) or float(flat_a.square().sum()) or 1.0
    found = {"error": apart / spread}
    if flat_a.shape[1] > 1:
        found["same_top_answer"] = float((flat_a.argmax(1) == flat_b.argmax(1)).double().mean())
    return found


def layer_errors(whole: Asked, smaller: Asked, net: Network, plan: Plan, inputs: np.ndarray) -> dict[str, float]:
    """Squared error of the outputs of every layer that lost inputs, as a share of their deviation from the mean.

    Returns:
        Errors by layer, before any norm that follows; what batch norm takes up (mean) is left out.
    """
    out = {}
    for weight, reader in net.readers.items():
        rows = plan.slices.get(weight, {})
        if str(reader.reads) not in rows:
            continue
        x = batch_of(inputs[:MOST], whole.like)
        with torch.no_grad():
            old, new = (a.module.get_submodule(reader.layer) for a in (whole, smaller))
            a, b = old(given_to(whole, reader.layer, x)), new(given_to(smaller, reader.layer, x))
        axis = 1 if reader.kind == "convolution" else -1
        keep = rows.get(str(1 - reader.reads))
        if keep is not None:
            a = a.index_select(axis, torch.tensor(keep, device=a.device))
        a, b = (y.movedim(axis, -1).reshape(-1, a.shape[axis]).double() for y in (a, b))
        spread = (a - a.mean(0)).square().sum()
        apart = (a - b - (a - b).mean(0)).square().sum() if reader.normed else (a - b).square().sum()
        out[reader.layer] = float(apart / spread) if float(spread) > 0 else 0.0
    return out


def changes(whole: Asked, smaller: Asked, net: Network, plan: Plan, probes: Probes) -> dict[str, Any]:
    """Everything that a receipt tells of a pruned network.

    Args:
        whole: Before.
        smaller: After.
        net: What could be removed.
        plan: What was.
        probes: Inputs, with labels where accuracy is wanted.

    Returns:
        Pairs `[before, after]` for operations, parameters, seconds and accuracy; the error by layer; how far the
        answers are apart.
    """
    inputs = probes.inputs[:MOST]
    counts = {g: len(k) for g, k in plan.kept.items()}
    found: dict[str, Any] = {
        "macs": [net.macs(), net.macs(counts)],
        "parameters": [sum(p.numel() for p in a.module.parameters()) for a in (whole, smaller)],
        "seconds": [latency(whole, inputs), latency(smaller, inputs)],
        "layers": layer_errors(whole, smaller, net, plan, inputs),
        **agreement(whole.answers(inputs), smaller.answers(inputs)),
    }
    right = [accuracy(a, probes) for a in (whole, smaller)]
    return found | ({"accuracy": right} if right[0] is not None else {})


def versions() -> Mapping[str, str]:
    """Versions of what computes an edit."""
    import platform

    from stemma import __version__

    return {"stemma": __version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version()}  # fmt: skip
