"""With core dependencies alone every command works, or says which extra it needs and how to install it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import arrays_of, child_of
from edited_networks import trained
from stemma.checkpoints.save import save
from stemma.cli.missing_extras import EXTRAS, missing_extra

pytestmark = pytest.mark.anywhere

BLOCKED = """
import contextlib, io, json, sys

class Block:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in {modules}:
            raise ModuleNotFoundError("No module named '" + name + "'", name=name)

sys.meta_path.insert(0, Block())
from stemma.cli import main

for line in sys.stdin.read().splitlines():
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line.split())
        except SystemExit as left:
            code = left.code or 0
    print(json.dumps([line, code, out.getvalue(), err.getvalue()]), file=sys.__stdout__)
"""

WORKING = (
    "add models",
    "list",
    "show a",
    "check",
    "trace child.safetensors",
    "trace net --against models",
    "compare models/a.safetensors child.safetensors",
    "explain models/a.safetensors child.safetensors",
    "lineage models child.safetensors",
    "fingerprint child.safetensors",
    "export child.safetensors --format sarif",
    "export --all --format sarif",
    "remove a",
)

NEEDING = {
    "compare net net --probes p.npz": "networks",
    "compare net net --probes noise:n=8": "networks",
    "distance net net --probes p.npz": "networks",
    "distance net net --probes pictures": "networks",
    "distance bare.safetensors net --probes p.npz --network mynets:make --allow-code": "networks",
    "fingerprint net --method gradient-field --probes p.npz": "networks",
    "fingerprint net --method dna --probes p.npz": "networks",
    "competition net --probes pairs.npz": "networks",
    "prune net --ratio .3 --out smaller --probes p.npz": "networks",
    "unlearn net --forget p.npz --out forgot": "networks",
    "verify unlearning --original net --unlearned net --forget p.npz": "networks",
    "zoo list": "networks",
    "zoo show mlp/permuted": "networks",
    "zoo build mlp --out built": "networks",
    "train detector mlp:n=4,seed=1 --out detector.safetensors": "networks",
    "train direction --families 6 --kind mlp --out trained": "networks",
    "train dna mlp:n=8,seed=1 --out dna.safetensors": "networks",
    "demo --out made": "networks",
    "export child.safetensors --format cyclonedx": "standards",
    "export child.safetensors --format spdx": "standards",
    "export child.safetensors --format intoto": "standards",
    "export child.safetensors --format model-card": "hf",
    "export child.safetensors --format intoto --sign key.pem": "standards",
    "sign child.safetensors --key key.pem": "standards",
    "verify signature child.safetensors --public-key key.pem": "standards",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints without and with a network, and probe inputs."""
    folder = tmp_path_factory.mktemp("core")
    for inner in ("models", "pictures"):
        (folder / inner).mkdir()
    save_file(arrays_of(0), folder / "models" / "a.safetensors")
    save_file(arrays_of(1), folder / "models" / "b.safetensors")
    save_file(child_of(arrays_of(0), 5), folder / "child.safetensors")
    save(trained("mlp"), folder / "net")
    save_file(arrays_of(0), folder / "bare.safetensors")
    (folder / "key.pem").write_text("no key")
    (folder / "mynets.py").write_text("import torch\n")
    (folder / "pictures" / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    np.savez(folder / "p.npz", inputs=np.zeros((8, 1, 8, 8), np.float32), labels=np.zeros(8, np.int64))
    np.savez(folder / "pairs.npz", image=np.zeros((8, 3), np.float32), audio=np.zeros((8, 2), np.float32))
    return folder


def _run(place: Path, lines: tuple[str, ...]) -> list[tuple[str, int, str, str]]:
    code = BLOCKED.replace("{modules}", repr(set(EXTRAS)))
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lines), cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_commands_on_weights_work(place: Path) -> None:
    results = _run(place, WORKING)
    assert len(results) == len(WORKING)
    assert [(line, code, err) for line, code, _, err in results if code or err] == []
    assert all(out for _, _, out, _ in results)


@pytest.mark.slow
def test_other_commands_name_the_extra_and_how_to_install_it(place: Path) -> None:
    results = _run(place, tuple(NEEDING))
    assert len(results) == len(NEEDING)
    for line, code, out, err in results:
        assert code == (2 if "mynets" in line else 1), (line, out, err)
        found = re.search(r"needs the package '[\w-]+'\. Install it with: pip install 'stemma-ml\[(\w+)\]'", err)
        assert found, (line, err)
        assert found[1] == NEEDING[line], (line, err)
        assert "defect" not in err
        assert "Traceback" not in err


def test_the_extras_are_those_of_the_package() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = dict(re.findall(r"^(\w+) = \[(.*)\]", project.split("[project.optional-dependencies]")[1], re.MULTILINE))
    for package, extra in EXTRAS.values():
        assert re.search(rf'"{package}(\[[\w-]+\])?>=', extras[extra]), package


def test_import_errors_of_other_modules_are_none_of_an_extra() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")) == ("torch", "networks")
    assert missing_extra(ImportError("No module named torch")) == ("torch", "networks")
    assert missing_extra(ModuleNotFoundError("No module named 'mynets'", name="mynets")) is None
    assert missing_extra(ValueError("No module named 'torch'")) is None
