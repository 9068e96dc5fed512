"""From the command line to a folder that loads without Stemma, and back: plan, receipt, replay, refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edited_networks import prepared, probes, right, stemma
from stemma.checkpoints.save import save
from stemma.edits.artefacts import measured_effect
from stemma.edits.artefacts.save import write
from stemma.edits.editable_network import editable_copy
from stemma.edits.fidelity.batch_norm_recalibration import recalibrate
from stemma.edits.pruning.pruning import Pruning
from stemma.errors import MisuseError
from stemma.networks.from_module import from_module
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.verification.edit import EditReplay

home = pytest.fixture(scope="module")(prepared)


@pytest.mark.parametrize("kind", ["mlp", "lm", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cnn", "vit"))])
@pytest.mark.first(1)
def test_pruned_on_the_command_line_it_loads_answers_and_replays(home: Path, kind: str) -> None:
    out, asked = home / f"{kind}-pruned", home / ("text.npz" if kind == "lm" else "probes.npz")
    done = stemma("prune", home / kind, "--ratio", ".3", "--probes", asked, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    before, after = load(home / kind), load(out)
    assert after.parameters < 0.9 * before.parameters
    receipt = document["receipt"]
    assert receipt["child"] == after.digest
    assert receipt["parent"] == before.digest
    assert receipt["measured"]["parameters"][1] == sum(p.numel() for p in editable_copy(after).module.parameters())
    for g, kept in document["plan"]["kept"].items():
        of = document["plan"]["expected"]["groups"][g]["of"]
        assert len(kept) == round(0.7 * of) or abs(len(kept) - 0.7 * of) <= 0.5
    assert receipt["measured"]["same_top_answer"] > 0.9
    findings = EditReplay()(out, before, probes(home, "text" if kind == "lm" else "probes"))
    assert all(f.good for f in findings), findings
    assert (out / "README.md").read_text().startswith("---\nbase_model:")


@pytest.mark.slow
def test_the_program_runs_in_plain_torch(home: Path) -> None:
    out = home / "plain"
    assert (
        stemma("prune", home / "cnn", "--budget", "macs=.5", "--probes", home / "probes.npz", "--out", out).returncode
        == 0
    )
    x = probes(home).inputs[:5]
    np.save(home / "x.npy", x)
    code = (
        "import sys, torch, numpy as np\n"
        "net = torch.export.load(sys.argv[1]).module()\n"
        "print(net(torch.from_numpy(np.load(sys.argv[2]))).tolist())\n"
        "assert not any(m.split('.')[0] == 'stemma' for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, out / "network.pt2", home / "x.npy"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = editable_copy(load(out)).outputs(x)
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), atol=1e-4)


def test_a_dry_run_writes_nothing_and_statistics_serve_again(home: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.safetensors"
    words = ["prune", home / "cnn", "--budget", "macs=.6", "--probes", home / "probes.npz", "--dry-run",
             "--statistics", seen, "--json"]  # fmt: skip
    first = stemma(*words)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["receipt"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["seen.safetensors"]
    again = stemma(*words)
    assert json.loads(again.stdout)["plan"] == json.loads(first.stdout)["plan"]
    macs = json.loads(first.stdout)["plan"]["expected"]["macs"]
    assert 0.55 < macs[1] / macs[0] <= 0.6
    words[1] = home / "mlp"
    other = stemma(*words)
    assert other.returncode == 2
    assert "of another model" in other.stderr


@pytest.mark.slow
def test_refit_and_recalibration_are_what_keeps_the_answers(home: Path) -> None:
    model, asked = load(home / "cnn"), probes(home)
    base = Pruning(budget="macs", keep_ratio=0.35)
    plan = base.plan(model, asked)
    error = {}
    for kind in ("none", "scalar", "kernel"):
        for norm in (False, True):
            method = Pruning(budget="macs", keep_ratio=0.35, compensation=kind, recalibrate=norm)
            error[kind, norm] = method.apply(model, plan, asked).receipt.measured["error"]
    assert error["kernel", True] < error["scalar", True] < error["none", True] < error["none", False]
    one_pass = Pruning(budget="macs", keep_ratio=0.35, sequential=False, recalibrate=True).apply(model, plan, asked)
    assert error["kernel", True] < one_pass.receipt.measured["error"]
    better = Pruning(budget="macs", keep_ratio=0.35).apply(model, plan, asked)
    assert better.receipt.measured["error"] == pytest.approx(min(error["kernel", norm] for norm in (False, True)))


@pytest.mark.slow
def test_the_score_matters_where_much_goes(home: Path) -> None:
    model, asked = load(home / "cnn"), probes(home)
    lost = {}
    for score in ("elimination", "random"):
        losses = []
        for seed in range(3):
            method = Pruning(keep_ratio=0.3, score=score, seed=seed)
            losses.append(1 - right(method(model, asked).model))
        lost[score] = float(np.mean(losses))
    assert lost["elimination"] + 0.02 < lost["random"]
    assert right(model) > 0.93  # measured: .975 to .990


def test_nothing_is_lost_where_nothing_goes_and_the_model_stays_as_it_was(home: Path) -> None:
    model, asked = load(home / "cnn"), probes(home)
    digest = model.digest
    idle = Pruning(keep_ratio=0.999, min_keep=0.99, ignore=("blocks",))
    with pytest.raises(MisuseError, match="no unit would be removed"):
        idle.plan(model, asked)
    edited = Pruning(keep_ratio=0.5)(model, asked)
    assert load(home / "cnn").digest == digest
    assert right(model) > right(edited.model) > 0.8
    before = editable_copy(model)
    state = {n: t.clone() for n, t in before.module.state_dict().items()}
    count = recalibrate(before.module, before.forward, asked.inputs, before.like, 256)
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in before.module.modules())
    changed = {n for n, t in before.module.state_dict().items() if not torch.equal(t, state[n])}
    assert all(n.endswith(("running_mean", "running_var")) for n in changed)


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval()
    x = np.random.default_rng(0).normal(2, 3, (64, 1, 6, 6)).astype(np.float32)
    recalibrate(net, net, x, net[0].weight, 64)  # type: ignore[arg-type]
    seen = net[0](torch.from_numpy(x)).detach()
    torch.testing.assert_close(net[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, seen.var((0, 2, 3)))
    assert not net[1].training


@pytest.mark.slow
def test_budgets_are_met_in_everything_that_they_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = load(home / "cnn"), probes(home)
    seen = Pruning().collect(model, asked)
    for budget in ("macs", "parameters"):
        for how in ("uniform", "greedy", "dynamic", "measured"):
            plan = Pruning(budget=budget, keep_ratio=0.5, allocation=how).plan(model, asked, seen)
            before, after = plan.expected[budget]
            assert 0.4 < after / before <= 0.5
    rounds = Pruning(budget="macs", keep_ratio=0.5, rounds=2).plan(model, asked)
    before, after = rounds.expected["macs"]
    assert 0.4 < after / before <= 0.5
    multiple = Pruning(budget="macs", keep_ratio=0.6, round_to=4).plan(model, asked, seen)
    assert all(len(k) % 4 == 0 for k in multiple.kept.values())
    official = Pruning.official(0.6)(model, asked)
    assert official.receipt.measured["macs"][1] / official.receipt.measured["macs"][0] <= 0.6
    # A clock that nothing else disturbs: a network takes as long as it has parameters.
    monkeypatch.setattr(measured_effect, "latency", lambda asked, _: sum(p.numel() for p in asked.module.parameters()))
    quick = Pruning(budget="latency", keep_ratio=0.8, batch=64).plan(model, asked, seen)
    before, after = quick.expected["parameters"]
    assert 0.7 < after / before <= 0.8


def test_groups_of_one_unit_are_left_in_later_rounds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    asked = Probes.of(np.random.default_rng(0).random((60, 6)).astype(np.float32))
    plan = Pruning(keep_ratio=0.2, rounds=3, min_keep=0).plan(from_module(net, "net"), asked)
    assert {g: len(k) for g, k in plan.kept.items()} == {"0": 1, "2": 8}


@pytest.mark.slow
def test_heads_go_in_whole_groups_and_the_configuration_says_so(home: Path, tmp_path: Path) -> None:
    model, asked = load(home / "lm"), probes(home, "text")
    edited = Pruning(keep_ratio=0.5, heads=True)(model, asked)
    assert edited.model.config is not None
    assert model.config is not None
    assert edited.model.config["num_key_value_heads"] * 2 == model.config["num_key_value_heads"]
    assert edited.model.config["num_attention_heads"] * 2 == model.config["num_attention_heads"]
    assert edited.model.config["intermediate_size"] == model.config["intermediate_size"] // 2
    write(edited, tmp_path / "half", asked)
    torch.testing.assert_close(editable_copy(load(tmp_path / "half")).outputs(asked.inputs[:4]),
                               edited.editable.outputs(asked.inputs[:4]))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_folders_of_transformers_reload_in_a_fresh_process(kind: str, tmp_path: Path) -> None:
    T = pytest.importorskip("transformers")
    torch.manual_seed(0)
    makers: dict[str, Any] = {
        "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=61, max_position_embeddings=64)),
        "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64)),
    }  # fmt: skip
    makers[kind]().eval().save_pretrained(tmp_path / "whole")
    ids = np.random.default_rng(1).integers(0, 61, (48, 24))
    np.savez(tmp_path / "ids.npz", inputs=ids)
    done = stemma("prune", tmp_path / "whole", "--ratio", ".25", "--probes", tmp_path / "ids.npz", "--out",
                  tmp_path / "less", "-P", "round_to=4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = (
        "import sys, numpy as np, torch, transformers\n"
        "net = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True).eval()\n"
        "ids = torch.from_numpy(np.load(sys.argv[2])['inputs'][:2])\n"
        "print('ANSWER', sum(p.numel() for p in net.parameters()), net(ids).logits[0, -1, :5].tolist())"
    )
    again = subprocess.run([sys.executable, "-c", code, tmp_path / "less", tmp_path / "ids.npz"], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert again.returncode == 0, again.stderr
    words = next(line for line in again.stdout.splitlines() if line.startswith("ANSWER")).split(" ", 2)
    small = load(tmp_path / "less")
    expected = editable_copy(small).outputs(ids[:2])[0, -1, :5]
    np.testing.assert_allclose(json.loads(words[2]), expected.numpy(), atol=1e-5)
    assert int(words[1]) < load(tmp_path / "whole").parameters
    key = {"llama": "intermediate_size", "gpt2": "n_inner"}[kind]
    assert small.config is not None
    assert small.config[key] == {"llama": 36, "gpt2": 96}[kind]


@pytest.mark.slow
def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    T = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = T.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                           num_key_value_heads=2, vocab_size=61, max_position_embeddings=64)  # fmt: skip
    T.LlamaForCausalLM(config).half().eval().save_pretrained(tmp_path / "whole")
    ids = Probes.of(np.random.default_rng(1).integers(0, 61, (48, 24)))
    model = load(tmp_path / "whole")
    write(Pruning(keep_ratio=0.5)(model, ids), tmp_path / "less", ids)
    child = load(tmp_path / "less")
    assert {t.dtype for t in child.tensors.values()} == {"F16"}
    assert all(f.good for f in EditReplay()(tmp_path / "less", model, ids))


class Plain(nn.Module):
    """A network without any configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)).relu().mean((2, 3)))


