"""`stemma explain`: the account first, then every layer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    parent = arrays_of(0)
    child = dict(parent)
    for name in ("fc1.weight", "fc2.weight"):
        step = np.abs(parent[name]).max(1, keepdims=True) / 127
        child[name] = (np.round(parent[name] / step) * step).astype(np.float32)
    save_file(parent, tmp_path / "parent.safetensors")
    save_file(child, tmp_path / "child.safetensors")
    return tmp_path / "parent.safetensors", tmp_path / "child.safetensors"


def test_the_account_and_every_layer_are_in_the_document(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("explain", *pair, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["kind"] == "quantized"
    assert found["steps"][0]["parameters"]["bits"] == 8
    assert found["steps"][0]["parameters"]["tensors"] == ["fc1.weight", "fc2.weight"]
    became = {c["name"]: c["status"] for c in found["layers"]}
    assert {n for n, s in became.items() if s == "changed"} == {"fc1.weight", "fc2.weight"}
    assert {s for n, s in became.items() if n not in ("fc1.weight", "fc2.weight")} == {"inherited"}
    assert found["bits"] < found["plain_bits"]
    assert found["residual"] <= found["floor"]


def test_a_person_reads_the_account_first(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, _ = run("explain", *pair)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith(": quantized")
    assert re.search(r"step 1 +quantized .*8 bits", " ".join(out.split()))
    assert any(line.startswith("fc1.weight") and "changed" in line for line in lines)


def test_the_other_way_round_is_said(run: Run, pair: tuple[Path, Path]) -> None:
    parent, child = pair
    found = json.loads(run("explain", child, parent, "--json")[1])
    assert found["kind"] != "quantized"
    assert any("the opposite direction" in note and "8 bits" in note for note in found["notes"])


def test_strangers_are_not_explained(run: Run, tmp_path: Path) -> None:
    save_file(arrays_of(0), tmp_path / "a.safetensors")
    save_file(arrays_of(1), tmp_path / "b.safetensors")
    save_file(child_of(arrays_of(0), 2), tmp_path / "c.safetensors")
    found = json.loads(run("explain", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json")[1])
    assert (found["kind"], found["steps"]) == ("unrelated", [])
    kin = json.loads(run("explain", tmp_path / "a.safetensors", tmp_path / "c.safetensors", "--json")[1])
    assert kin["kind"] != "unrelated"
    assert kin["relative"] == pytest.approx(0.2, abs=0.03)


def test_long_models_are_summarised_by_block_and_names_are_never_markup(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = {f"blocks.{i}.fc{j}.weight": rng.normal(size=(24, 24)).astype(np.float32) for i in range(12) for j in (1, 2)}
    many |= {f"blocks.{i}.fc{j}.bias": rng.normal(size=24).astype(np.float32) for i in range(12) for j in (1, 2)}
    many["[bold]head[/bold]\x1b[31m.weight"] = rng.normal(size=(5, 24)).astype(np.float32)
    save_file(many, tmp_path / "a.safetensors")
    save_file({n: (x * 1.01 if "blocks.3." in n else x).astype(np.float32) for n, x in many.items()},
              tmp_path / "b.safetensors")  # fmt: skip
    out = run("explain", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1]
    assert "blocks.3 (4 tensors)" in out
    assert "[bold]head[/bold]" in out
    assert "\x1b[31m" not in out
    whole = run("explain", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layers")[1]
    assert whole.count("blocks.3.fc1") == 2


def test_what_is_not_there_is_one_clear_error(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("explain", pair[0], "nothing-here")
    assert (code, out) == (1, "")
    assert "there is no file 'nothing-here'" in err
