"""Pruning block by block: the same result as in memory, whatever happens on the way, and clear refusals."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from stemma import networks
from stemma.checkpoints.save import save
from stemma.edits import Pruning
from stemma.edits.artefacts.save import write
from stemma.edits.streaming.streamed_pruning import prune_block_by_block
from stemma.errors import MisuseError, StemmaError
from stemma.networks.load import from_arrays, load
from stemma.probes import Probes

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 48,
    "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from stemma.edits import Pruning
from stemma.edits.streaming import streamed_folder
from stemma.edits.streaming.streamed_pruning import prune_block_by_block
from stemma.networks.load import load
from stemma.probes import Probes
left = int(sys.argv[3])
keep = streamed_folder.StreamedFolder.keep
write = streamed_folder.StreamedFolder.write
def counted(real):
    def call(*given):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)
    return call
streamed_folder.StreamedFolder.keep, streamed_folder.StreamedFolder.write = counted(keep), counted(write)
probes = Probes.of(np.load(sys.argv[4])["inputs"])
prune_block_by_block(Pruning(keep_ratio=0.75), load(sys.argv[1]), probes, Path(sys.argv[2]))
"""


def llama(folder: Path, seed: int = 0, **config: object) -> Path:
    """A small decoder with grouped queries whose norms and activations are far from trivial."""
    settings = {**CONFIG, **config}
    torch.manual_seed(seed)
    module = networks.build(settings)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.ndim == 1 else p.mul_(3)
    half = {n: t.bfloat16() if settings.get("half") else t for n, t in module.state_dict().items()}
    settings.pop("half", None)
    save(from_arrays(half, folder.name, settings), folder, settings, max_shard_bytes=60_000)
    return folder