def test_a_module_without_configuration_becomes_a_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Plain().eval()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    model = from_module(module, "plain", InputSpec("image", (1, 8, 8), 0, 1))
    asked = Probes.of(np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32))
    edited = Pruning(keep_ratio=0.5)(model, asked)
    write(edited, tmp_path / "out", asked)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "network.pt2",
        "plan.json",
        "receipt.json",
    ]
    again = load(tmp_path / "out" / "network.pt2")
    torch.testing.assert_close(
        editable_copy(again).outputs(asked.inputs[:7]), edited.editable.outputs(asked.inputs[:7])
    )
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert all(f.good for f in EditReplay()(tmp_path / "out", model, asked))
    with pytest.raises(MisuseError, match="exists"):
        write(edited, tmp_path / "out", asked)


@pytest.mark.slow
def test_a_shortcut_that_a_configuration_would_lose_makes_a_program(tmp_path: Path) -> None:
    from stemma import networks
    from stemma.networks.load import from_arrays

    config = {"model_type": "stemma-cnn", "input_shape": [1, 8, 8], "classes": 5, "stem": 8, "widths": [16, 16],
              "strides": [1, 2]}  # fmt: skip
    torch.manual_seed(0)
    model = from_arrays(networks.build(config).state_dict(), "net", config)
    save(model, tmp_path / "net")
    model, asked = load(tmp_path / "net"), Probes.of(np.random.default_rng(0).random((32, 1, 8, 8)).astype(np.float32))
    for keep, files in (((8, 16), {"config.json"}), ((8, 8), {"network.pt2"})):
        method = Pruning(keep_ratio=0.5, only=("blocks.0.conv2",) if keep == (8, 8) else ("conv1",))
        edited = method(model, asked)
        out = tmp_path / f"{keep[1]}"
        write(edited, out, asked)
        assert files <= {p.name for p in out.iterdir()}
        assert (edited.model.config is None) == (keep == (8, 8))
