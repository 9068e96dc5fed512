"""An edited folder becomes a network of the user's own class again, trains, and is still traced to its parent."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stemma
from stemma.edits import Pruning, Unlearning
from stemma.edits import load as load_trainable
from stemma.edits.artefacts.save import write
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec


class Residual(nn.Module):
    """Two convolutions around a shortcut, batch norm, a depthwise layer, and tied weights nowhere."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.first, self.first_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.second(self.depthwise(self.first_norm(self.first(x)).relu()))
        return self.head(x.relu().mean((2, 3)))


class Attending(nn.Module):
    """One block of attention with a projection per matrix, and a feed-forward layer."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.embed = nn.Linear(6, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = (m(x).reshape(n, length, self.num_heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, -1))
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], InputSpec | None]] = {
    "residual": (Residual, (1, 8, 8), InputSpec("image", (1, 8, 8), 0.0, 1.0)),
    "attending": (Attending, (7, 6), None),
}


def made(kind: str) -> tuple[nn.Module, stemma.Model, Probes]:
    torch.manual_seed(3)
    build, shape, spec = NETWORKS[kind]
    net = build().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x = np.random.default_rng(0).random((96, *shape), np.float32)
    return net, from_module(net, kind, spec), Probes.of(x)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.first(1)
def test_a_pruned_network_loads_into_its_class_and_trains(kind: str, tmp_path: Path) -> None:
    net, parent, probes = made(kind)
    edited = Pruning(keep_ratio=0.5, heads=True)(parent, probes)
    write(edited, tmp_path / "smaller", probes)
    before = stemma.trace(tmp_path / "smaller", against=[parent])
    assert [f["name"] for f in (*before.parents, *before.relatives)] == [kind]
    fresh = load_trainable(tmp_path / "smaller", NETWORKS[kind][0]())
    x = torch.from_numpy(np.array(probes.inputs))
    with torch.no_grad():
        expected = edited.editable.module(x)
        torch.testing.assert_close(fresh.eval()(x), expected)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, fresh))
    assert after < 0.75 * before
    if kind == "attending":
        assert fresh.num_heads == 2
    labels = torch.randint(5, (96,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(fresh.train().parameters(), 0.003)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(fresh(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in fresh.parameters())
    from safetensors.torch import save_file

    state = {n: t.contiguous() for n, t in fresh.state_dict().items()}
    save_file(state, tmp_path / "tuned.safetensors")
    traced = stemma.trace(tmp_path / "tuned.safetensors", against=[parent])
    assert traced.verdict == ("related" if kind == "attending" else "inconclusive")  # small, and every kernel refitted
    again = type(fresh)()
    with pytest.raises(MisuseError, match="by the plan of"):
        load_trainable(tmp_path / "smaller", type(fresh)(8))
    with pytest.raises(MisuseError, match="no counterpart"):
        load_trainable(tmp_path / "smaller", nn.Linear(2, 2))
    assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()], "an error changes nothing"
    with pytest.raises(StemmaError, match="is missing in"):
        load_trainable(tmp_path, again)


def test_an_unlearned_network_loads_and_its_original_weights_lie_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4))

    net = build().eval()
    parent = from_module(net, "plain", InputSpec("vector", (16,), 0.0, 1.0))
    x = np.random.default_rng(0).normal(0, 1, (200, 16)).astype(np.float32)
    answers = net(torch.from_numpy(x)).argmax(1).numpy()
    most = np.bincount(answers).argmax()
    forget = Probes.of(x[answers == most])
    edited = Unlearning(target=0.2)(parent, forget, Probes.of(x[answers != most]))
    with pytest.raises(MisuseError, match="lies in"):
        write(edited, tmp_path / "out", forget, undo=tmp_path / "out" / "undo.safetensors")
    receipt = write(edited, tmp_path / "out", forget, undo=tmp_path / "kept" / "before.safetensors")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"README.md", "plan.json", "receipt.json", "network.pt2"}
    assert (tmp_path / "kept" / "before.safetensors").is_file()
    fresh = load_trainable(tmp_path / "out", build())
    torch.testing.assert_close(fresh(torch.from_numpy(x)), edited.editable.module(torch.from_numpy(x)))
    text = (tmp_path / "out" / "receipt.json").read_text()
    assert str(tmp_path) not in text
    assert receipt.parent_source == "python:plain"
    with pytest.raises(MisuseError, match="exists"):
        write(edited, tmp_path / "second", forget, undo=tmp_path / "kept" / "before.safetensors")


@pytest.mark.parametrize("kind", ["mixtral", "vit", "gpt_neox"])
def test_a_network_of_transformers_loads_trains_and_is_saved_again(kind: str, tmp_path: Path) -> None:
    T = pytest.importorskip("transformers")
    c = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    build = {
        "mixtral": lambda: T.MixtralForCausalLM(
            T.MixtralConfig(**c, vocab_size=31, num_local_experts=2, num_key_value_heads=2)
        ),
        "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**c, image_size=8, patch_size=4)),  # other names on disk
        "gpt_neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**c, vocab_size=31)),
    }[kind]
    torch.manual_seed(0)
    build().eval().save_pretrained(tmp_path / "whole")
    rng = np.random.default_rng(0)
    probes = Probes.of(rng.random((16, 3, 8, 8), np.float32) if kind == "vit" else rng.integers(1, 31, (16, 6)))
    edited = Pruning(keep_ratio=0.5, budget="units", heads=kind == "mixtral")(stemma.load(tmp_path / "whole"), probes)
    write(edited, tmp_path / "smaller", probes)
    fresh = load_trainable(tmp_path / "smaller", build()).eval()
    x = torch.from_numpy(np.array(probes.inputs))
    with torch.no_grad():
        torch.testing.assert_close(fresh(x).logits, edited.editable.module(x).logits)
    fresh(x).logits.square().mean().backward()
    torch.optim.SGD(fresh.parameters(), 0.1).step()
    fresh.save_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        torch.testing.assert_close(type(fresh).from_pretrained(tmp_path / "tuned")(x).logits, fresh(x).logits)


def test_a_layer_under_two_names_is_cut_once(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 20), nn.Linear(20, 4)
            self.again = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.again(x).relu()).relu())

    torch.manual_seed(0)
    probes = Probes.of(np.random.default_rng(0).normal(0, 1, (64, 16)).astype(np.float32))
    edited = Pruning(keep_ratio=0.5)(from_module(Named().eval(), "named"), probes)
    write(edited, tmp_path / "smaller", probes)
    fresh, x = load_trainable(tmp_path / "smaller", Named()), torch.from_numpy(np.array(probes.inputs))
    assert fresh.again is fresh.a
    torch.testing.assert_close(fresh(x), edited.editable.module(x))


def test_weights_that_cannot_be_run_are_not_called_changed(tmp_path: Path) -> None:
    from stemma.networks.from_module import with_module
    from stemma.verification.edit import EditReplay

    net, _, probes = made("residual")
    torch.save(net.state_dict(), tmp_path / "parent.pt")
    bare = stemma.load(tmp_path / "parent.pt")
    edited = Pruning(keep_ratio=0.7)(with_module(bare, net, NETWORKS["residual"][2]), probes)
    write(edited, tmp_path / "smaller", probes)
    found = {f.check: f for f in EditReplay()(tmp_path / "smaller", bare, probes)}
    assert {check: f.good for check, f in found.items()} == {
        **dict.fromkeys(("plan", "receipt", "weights", "parent", "slices"), True),
        **dict.fromkeys(("choice", "replay", "measured"), None),
    }
    assert "--network" in found["replay"].reason


def test_the_next_step_has_what_runs_bare_weights() -> None:
    from stemma.export.edit_answers import fidelity_closing, prune_closing, unlearn_closing

    run = {"network": "nets:make", "allow_code": True}
    asked = {"model": "a.pt", "probes": "x.npz", "forget": "f.npz", "registry": None, "networks": run}
    document = {"asked": asked, "folder": "out", "receipt": {}}
    for closing in (fidelity_closing, prune_closing, unlearn_closing):
        assert " --network nets:make --allow-code " in closing(document)[1]
    assert "verify edit out --probes x.npz" in prune_closing(document)[1]


def test_a_receipt_tells_no_folder_above_the_one_that_holds_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stemma.edits.artefacts.save import parent_source

    homes = tmp_path / "home"
    source = homes / "alice" / "models" / "res.pt"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(Path, "home", lambda: homes / "alice")
    edited: Any = SimpleNamespace(parent=SimpleNamespace(source=str(source)))
    told = {out: parent_source(edited, homes / out) for out in ("alice/small", "alice/models/small", "small", "bob/x")}
    assert told == {"alice/small": "../models/res.pt", "alice/models/small": "../res.pt", "small": "res.pt",
                    "bob/x": "res.pt"}  # fmt: skip
    assert parent_source(edited, Path("/stemma-out")) == "res.pt"


def test_edits_are_at_hand_without_an_import_of_their_own() -> None:
    code = "import stemma, sys; stemma.edits; assert 'torch' not in sys.modules; print(stemma.edits.ALL)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "('Pruning', 'Erasure', 'Unlearning')\n"


@pytest.mark.slow
def test_the_example_prunes_trains_and_is_traced(example: Callable[..., str]) -> None:
    said = example("prune_and_train.py")
    before, pruned, further = (float(line.split("%")[0].split()[-1]) for line in said.splitlines()[:3])
    assert pruned > before - 10
    assert further > before - 5
    assert "related" in said


class Unexportable(nn.Module):
    """Asks for a number while it runs, which no exported program can."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if float(x.abs().mean()) < 1e6 else 0.5
        return self.down(self.up(x).relu()) * scale


def test_a_network_that_cannot_be_exported_is_kept_as_bare_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parent = from_module(Unexportable().eval(), "odd", InputSpec("vector", (6,), 0.0, 1.0))
    probes = Probes.of(np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    edited = Pruning(keep_ratio=0.5)(parent, probes)
    receipt = write(edited, tmp_path / "out", probes)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "model.safetensors", "plan.json", "receipt.json"}
    assert "stemma.edits.load" in (tmp_path / "out" / "README.md").read_text()
    fresh = load_trainable(tmp_path / "out", Unexportable()).eval()
    x = torch.from_numpy(np.array(probes.inputs))
    torch.testing.assert_close(fresh(x), edited.editable.module(x))
    found = stemma.load(tmp_path / "out")
    assert found.digest == receipt.child
    traced = stemma.trace(tmp_path / "out", against=[parent])
    assert traced.verdict != "independent"
    from stemma.verification.edit import EditReplay

    assert [(f.check, f.good, f.reason) for f in EditReplay()(tmp_path / "out", parent, probes) if not f.good] == []
