"""Files and folders that people have in place of a clean checkpoint: read right, or refused by name in a sentence."""

import gzip
import json
import logging
import lzma
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints import Run
from stemma.checkpoints import duplicate_files, load
from stemma.checkpoints.folders import Checkpoint, Unread, survey
from stemma.checkpoints.formats import unsupported
from stemma.errors import NotAModelError, StemmaError, UnreadableModelError, UnsafeFileError
from stemma.workspace.enrol import discover, with_distinct_names
from test_formats import write_safetensors, write_torch
from test_hostile_files import outcome

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 821504\n"
ENDINGS = (
    "safetensors", "bin", "gguf", "onnx", "pt", "pth", "h5", "npz", "npy", "keras", "tflite", "msgpack", "ckpt", "pt2",
    "pkl", "pdparams",
)  # fmt: skip


def arrays(seed: int = 0, side: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    layers = {f"layers.{i}.weight": rng.normal(size=(side, side)).astype("f4") for i in range(3)}
    return layers | {"bias": rng.normal(size=side).astype("f4")}


def said(path: Path) -> str:
    """The one sentence of a refusal."""
    with pytest.raises(StemmaError) as caught:
        load.open_models(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_stands_in_a_files_place_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    for content, words in (
        (POINTER, "git-lfs pointer.*git lfs pull"),
        (b"# xet version 0\nfilesize = 3\n", "git-xet pointer"),
        (b"/annex/objects/SHA256E-s821504--ab.bin\n", "git-annex pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n\n <html lang='en'>", "web page"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableModelError, match=words):
            load.load(path)
    if ending == "pkl":
        return
    for content, words in (
        (b'{"error": "Repository not found"}', "server response"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "server response"),
        (b"Entry not found", "text file without weights"),
        (bytes(5000), "zero bytes"),
        (b"", "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableModelError, match=words):
            load.load(path)


@pytest.mark.parametrize("ending", ["safetensors", "bin", "gguf", "pt", "h5", "onnx", "xyz"])
def test_archives_of_models_are_to_be_unpacked(tmp_path: Path, ending: str) -> None:
    inner = write_safetensors(tmp_path / "m.safetensors", arrays())
    path = tmp_path / "x" / f"a.{ending}"
    path.parent.mkdir()
    for name, pack in (("xz", lzma.compress), ("gzip", gzip.compress)):
        path.write_bytes(pack(inner.read_bytes()))
        assert name in said(path)
    with zipfile.ZipFile(path, "w") as z:
        z.write(inner, "m.safetensors")
    assert "zip archive" in said(path)
    with tarfile.open(path, "w") as t:
        t.add(inner, "m.safetensors")
    assert "tar archive" in said(path)


FOREIGN = {
    "fastText": struct.pack("<ii", 793712314, 12),
    "older than GGUF": b"lmgg" + bytes(9),
    "GGML": b"tjgg" + bytes(9),
    "word2vec": b"3000000 300\nthe " + bytes(9),
    "CTranslate2": struct.pack("<IH", 6, 16) + b"TransformerSpec\0",
    "ncnn": b"\x47\x6b\x30\x01" + bytes(9),
    "ONNX Runtime": struct.pack("<I", 24) + b"ORTM" + bytes(9),
    "ExecuTorch": struct.pack("<I", 24) + b"ET12" + bytes(9),
    "llamafile": b"\x7fELF" + bytes(60),
    "XGBoost": b"binf" + bytes(60),
    "LightGBM": b"tree\nversion=v4\n",
    "CatBoost": b"CBM1" + bytes(60),
    "unknown format": np.random.default_rng(1).bytes(300),
}


@pytest.mark.parametrize("word", FOREIGN)
def test_foreign_binaries_are_named_by_their_first_bytes(tmp_path: Path, word: str) -> None:
    for ending in ("bin", "model", "pt"):
        (tmp_path / f"x.{ending}").write_bytes(FOREIGN[word])
        with pytest.raises(NotAModelError, match=word):
            load.load(tmp_path / f"x.{ending}")


def test_raw_numbers_are_named_by_the_graph_beside_them(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    raw = np.random.default_rng(0).normal(size=50).astype("f4").tobytes()
    for file, text, word in (
        ("a.xml", '<?xml version="1.0"?><net name="x">', "OpenVINO"),
        ("b.param", "7767517", "ncnn"),
    ):
        (tmp_path / file).write_text(text)
        (tmp_path / file).with_suffix(".bin").write_bytes(raw)
        assert word in said(tmp_path / file)
        assert word in said((tmp_path / file).with_suffix(".bin"))
    inside = tmp_path / "x.mlpackage" / "Data" / "weights"
    inside.mkdir(parents=True)
    (inside / "weight.bin").write_bytes(raw)
    assert "Core ML" in said(inside / "weight.bin")
    assert "Core ML" in said(tmp_path / "x.mlpackage")
    tensor = onnx.TensorProto(name="w", dims=[50], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="outside.bin")
    made = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "c.onnx").write_bytes(made.SerializeToString())
    (tmp_path / "outside.bin").write_bytes(raw)
    assert "use the .onnx" in said(tmp_path / "outside.bin")
    (tmp_path / "other.bin").write_bytes(raw)
    assert "unknown format" in said(tmp_path / "other.bin"), "the control: no graph speaks of it"


def test_shells_of_zero3_are_no_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content = {k: torch.from_numpy(v) for k, v in arrays().items()}
    some = {k: torch.empty(0) if i % 2 else v for i, (k, v) in enumerate(content.items())}
    for named, part in (("half", some), ("all", {k: torch.empty(0) for k in content})):
        for file, whole in (("plain", part), ("deepspeed", {"module": part, "ds_version": "0.1", "optimizer": None})):
            torch.save(whole, tmp_path / f"{named}_{file}.pt")
            with pytest.raises(UnreadableModelError, match=r"empty ZeRO-3 placeholders.*zero_to_fp32"):
                load.load(tmp_path / f"{named}_{file}.pt")
    torch.save({**content, "cache": torch.empty(0), "no_rows": torch.empty(0, 8)}, tmp_path / "control.pt")
    assert len(load.load(tmp_path / "control.pt").tensors) == 6, "an empty buffer among weights is no shell"
    torch.save({"a": torch.empty(0, 8), "b": torch.empty(0, 3)}, tmp_path / "nothing.pt")
    with pytest.raises(NotAModelError, match="tensors are empty"):
        load.load(tmp_path / "nothing.pt")
    step = tmp_path / "run" / "global_step5"
    step.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text("global_step5")
    torch.save({"module": some, "ds_version": "1"}, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert "DeepSpeed" in said(tmp_path / "run")
    assert "DeepSpeed" in said(step)
    assert [c.name for c in load.discover(tmp_path)] == ["all_deepspeed", "all_plain", "control", "half_deepspeed",
                                                         "half_plain", "nothing"]  # fmt: skip
    torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9)]}}, tmp_path / "zero_optim_states.pt")
    assert "zero_to_fp32" in said(tmp_path / "zero_optim_states.pt")


def llama(seed: int, tokens: bool) -> tuple[dict[str, np.ndarray], dict[str, int | None]]:
    """A network in Meta's names, and the axis along which each tensor is cut."""
    rng = np.random.default_rng(seed)
    shapes = {
        "tok_embeddings.weight": ((10, 8), 0 if tokens else 1), "output.weight": ((10, 8), 0),
        "norm.weight": ((8,), None),
        "layers.0.attention.wq.weight": ((8, 8), 0), "layers.0.attention.wk.weight": ((4, 8), 0),
        "layers.0.attention.wo.weight": ((8, 8), 1), "layers.0.feed_forward.w1.weight": ((12, 8), 0),
        "layers.0.feed_forward.w2.weight": ((8, 12), 1), "layers.0.attention_norm.weight": ((8,), None),
    }  # fmt: skip
    return {n: rng.normal(size=s).astype("f4") for n, (s, _) in shapes.items()}, {n: a for n, (_, a) in shapes.items()}


@pytest.mark.parametrize("tokens", [True, False])
def test_model_parallel_ranks_are_joined(tmp_path: Path, tokens: bool) -> None:
    values, axes = llama(0, tokens)
    for rank in range(2):
        cut = {n: v if axes[n] is None else np.split(v, 2, axes[n])[rank] for n, v in values.items()}
        write_torch(tmp_path / f"consolidated.0{rank}.pth", cut)
    (tmp_path / "params.json").write_text("{}")
    found = load.load(tmp_path)
    assert found.digest == load.from_arrays(values, "m").digest
    np.testing.assert_array_equal(
        found.tensors["layers.0.attention.wo.weight"].rows(3, 5), values["layers.0.attention.wo.weight"][3:5]
    )
    assert [c.path for c in load.discover(tmp_path)] == [tmp_path]
    assert "one of 2 model-parallel ranks" in said(tmp_path / "consolidated.00.pth")
    (tmp_path / "consolidated.00.pth").unlink()
    assert "model-parallel rank 1" in said(tmp_path / "consolidated.01.pth")


def megatron(seed: int, style: str, *, gated: bool) -> tuple[dict[str, np.ndarray], dict[str, int | None]]:
    """A network in Megatron's layout, and the axis along which each tensor is cut."""
    rng, d, inner = np.random.default_rng(seed), 16, 24
    qkv, out, up, down, p = {
        "core": ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2",
                 "decoder.layers.0."),
        "old": ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
                "language_model.encoder.layers.0."),
    }[style]  # fmt: skip
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {
        f"{p}{qkv}.weight": ((3 * d, d), 0), f"{p}{qkv}.bias": ((3 * d,), 0), f"{p}{out}.weight": ((d, d), 1),
        f"{p}{out}.bias": ((d,), None), f"{p}{up}.weight": (((2 if gated else 1) * inner, d), 0),
        f"{p}{up}.bias": (((2 if gated else 1) * inner,), 0), f"{p}{down}.weight": ((d, inner), 1),
        f"{p}input_layernorm.weight": ((d,), None), f"{p}final_layernorm.bias": ((d,), None),
        "embedding.word_embeddings.weight": ((32, d), 0), "embedding.position_embeddings.weight": ((20, d), None),
        "output_layer.weight": ((32, d), 0),
    }  # fmt: skip
    return {n: rng.normal(size=s).astype("f4") for n, (s, _) in shapes.items()}, {n: a for n, (_, a) in shapes.items()}


