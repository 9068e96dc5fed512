"""What a notebook sees: the public names, in any order, and what they take."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import stemma
from stemma.errors import MisuseError

ACTIONS = ("compare", "distance", "lineage", "prune", "trace", "unlearn")


def arrays(seed: int, base: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    new = {f"layers.{i}.weight": rng.normal(size=(48, 48)).astype(np.float32) for i in range(3)}
    return new if base is None else {n: base[n] + np.float32(0.1) * x for n, x in new.items()}


def test_no_public_name_is_an_inner_package() -> None:
    inner = {m.name for m in pkgutil.iter_modules(stemma.__path__)}
    assert not inner & set(stemma.__all__)
    assert dir(stemma) == sorted(stemma.__all__)


def test_functions_stay_functions_whatever_was_imported() -> None:
    for module in pkgutil.iter_modules(stemma.__path__):
        if module.name != "__main__":
            importlib.import_module(f"stemma.{module.name}")
    for name in stemma.__all__:
        assert getattr(stemma, name) is not None
    assert all(type(getattr(stemma, name)).__name__ == "function" for name in ACTIONS)


def test_models_modules_and_paths_are_taken_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "r.db"))
    root = arrays(0)
    save_file(arrays(1, root), tmp_path / "child.safetensors")
    module = torch.nn.Sequential(*(torch.nn.Linear(48, 48, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer, weights in zip(module, root.values(), strict=True):
            layer.weight.copy_(torch.from_numpy(weights))
    for given in (stemma.from_arrays(root, "root"), module):
        assert stemma.compare(given, tmp_path / "child.safetensors").verdict == "related"
        for against in (given, [given], iter([given])):
            found = stemma.trace(str(tmp_path / "child.safetensors"), against=against)
            assert [r["digest"] for r in (*found.parents, *found.relatives)] == [stemma.compare(given, given).a.digest]
        drawn = stemma.lineage([given, tmp_path / "child.safetensors"])
        assert len(drawn.families) == 1
    with pytest.raises(MisuseError, match="torch module, not dict"):
        stemma.compare(root, tmp_path / "child.safetensors")  # ty: ignore[invalid-argument-type]


def test_probes_may_be_words_and_a_distance_is_a_document() -> None:
    torch.manual_seed(0)
    one, other = (
        stemma.from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4)).eval(), n) for n in "ab"
    )
    found = stemma.distance(one, other, "noise:n=32,seed=1,shape=1x4x4")
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["value"] == found.value > 0
    assert document["a"] == found.a


def test_the_package_runs_as_a_program() -> None:
    told = subprocess.run([sys.executable, "-m", "stemma", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["stemma", stemma.__version__]
