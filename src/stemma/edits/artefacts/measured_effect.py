"""The measured effect of an edit: latency, accuracy, output error, error by layer."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph
from stemma.edits.editable_network import EditableNetwork
from stemma.edits.fidelity.compensation import layer_input
from stemma.edits.layer_inputs import as_tensor
from stemma.probes import Probes
from stemma.types import Plan

LATENCY_BATCH, LATENCY_RUNS, MAX_INPUTS = 64, 7, 512
"""Batch size and passes for latency; inputs for the errors of layers."""


def latency(editable: EditableNetwork, inputs: np.ndarray, batch: int = LATENCY_BATCH, runs: int = LATENCY_RUNS
            ) -> float:  # fmt: skip
    """Median seconds of a forward pass of one batch, after two warm-up passes; too few inputs are repeated."""
    x = as_tensor(np.resize(inputs, (batch, *inputs.shape[1:])), editable.like)
    times = []
    with torch.no_grad():
        for turn in range(runs + 2):
            start = time.perf_counter()
            editable.forward(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if turn >= 2:
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def accuracy(editable: EditableNetwork, probes: Probes) -> float | None:
    """Accuracy on labelled probes; None without labels or where there is not one score per class."""
    if probes.labels is None:
        return None
    outputs = editable.outputs(probes.inputs)
    if outputs.ndim != 2:
        return None
    return float((outputs.argmax(1).numpy() == probes.labels).mean())


def output_agreement(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Relative squared error of outputs `b [n, …]` to outputs `a`, and how often their top scores agree."""
    # Scores lie on the last axis, of maps on the second. The error is relative to `a`'s deviation from its mean, or
    # to its square where it is constant.
    if a.ndim == 4:
        a, b = a.movedim(1, -1), b.movedim(1, -1)
    flat_a, flat_b = (x.double().reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in (a, b))
    difference = float((flat_a - flat_b).square().sum())
    spread = float((flat_a - flat_a.mean(0)).square().sum()) or float(flat_a.square().sum()) or 1.0
    found = {"error": difference / spread}
    if flat_a.shape[1] > 1:
        found["same_top_answer"] = float((flat_a.argmax(1) == flat_b.argmax(1)).double().mean())
    return found


def layer_errors(
    original: EditableNetwork, smaller: EditableNetwork, graph: DependencyGraph, plan: Plan, inputs: np.ndarray
) -> dict[str, float]:
    """Relative squared error of the outputs of every layer that lost inputs, by layer."""
    # Errors are measured before any norm that follows; a change of the mean, which batch norm absorbs, is left out.
    out = {}
    for weight, reader in graph.readers.items():
        rows = plan.slices.get(weight, {})
        if str(reader.input_axis) not in rows or reader.attribute != "weight":
            continue
        x = as_tensor(inputs[:MAX_INPUTS], original.like)
        with torch.no_grad():
            old, new = (a.module.get_submodule(reader.layer) for a in (original, smaller))
            a, b = old(layer_input(original, reader.layer, x)), new(layer_input(smaller, reader.layer, x))
        axis = 1 if reader.kind == "convolution" else -1
        keep = rows.get(str(1 - reader.input_axis))
        if keep is not None:
            a = a.index_select(axis, torch.tensor(keep, device=a.device))
        a, b = (y.movedim(axis, -1).reshape(-1, a.shape[axis]).double() for y in (a, b))
        spread = (a - a.mean(0)).square().sum()
        difference = a - b - (a - b).mean(0) if reader.normed else a - b
        out[reader.layer] = float(difference.square().sum() / spread) if float(spread) > 0 else 0.0
    return out


def measure_changes(
    original: EditableNetwork, smaller: EditableNetwork, graph: DependencyGraph, plan: Plan, probes: Probes
) -> dict[str, Any]:
    """The `measured` part of a pruning receipt: `[before, after]` of costs and accuracy, and errors after."""
    inputs = probes.inputs[:MAX_INPUTS]
    counts = {g: len(k) for g, k in plan.kept.items()}
    found: dict[str, Any] = {
        "macs": [graph.macs(), graph.macs(counts)],
        "parameters": [sum(p.numel() for p in a.module.parameters()) for a in (original, smaller)],
        "seconds": [latency(original, inputs), latency(smaller, inputs)],
        "layers": layer_errors(original, smaller, graph, plan, inputs),
        **output_agreement(original.outputs(inputs), smaller.outputs(inputs)),
    }
    accuracies = [accuracy(a, probes) for a in (original, smaller)]
    return found | ({"accuracy": accuracies} if accuracies[0] is not None else {})


def versions() -> Mapping[str, str]:
    """Versions of the software that computes an edit."""
    import platform

    from stemma import __version__

    return {"stemma": __version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version()}  # fmt: skip