def _slice(x: np.ndarray, axis: int | None, rank: int, ranks: int, *, gated: bool) -> np.ndarray:
    if axis is None:
        return x
    if gated:
        return np.concatenate([np.split(half, ranks)[rank] for half in np.split(x, 2)])
    return np.split(x, ranks, axis)[rank]


@pytest.mark.parametrize("style", ["core", "old"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("folders", [True, False])
def test_megatrons_ranks_are_joined(tmp_path: Path, style: str, gated: bool, ranks: int, folders: bool) -> None:
    values, axes = megatron(0, style, gated=gated)
    for rank in range(ranks):
        cut = {n: _slice(x, axes[n], rank, ranks, gated=gated and ("fc1" in n or "h_to_4h.w" in n or "h_to_4h.b" in n))
               for n, x in values.items()}  # fmt: skip
        path = tmp_path / (f"mp_rank_0{rank}/model_optim_rng.pt" if folders else f"mp_rank_0{rank}_model_states.pt")
        path.parent.mkdir(exist_ok=True)
        write_torch(path, cut)
    found = load.load(tmp_path)
    assert found.digest == load.from_arrays(values, "m").digest
    assert any(f"{ranks} model-parallel ranks" in n for n in found.notes)
    assert [c.path for c in load.discover(tmp_path)] == [tmp_path]


def test_ranks_that_differ_where_no_rule_cuts_are_not_joined(tmp_path: Path) -> None:
    values, axes = megatron(0, "core", gated=True)
    for rank in range(2):
        cut = {n: _slice(x, axes[n], rank, 2, gated="fc1" in n) for n, x in values.items()}
        cut["embedding.position_embeddings.weight"] = cut["embedding.position_embeddings.weight"] + rank
        (tmp_path / f"mp_rank_0{rank}").mkdir()
        write_torch(tmp_path / f"mp_rank_0{rank}" / "model_optim_rng.pt", cut)
    assert "position_embeddings" in said(tmp_path)
    assert "convert.py" in said(tmp_path)
    for rank in range(2):
        (tmp_path / f"mp_rank_0{rank}").rename(tmp_path / f"mp_rank_00_00{rank}")
    assert "pipeline stages" in said(tmp_path)
    with pytest.raises(NotAModelError, match="one of 2 model-parallel ranks"):
        load.load(tmp_path / "mp_rank_00_000" / "model_optim_rng.pt")


def test_ranks_of_another_layout_are_said_to_be_ranks(tmp_path: Path) -> None:
    for rank in range(2):
        write_torch(tmp_path / f"mp_rank_0{rank}_model_states.pt", {n: v[rank * 4 :][:4] for n, v in arrays().items()})
    assert "2 model-parallel ranks" in said(tmp_path)
    assert "one of 2 model-parallel ranks" in said(tmp_path / "mp_rank_01_model_states.pt")
    (tmp_path / "mp_rank_00_model_states.pt").unlink()
    for rank in range(2):
        (tmp_path / "megatron" / f"mp_rank_0{rank}").mkdir(parents=True)
        write_torch(tmp_path / "megatron" / f"mp_rank_0{rank}" / "model_optim_rng.pt", arrays())
    assert "same tensors" in said(tmp_path / "megatron")
    with pytest.raises(NotAModelError, match="one of 2 model-parallel ranks"):
        load.load(tmp_path / "megatron" / "mp_rank_00" / "model_optim_rng.pt")
    (tmp_path / "alone").mkdir()
    write_torch(tmp_path / "alone" / "consolidated.00.pth", arrays())
    assert load.load(tmp_path / "alone" / "consolidated.00.pth").parameters, "the control: the only rank is the model"


@pytest.mark.parametrize("ending", ["safetensors", "bin", "gguf"])
def test_one_part_of_several_is_not_the_model(tmp_path: Path, ending: str) -> None:
    values = arrays()
    names = sorted(values)
    for i in (1, 2):
        part = {n: values[n] for n in names[i - 1 :: 2]}
        path = tmp_path / f"model-0000{i}-of-00002.{ending}"
        if ending == "gguf":
            gguf = pytest.importorskip("gguf")
            writer = gguf.GGUFWriter(path, "x")
            for name, value in part.items():
                writer.add_tensor(name, value)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        else:
            (write_safetensors if ending == "safetensors" else write_torch)(path, part)
    assert load.load(tmp_path).digest == load.from_arrays(values, "m").digest
    assert "one of 2 parts. Use a folder" in said(path)
    (tmp_path / f"model-00001-of-00002.{ending}").unlink()
    assert "(1 are missing)" in said(path)
    with pytest.raises(UnreadableModelError, match="1 of 2 shards are missing"):
        load.load(tmp_path)


def test_other_weights_beside_those_that_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", arrays())
    write_torch(tmp_path / "pytorch_model.bin", {n: v.astype("f2") for n, v in arrays().items()})
    duplicate_files.warn.cache_clear()
    with caplog.at_level(logging.WARNING, "stemma"):
        assert load.load(tmp_path).notes == ()
        assert not caplog.messages, "the control: the same weights in half the width"
        write_torch(tmp_path / "pytorch_model.bin", arrays(1))
        found = load.load(tmp_path)
    assert found.digest == load.from_arrays(arrays(), "m").digest
    assert len(caplog.messages) == 1
    assert "hold different weights" in caplog.messages[0]
    assert found.notes


def test_a_cache_folder_of_the_hub_is_its_main_revision(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    for folder in ("blobs", "refs", "snapshots/" + "a" * 40, "snapshots/" + "b" * 40):
        (cache / folder).mkdir(parents=True)
    for seed, revision in enumerate(("a" * 40, "b" * 40)):
        write_safetensors(cache / "blobs" / revision[:4], arrays(seed))
        (cache / "snapshots" / revision / "model.safetensors").symlink_to(f"../../blobs/{revision[:4]}")
        (cache / "snapshots" / revision / "config.json").write_text("{}")
    (cache / "refs" / "main").write_text("b" * 40)
    assert load.load(cache).digest == load.from_arrays(arrays(1), "m").digest
    assert [c.name for c in load.discover(tmp_path)] == ["models--org--name/aaaaaaaa", "models--org--name"]
    (cache / "refs" / "main").unlink()
    assert "2 revisions" in said(cache)
    shutil.rmtree(cache / "snapshots" / ("a" * 40))
    assert load.load(cache).digest == load.from_arrays(arrays(1), "m").digest
    (cache / "blobs" / "bbbb").unlink()
    with pytest.raises(NotAModelError, match="a link to a missing file"):
        load.load(cache)


@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoints_are_read_whole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    state = {k: torch.from_numpy(v) for k, v in arrays().items()} | {"half": torch.randn(3, 4).bfloat16()}
    dcp.save({"model": state, "optimizer": {"m": torch.ones(3)}, "step": 3}, checkpoint_id=str(tmp_path / "d"))
    found = load.load(tmp_path / "d")
    assert found.digest == load.from_arrays(state, "m").digest
    assert [c.name for c in load.discover(tmp_path)] == ["d"]
    part = next((tmp_path / "d").glob("*.distcp"))
    assert "use its folder" in said(part)
    part.write_bytes(part.read_bytes()[:2000])
    with pytest.raises(UnreadableModelError, match="ends before"):
        load.load(tmp_path / "d")
    part.unlink()
    with pytest.raises(UnreadableModelError, match="is missing in"):
        load.load(tmp_path / "d")


def table(slices: dict[str, tuple[list[int], dict[tuple[int, ...], tuple[list[int], str]]]], path: Path) -> None:
    """Write the table and one file per slice of a sharded checkpoint, as several processes would."""
    import torch
    from torch.distributed.checkpoint import metadata as m
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    described, places = {}, {}
    for name, (size, parts) in slices.items():
        chunks = [m.ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, (s, _) in parts.items()]
        described[name] = m.TensorStorageMetadata(m.TensorProperties(torch.float32), torch.Size(size), chunks)
        for at, (_, file) in parts.items():
            length = (path / file).stat().st_size if (path / file).exists() else 9
            places[m.MetadataIndex(name, torch.Size(at))] = _StorageInfo(file, 0, length)
    (path / ".metadata").write_bytes(pickle.dumps(m.Metadata(described, storage_data=places)))


def test_slices_of_distributed_checkpoints_are_put_together(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.randn(6, 9)
    parts = {}
    for i, (r, c) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        piece = whole[r : r + 4, c : c + 4 if c == 0 else 9].clone()
        torch.save(piece, tmp_path / f"{i}.distcp")
        parts[r, c] = (list(piece.shape), f"{i}.distcp")
    table({"w": ([6, 9], parts)}, tmp_path)
    found = load.load(tmp_path).tensors["w"]
    np.testing.assert_array_equal(found.array(), whole.numpy())
    np.testing.assert_array_equal(found.rows(3, 5), whole.numpy()[3:5])
    for wrong in (
        {**parts, (4, 4): ([2, 5], "../3.distcp")}, {**parts, (4, 4): ([2, 5], "9.distcp")},
        {k: v for k, v in parts.items() if k != (4, 4)}, {**parts, (0, 4): parts[0, 0]},
    ):  # fmt: skip
        table({"w": ([6, 9], wrong)}, tmp_path)
        with pytest.raises(UnreadableModelError):
            load.load(tmp_path)


class Runs:
    """A pickle that would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def test_no_table_and_no_module_is_executed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    evil = Runs(tmp_path / "executed")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": evil}))
    net = torch.nn.Linear(3, 3)
    net.extra = evil
    torch.save(net, tmp_path / "m.pt")
    (tmp_path / "p.pdparams").write_bytes(pickle.dumps({"w": evil}))
    for path in (tmp_path / "d", tmp_path / "m.pt", tmp_path / "p.pdparams"):
        with pytest.raises(UnsafeFileError, match="system"):
            load.load(path)
    assert not (tmp_path / "executed").exists()


def test_more_foreign_names_than_any_checkpoint_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma.checkpoints.formats import pickles

    monkeypatch.setattr(pickles, "MAX_CLASSES", 3)
    code = b"\x80\x02]" + b"".join(b"cx.y\nN%d\na" % i for i in range(5)) + b"."
    (tmp_path / "x.pt").write_bytes(code)
    assert "could run code" in said(tmp_path / "x.pt")


def network() -> "object":
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6))
            self.tied = self.body[0]
            self.register_buffer("kept", torch.arange(3.0))
            self.register_buffer("transient", torch.ones(2), persistent=False)
            self.note = {"a": [1, 2]}

        def forward(self, x):
            return self.body(x) + self.kept.sum()

    Net.__module__, Net.__qualname__ = "test_unclear_files", "Net"
    globals()["Net"] = Net
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_whole_modules_are_their_state_dict(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    net = network()
    expected = load.from_arrays(net.state_dict(), "m").digest
    for content in (net, {"model": net, "epoch": 3, "optimizer": None}):
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        found = load.load(tmp_path / "m.pt")
        assert found.digest == expected
        assert "transient" not in found.tensors
    assert any("not run" in n and "Net" in n for n in found.notes)


def test_a_module_that_refers_to_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    net = torch.nn.Linear(2, 2)
    holder = torch.nn.Sequential(net)
    holder.__dict__["_modules"]["again"] = holder
    torch.save({"model": holder}, tmp_path / "m.pt")
    assert set(load.load(tmp_path / "m.pt").tensors) == {"0.weight", "0.bias"}


@pytest.mark.filterwarnings("ignore")
def test_torchscript_programs_are_their_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU()).eval()
    scripted, traced = torch.jit.script(net), torch.jit.trace(net, torch.ones(2, 6))
    for program in (scripted, traced):
        program.save(str(tmp_path / "m.pt"))
        found = load.load(tmp_path / "m.pt")
        assert found.digest == load.from_arrays(net.state_dict(), "m").digest
        assert any("TorchScript" in n for n in found.notes)
    torch.jit.freeze(scripted).save(str(tmp_path / "frozen.pt"))
    assert sorted(t.shape for t in load.load(tmp_path / "frozen.pt").tensors.values())[-1] == (6, 6)


@pytest.mark.filterwarnings("ignore")
def test_torchs_dynamic_8_bit_layers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    small = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, torch.qint8)
    torch.save(small.state_dict(), tmp_path / "state.pt")
    torch.save(small, tmp_path / "module.pt")
    for file in ("state.pt", "module.pt"):
        weights = load.load(tmp_path / file).weights
        for layer in ("0", "2"):
            want = getattr(small, layer).weight().dequantize().numpy()
            np.testing.assert_allclose(weights[f"{layer}.weight"].array(), want, rtol=1e-6)
            np.testing.assert_array_equal(weights[f"{layer}.bias"].array(), getattr(net, layer).bias.detach().numpy())


def test_paddles_files_and_mlx_arrays(tmp_path: Path) -> None:
    values = arrays()
    with (tmp_path / "m.pdparams").open("wb") as f:
        pickle.dump({**values, "StructuredToParameterName@@": {k: k for k in values}}, f, 2)
    assert load.load(tmp_path / "m.pdparams").digest == load.from_arrays(values, "m").digest
    np.savez(tmp_path / "weights.npz", **values)
    assert load.load(tmp_path / "weights.npz").digest == load.from_arrays(values, "m").digest
    packed = {"l.weight": np.ones((8, 8), "u4"), "l.scales": np.ones((8, 1), "f2"), "l.biases": np.ones((8, 1), "f2")}
    write_safetensors(tmp_path / "q.safetensors", packed)
    with pytest.raises(UnreadableModelError, match="MLX"):
        _ = load.load(tmp_path / "q.safetensors").weights


def test_tensorflow_js_folders(tmp_path: Path) -> None:
    values = {"d/kernel": np.arange(12, dtype="f4").reshape(3, 4), "d/bias": np.ones(3, "f4")}
    codes = np.arange(6, dtype="u1").reshape(2, 3)
    raw = b"".join(v.tobytes() for v in values.values()) + codes.tobytes()
    for i, part in enumerate((raw[:20], raw[20:]), 1):
        (tmp_path / f"group1-shard{i}of2.bin").write_bytes(part)
    listed = [{"name": n, "shape": list(v.shape), "dtype": "float32"} for n, v in values.items()]
    listed.append({"name": "q", "shape": [2, 3], "dtype": "float32",
                   "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0}})  # fmt: skip
    manifest = [{"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": listed}]
    (tmp_path / "model.json").write_text(json.dumps({"format": "layers-model", "weightsManifest": manifest}))
    found = load.load(tmp_path)
    for name, value in values.items():
        np.testing.assert_array_equal(found.tensors[name].array(), value)
    np.testing.assert_allclose(found.weights["q"].array(), codes * 0.5 - 1)
    assert [c.name for c in load.discover(tmp_path)] == ["model"]
    assert "model.json" in said(tmp_path / "group1-shard1of2.bin")
    manifest[0]["paths"] = ["../x.bin"]
    (tmp_path / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    with pytest.raises(UnsafeFileError, match="outside its folder"):
        load.load(tmp_path)


def test_models_of_other_libraries(tmp_path: Path) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    fitted = linear.LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    for ending in ("pt", "bin", "model"):
        (tmp_path / f"m.{ending}").write_bytes(pickle.dumps(fitted))
        assert "scikit-learn" in said(tmp_path / f"m.{ending}")
    for ending in ("pkl", "joblib"):
        (tmp_path / f"m.{ending}").write_bytes(pickle.dumps(fitted))
        assert "pickle" in said(tmp_path / f"m.{ending}")


def refused(root: Path) -> dict[str, Path]:
    """Folders whose only model is of a kind that is not read."""
    raw = np.ones(9, "f4").tobytes()
    for place, content in {
        "saved/saved_model.pb": b"\x08\x01", "tf/checkpoint": b'model_checkpoint_path: "m"',
        "tf/m.index": b"x", "tf/m.data-00000-of-00001": raw, "ov/m.xml": b"<?xml?><net >", "ov/m.bin": raw,
        "ncnn/m.param": b"7767517", "ncnn/m.bin": raw, "core/m.mlmodel": b"\x08\x04", "paddle/m.pdmodel": b"\x0a",
        "spacy/meta.json": b"{}", "spacy/config.cfg": b"[nlp]", "spacy/ner/model": b"\x84\xa5nodes",
        "frozen/g.pb": b"\x0a",
        "orbax/manifest.ocdbt": b"\x0c", "trt/m.engine": b"ptrt", "fast/m.bin": FOREIGN["fastText"],
    }.items():  # fmt: skip
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    words = {"saved": "SavedModel", "tf": "TensorFlow checkpoint", "ov": "OpenVINO", "ncnn": "ncnn", "core": "Core ML",
             "paddle": "PaddlePaddle", "spacy": "spaCy", "frozen": "TensorFlow graph", "orbax": "Orbax",
             "trt": "TensorRT", "fast": "fastText"}  # fmt: skip
    return {word: root / place for place, word in words.items()}


def test_a_folder_names_the_kind_that_it_holds(tmp_path: Path) -> None:
    for word, folder in refused(tmp_path).items():
        assert word in said(folder)
        assert word in next(iter(discover(folder, all_formats=False))).error
    (tmp_path / "nothing").mkdir()
    assert "Check the path" in said(tmp_path / "nothing")


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    kinds = refused(tmp_path)
    write_safetensors(tmp_path / "a.safetensors", arrays())
    np.save(tmp_path / "data.npy", np.ones(3))
    (tmp_path / "tokens.bin").write_bytes(np.random.default_rng(0).bytes(1 << 17))
    for junk in ("README.md", "config.yaml", "labels.xml", "notes.bin"):
        (tmp_path / junk).write_bytes(b"no weights")
    found = list(survey(tmp_path))
    assert [c.name for c in found if isinstance(c, Checkpoint)] == ["a"]
    skipped = {s.path.relative_to(tmp_path).parts[0] for s in found if isinstance(s, Unread) and s.is_model}
    assert skipped == {p.name for p in kinds.values()} - {"tf"}
    told = [r for r in discover(tmp_path, all_formats=False) if not isinstance(r, Checkpoint)]
    assert {r.status for r in told} == {"skipped", "left out"}
    assert all(r.error is None and "not supported" in r.note for r in told if r.status == "skipped")
    assert any("--all-formats" in r.note for r in told)
    assert any("tokens.bin was skipped" in r.note and r.status == "left out" for r in told)


def test_parts_of_a_pipeline_that_are_not_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    write_safetensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", arrays())
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.bin").write_bytes(FOREIGN["CTranslate2"])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    duplicate_files.warn.cache_clear()
    with caplog.at_level(logging.WARNING, "stemma"):
        assert [m.name.rpartition("/")[2] for m in load.open_models(tmp_path)] == ["unet"]
    assert len(caplog.messages) == 1
    assert "CTranslate2" in caplog.messages[0]


def test_pointers_in_a_folder_are_failures_not_junk(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.bin", "c.ckpt"):
        (tmp_path / name).write_bytes(POINTER)
    (tmp_path / "picture.dat").write_bytes(POINTER)
    assert [c.name for c in load.discover(tmp_path)] == ["a", "b", "c"]


def test_two_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for folder in ("one/run", "two/run"):
        (tmp_path / folder).mkdir(parents=True)
        write_safetensors(tmp_path / folder / "net.safetensors", arrays())
    found = [c for top in ("one", "two") for c in discover(tmp_path / top / "run", all_formats=False)]
    names = [c.name for c in with_distinct_names(found)]
    assert len(set(names)) == 2
    assert all(n.endswith("run/net") for n in names)
    assert [c.name for c in with_distinct_names(found[:1] * 2)] == ["net", "net"], "the control: one file given twice"


def onnx_matmul(
    path: Path, kind: str, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, names: tuple[str, ...]
) -> Path:
    import onnx
    from onnx import helper, numpy_helper

    w, s, z = names
    made = [numpy_helper.from_array(v, n) for n, v in zip(names, (codes, scale, zero), strict=True)]
    one = numpy_helper.from_array(np.array(1, "f4"), "one")
    null = numpy_helper.from_array(np.array(0, "u1"), "null")
    nodes = {
        "MatMulInteger": [helper.make_node("MatMulInteger", ["x", w, "null", z], ["y"])],
        "QLinearMatMul": [helper.make_node("QLinearMatMul", ["x", "one", "null", w, s, z, "one", "null"], ["y"])],
        "DequantizeLinear": [helper.make_node("DequantizeLinear", [w, s, z], ["d"])],
        "DequantizeLinear0": [helper.make_node("DequantizeLinear", [w, s, z], ["d"], axis=0)],
        "DequantizeLinear-1": [helper.make_node("DequantizeLinear", [w, s, z], ["d"], axis=-1)],
        "DynamicQuantizeMatMul": [helper.make_node("DynamicQuantizeMatMul", ["x", w, s, z], ["y"])],
        "QLinearConv": [helper.make_node("QLinearConv", ["x", "one", "null", w, s, z, "one", "null"], ["y"])],
        "inside": [helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph(
            [helper.make_node("DequantizeLinear", [w, s, z], ["d"])], "t", [], [], made))],
    }[kind]  # fmt: skip
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [], [], [] if kind == "inside" else [*made, one, null])), path
    )
    return path


@pytest.mark.parametrize(
    ("kind", "axis"),
    [("MatMulInteger", 1), ("QLinearMatMul", 1), ("DequantizeLinear", 1), ("DequantizeLinear0", 0),
     ("DequantizeLinear-1", 1), ("DynamicQuantizeMatMul", 1), ("QLinearConv", 0), ("inside", 1)],
)  # fmt: skip
def test_scales_lie_along_the_graphs_own_axis(tmp_path: Path, kind: str, axis: int) -> None:
    pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-127, 128, (12, 12)).astype("i1"), rng.random(12).astype("f4") + 0.1
    zero = rng.integers(-3, 4, 12).astype("i1")
    lay = (1, -1) if axis else (-1, 1)
    want = (codes.astype("f4") - zero.reshape(lay)) * scale.reshape(lay)
    for names in (("w_quantized", "w_scale", "w_zero_point"), ("onnx::7", "onnx::8", "onnx::9")):
        if names[0] != "w_quantized" and not kind.startswith("Dequantize"):
            continue  # there a scale is known by its name
        weights = load.load(onnx_matmul(tmp_path / "q.onnx", kind, codes, scale, zero, names)).weights
        found = next(t for n, t in weights.items() if t.shape == (12, 12))
        np.testing.assert_allclose(found.array(), want, rtol=1e-6)
    stored = load.load(onnx_matmul(tmp_path / "q.onnx", kind, codes, scale, zero, ("w", "w_scale", "w_zero_point")))
    kept = next(n for n in stored.tensors if n.endswith("w_scale"))
    assert stored.tensor_digests[kept] == load.from_arrays({"w_scale": scale}, "m").tensor_digests["w_scale"]


def test_every_refused_kind_says_what_to_do() -> None:
    kinds = [*unsupported.REFUSED.values(), *(k for _, k in unsupported.SIGNATURES)]
    assert len({k.what for k in kinds}) >= 40
    assert all(k.what.split()[0] in ("a", "an", "the", "one") and k.advice for k in kinds)


TENSORFLOW = Path(__file__).parent / "data" / "tensorflow"


@pytest.mark.parametrize(("file", "values"), [("model.ckpt-1", "ck"), ("model.ckpt-10", "v1")])
def test_tensorflows_checkpoints_as_tensorflow_reads_them(file: str, values: str) -> None:
    found = load.load(TENSORFLOW / f"{file}.index")
    with np.load(TENSORFLOW / f"{values}.npz") as stored:
        want = {k.replace("|", "/").removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): stored[k] for k in stored.files}
    want.pop("save_counter", None)
    assert set(found.tensors) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(found.tensors[name].array(), value)


def test_the_variables_of_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "net" / "variables").mkdir(parents=True)
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"\x08\x01")
    for ending in ("index", "data-00000-of-00001"):
        shutil.copy(TENSORFLOW / f"model.ckpt-1.{ending}", tmp_path / "net" / "variables" / f"variables.{ending}")
    assert load.load(tmp_path / "net").digest == load.load(TENSORFLOW / "model.ckpt-1.index").digest
    assert [c.name for c in load.discover(tmp_path)] == ["net"]
    data = tmp_path / "net" / "variables" / "variables.data-00000-of-00001"
    assert "use its .index" in said(data)
    data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(UnreadableModelError, match="ends before"):
        load.load(tmp_path / "net")
    data.unlink()
    with pytest.raises(UnreadableModelError, match="1 of 1 shards"):
        load.load(tmp_path / "net")


@pytest.mark.parametrize("file", ["model.ckpt-1", "model.ckpt-10"])
def test_a_damaged_table_is_an_error_or_a_consistent_model(tmp_path: Path, file: str) -> None:
    shutil.copy(TENSORFLOW / f"{file}.data-00000-of-00001", tmp_path)
    path, rng = tmp_path / f"{file}.index", np.random.default_rng(0)
    whole = (TENSORFLOW / f"{file}.index").read_bytes()
    for _ in range(300):
        changed = bytearray(whole)
        at = int(rng.integers(0, len(changed) - 9))
        changed[at : at + int(rng.integers(0, 9))] = rng.bytes(int(rng.integers(0, 9)))
        path.write_bytes(changed)
        assert outcome(path) not in ("inconsistent", "no sentence")


def test_what_a_reader_left_out_is_said_by_every_command(tmp_path: Path, run: Run) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weights = {f"l{i}.weight": torch.tensor(rng.normal(size=(24, 24)).astype("f4")) for i in range(3)}
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    torch.save({"state_dict": weights, "optimizer": {"step": torch.zeros(4)}, "epoch": torch.zeros(2)}, one)
    torch.save({"state_dict": {n: x + 0.01 for n, x in weights.items()}, "state_dict_ema": weights}, two)
    for words in (("compare", one, two), ("trace", two, "--against", one), ("explain", one, two), ("add", one, two)):
        code, _, err = run(*words, "--registry", tmp_path / f"{words[0]}.db")
        assert code == 0
        assert ("one: only 'state_dict' was read" in err) == (words[0] != "trace"), words
        if words[0] != "add":
            assert "two#ema in the same checkpoint was not read" in err, words
        document = json.loads(run(*words, "--registry", tmp_path / f"{words[0]}.db", "--json")[1])
        notes = document["models"][0]["note"] if words[0] == "add" else str(document["notes"])
        assert ("was read, not" if words[0] != "trace" else "two#ema") in notes, words
