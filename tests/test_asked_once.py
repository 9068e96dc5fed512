"""Every model of a question is loaded once and asked once, whatever the number of methods."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.evaluation import keeping_answers
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.kinship.compare import compare
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.registry import Registry
from stemma.workspace import Workspace

N, STEPS = 40, GradientField().steps
PROBES = Probes.of(
    np.random.default_rng(0).standard_normal((N, 12)).astype("f4"), labels=np.arange(N) % 4, kind="tensor"
)


class Counting(nn.Module):
    """Counts the rows that it is asked, with and without gradients."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
        self.asked = {True: 0, False: 0}
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked[torch.is_grad_enabled()] += len(x)
        return self.layers(x)


def test_one_recording_serves_all_methods(tmp_path: Path) -> None:
    modules = [Counting(s) for s in range(5)]
    models = [from_module(m, f"net{i}") for i, m in enumerate(modules)]
    apart = compare(*models[:2], probes=PROBES, null=models[2:])
    for module in modules:
        module.asked = {True: 0, False: 0}
    found = Workspace(Registry(tmp_path / "registry.db")).compare(*models[:2], probes=PROBES, null=models[2:])
    for module in modules:
        # Nodes of the field with gradients; answers to the probes, and the eight passes of the DNA, without.
        # Beyond that: a few probes, to see that answers are not random, for each kind of inputs.
        assert module.asked[True] == N * STEPS
        assert N * 8 <= module.asked[False] <= N * 8 + 3 * 8
    assert found.function.p_value == apart.function.p_value
    assert found.function.value == pytest.approx(apart.function.value, abs=1e-6)
    by_labels = [next(e for e in c.evidence if e.statistic == "partition-agreement") for c in (found, apart)]
    assert by_labels[0].details == by_labels[1].details
    assert any(e.statistic == "closer-dna-than-independent" for e in found.evidence)


def test_controls_are_read_once_and_held_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def counted(model: Model) -> object:
        built.append(model.name)
        return from_module(Counting(0), model.name).network

    for i in range(3):
        save_file(Counting(i).state_dict(), tmp_path / f"c{i}.safetensors")
    from stemma.networks import load as loading

    monkeypatch.setattr(loading, "open_network", counted)
    pair = [from_module(Counting(s), f"net{s}") for s in (7, 8)]
    null = [tmp_path / f"c{i}.safetensors" for i in range(3)]
    Workspace(Registry(tmp_path / "registry.db")).compare(*pair, probes=PROBES, null=null)
    assert sorted(built) == ["c0", "c1", "c2"]


def test_kept_answers_are_those_of_the_network() -> None:
    plain = from_module(Counting(0), "net")
    kept = keeping_answers(plain, PROBES)
    assert kept.digest == plain.digest
    assert kept.network.digest == plain.network.digest
    rows = torch.from_numpy(np.array(PROBES.inputs))
    mixed = torch.cat([rows[[3, 1, 3]], torch.ones(1, 12), rows[[0]]])
    with torch.no_grad():
        for inputs in (rows[:5], mixed, mixed, rows):
            torch.testing.assert_close(kept.network(inputs), plain.network(inputs))
    assert kept.network.module.asked[False] < 2 * (N + 20)
    leaf = rows[:4].clone().requires_grad_()
    assert torch.autograd.grad(kept.network(leaf).sum(), leaf)[0].any()  # never from what is kept


def test_chance_and_train_mode_are_seen_behind_kept_answers() -> None:
    random = nn.Sequential(nn.Linear(12, 4), nn.Dropout(0.5)).eval()
    random[1].forward = lambda x: torch.nn.functional.dropout(x, 0.5, training=True)
    with pytest.raises(StemmaError, match="not deterministic"):
        Outputs()(keeping_answers(from_module(random, "net"), PROBES), PROBES)
    with pytest.raises(StemmaError, match="train mode"):
        Outputs()(keeping_answers(from_module(Counting(0).train(), "net"), PROBES), PROBES)