def tokens(n: int = 40, length: int = 12, words: int = 61) -> Probes:
    """Random token ids."""
    return Probes.of(np.random.default_rng(0).integers(0, words, (n, length)))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The weights of a folder, file by file."""
    return {f.name: f.read_bytes() for f in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"num_hidden_layers": 2}, {"keep_ratio": 0.75, "heads": True}),
        (
            {"tie_word_embeddings": True, "half": True, "num_hidden_layers": 2},
            {"budget": "macs", "keep_ratio": 0.8, "score": "energy", "sequential": False, "compensation": "scalar"},
        ),
    ],
)
def test_it_is_the_result_of_pruning_in_memory(tmp_path: Path, settings: dict, method: dict) -> None:
    model, probes = load(llama(tmp_path / "net", **settings)), tokens()
    inside = Pruning(allocation="uniform", weigh=False, recalibrate=False, **method)
    edited = inside(model, probes)
    plan, receipt = prune_block_by_block(Pruning(**method), model, probes, tmp_path / "streamed")
    expected = write(edited, tmp_path / "memory", probes)
    a, b = load(tmp_path / "memory"), load(tmp_path / "streamed")
    assert plan.kept == edited.plan.kept
    assert plan.slices == edited.plan.slices
    assert plan.spec == edited.plan.spec
    assert b.config == a.config
    rounding = 0.01 if "half" in settings else 1e-5  # in memory this network is written in single precision
    for name in b.tensors:
        x, y = (m.tensors[name].array() for m in (a, b))
        assert np.abs(x - y).max() <= rounding * np.abs(x).max()
    for key in ("macs", "parameters", "error", "same_top_answer"):
        assert receipt.measured[key] == pytest.approx(expected.measured[key], rel=1e-4)
    assert receipt.measured["layers"] == pytest.approx(expected.measured["layers"], rel=1e-4)
    assert receipt.child == b.digest
    assert receipt.plan == plan.digest
    x = torch.tensor(probes.inputs[:4])
    with torch.no_grad():
        answers = [m.network(x) for m in (a, b)]
    assert float((answers[0] - answers[1]).abs().max()) <= rounding * 10 * float(answers[0].abs().max())


def test_an_interrupted_run_is_continued_and_only_by_itself(tmp_path: Path) -> None:
    folder, out, probes = llama(tmp_path / "net"), tmp_path / "out", tokens()
    method = Pruning(keep_ratio=0.75)
    prune_block_by_block(method, load(folder), probes, tmp_path / "whole")

    def interrupt(what: str, done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_block_by_block(method, load(folder), probes, out, progress=interrupt)
    assert not out.exists()
    with pytest.raises(MisuseError, match="unfinished run with another model"):
        prune_block_by_block(method, load(llama(tmp_path / "other", seed=1)), probes, out)
    with pytest.raises(MisuseError, match="another set of inputs"):
        prune_block_by_block(method, load(folder), tokens(41), out)
    with pytest.raises(MisuseError, match="another set of parameters"):
        prune_block_by_block(Pruning(keep_ratio=0.5), load(folder), probes, out)
    told: list[tuple[int, int | None]] = []
    prune_block_by_block(method, load(folder), probes, out, progress=lambda _, done, total: told.append((done, total)))
    assert told == [(2, 3)]
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "other", "out", "whole"]
    assert (out / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    folder, probes = llama(tmp_path / "net"), tokens()
    np.savez(tmp_path / "p.npz", inputs=probes.inputs)
    prune_block_by_block(Pruning(keep_ratio=0.75), load(folder), probes, tmp_path / "whole")
    for moment in (0, 1, 4, 7):
        out = tmp_path / f"out-{moment}"
        command = [sys.executable, "-c", KILLED, folder, out, str(moment), tmp_path / "p.npz"]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not out.exists()
        prune_block_by_block(Pruning(keep_ratio=0.75), load(folder), probes, out)
        assert bytes_of(out) == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "method", "probes", "words"),
    [
        ({"model_type": "mamba"}, {}, tokens(), "blocks are known of"),
        ({"architectures": ["LlamaForTokenClassification"]}, {}, tokens(), "language modelling head"),
        ({}, {"allocation": "dynamic"}, tokens(), "curves of all blocks"),
        ({}, {"ignore": (r"layers\.0\.",)}, tokens(), "different widths"),
        ({}, {}, tokens(words=99), "no such token"),
        ({}, {}, tokens(length=70), "64 at most"),
    ],
)
def test_what_is_not_supported_is_refused_before_any_work(
    tmp_path: Path, config: dict, method: dict, probes: Probes, words: str
) -> None:
    folder = llama(tmp_path / "net")
    if config:
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    with pytest.raises(MisuseError, match=words):
        prune_block_by_block(Pruning(**{"keep_ratio": 0.75, **method}), load(folder), probes, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_blocks_that_differ_and_weights_that_change_are_found(tmp_path: Path) -> None:
    folder, out = llama(tmp_path / "net"), tmp_path / "out"
    arrays = {n: t.array() for n, t in load(folder).tensors.items()}
    odd = {n: a[:40] if n == "model.layers.1.mlp.up_proj.weight" else a for n, a in arrays.items()}
    save(from_arrays(odd, "odd", CONFIG), tmp_path / "odd", CONFIG)
    with pytest.raises(MisuseError, match=r"block 1 differs from the first in mlp\.up_proj"):
        prune_block_by_block(Pruning(), load(tmp_path / "odd"), tokens(), out)

    def touch(what: str, done: int, total: int | None) -> None:
        file = next(folder.glob("*.safetensors"))
        file.touch()

    with pytest.raises(StemmaError, match="changed while they were read"):
        prune_block_by_block(Pruning(), load(folder), tokens(), out, progress=touch)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "Qwen2ForCausalLM", "MistralForCausalLM", "BertForMaskedLM"])
def test_architectures_of_transformers_give_the_result_of_pruning_in_memory(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    module_class = getattr(transformers, kind)
    size = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 8, "max_position_embeddings": 64}  # fmt: skip
    more = {
        "GPT2LMHeadModel": {"n_inner": 80},
        "Qwen2ForCausalLM": {
            "num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1
        },
        "MistralForCausalLM": {"num_key_value_heads": 4, "sliding_window": 4},
    }.get(kind, {})  # fmt: skip
    torch.manual_seed(0)
    module = module_class(module_class.config_class(**size, **more))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.ndim == 1 else p.mul_(4)
    module.save_pretrained(tmp_path / "net")
    model, probes = load(tmp_path / "net"), tokens()
    inside = Pruning(keep_ratio=0.75, allocation="uniform", weigh=False, recalibrate=False)
    write(inside(model, probes), tmp_path / "memory", probes)
    prune_block_by_block(Pruning(keep_ratio=0.75), model, probes, tmp_path / "streamed")
    a, b = load(tmp_path / "memory"), load(tmp_path / "streamed")
    for name in a.tensors.keys() & b.tensors.keys():
        x, y = (m.tensors[name].array() for m in (a, b))
        assert np.abs(x - y).max() <= 1e-5 * np.abs(x).max()
    answer = module_class.from_pretrained(tmp_path / "streamed")(torch.tensor(probes.inputs)).logits
    wanted = module_class.from_pretrained(tmp_path / "memory")(torch.tensor(probes.inputs)).logits
    assert torch.allclose(answer, wanted, rtol=1e-3, atol=1e-3)
