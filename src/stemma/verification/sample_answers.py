"""What models answer and hold inside on each set of inputs, for the tests on samples."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.outputs import Outputs
from stemma.probes import Probes
from stemma.verification.distances import Progress
from stemma.verification.few_retrained import SampleTests, SampleVerdict
from stemma.verification.sample_distances import Answers

if TYPE_CHECKING:
    import torch


def judge_samples(
    tests: SampleTests,
    original: Model,
    unlearned: Sequence[Model],
    retrained: Sequence[Model],
    sets: Mapping[str, Probes],
    progress: Progress | None = None,
) -> SampleVerdict:
    """Ask all models, and judge the unlearned ones on samples of inputs.

    Cost: a pass or two over each set of inputs per model, and one more network of the original's size in memory.

    Args:
        tests: The forms.
        original: The model before.
        unlearned: The models after.
        retrained: Models that never saw the forget set; may be none.
        sets: Inputs by name: `forget`, and `retained` and `unseen` where given.
        progress: Told what is done.

    Returns:
        The verdict.

    Raises:
        MisuseError: If inputs are both in the forget set and among the unseen ones.
    """
    report = progress or (lambda what, done, total: None)
    asked = independent_sets(sets)
    models = [original, *unlearned, *retrained]
    found = []
    for i, model in enumerate(models):
        report(f"asking {model.name}", i, len(models))
        found.append(answers(model, asked))
    first, last = 1 + len(unlearned), len(models)
    nothing = None if retrained or not found[0].features else _shuffled_answers(original, asked, tests.seed)
    labels = {name: probes.labels for name, probes in asked.items() if probes.labels is not None}
    return tests(found[0], found[1:first], found[first:last], labels, nothing)


def independent_sets(sets: Mapping[str, Probes]) -> dict[str, Probes]:
    """The sets without repeated inputs, and without retained ones that are to be forgotten.

    Returns:
        As many of the sets as have inputs left.

    Raises:
        MisuseError: If inputs are both in the forget set and among the unseen ones.
    """
    out, rows = {}, {}
    for name in ("forget", "unseen", "retained"):
        if name not in sets:
            continue
        probes = sets[name]
        keys = [np.ascontiguousarray(row).tobytes() for row in probes.inputs]
        barred = set() if name == "forget" else rows["forget"]
        if name == "unseen" and barred & set(keys):
            count = len(barred & set(keys))
            raise MisuseError(
                f"{count:,} inputs of the forget set are among the unseen ones: give inputs that no model was "
                "trained on"
            )
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        kept = sorted(i for key, i in first.items() if key not in barred)
        rows[name] = set(keys)
        if kept:
            out[name] = probes if len(kept) == len(keys) else _part(probes, np.array(kept))
    return out


def _part(probes: Probes, kept: np.ndarray) -> Probes:
    baseline = probes.baseline
    if baseline is not None and len(baseline) == len(probes) and baseline.ndim == probes.inputs.ndim:
        baseline = baseline[kept]
    labels = None if probes.labels is None else probes.labels[kept]
    return replace(probes, inputs=probes.inputs[kept], labels=labels, baseline=baseline)


def answers(model: Model, sets: Mapping[str, Probes]) -> Answers:
    """What one model answers and holds inside; features are left out where they cannot be read."""
    outputs = {n: Outputs()(model, p).values["outputs"] for n, p in sets.items() if n != "retained"}
    try:
        features = {n: Activations()(model, p).values["features"] for n, p in sets.items()}
    except StemmaError:
        features = {}
    if not all(np.isfinite(a).all() for a in features.values()):
        features = {}
    return Answers(model.name, outputs, features)


def _shuffled_answers(original: Model, sets: Mapping[str, Probes], seed: int) -> Answers | None:
    """Answers of a network that knows nothing: the original's, with the entries of every tensor shuffled."""
    from stemma.networks.from_module import with_module

    network = original.network
    if network.module is None:
        return None
    module = shuffled(network.module, seed)
    try:
        return answers(replace(with_module(original, module, network.input_spec), name="shuffled"), sets)
    except StemmaError:
        return None


def shuffled(module: "torch.nn.Module", seed: int) -> "torch.nn.Module":
    """A copy of a network in which the entries of every floating-point tensor are in a random order."""
    import torch

    out = copy.deepcopy(module)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in (*out.parameters(), *out.buffers())}.values():
            if tensor.is_floating_point() and tensor.numel() > 1:
                order = torch.randperm(tensor.numel(), generator=draw).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return out.eval()
