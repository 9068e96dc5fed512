"""`stemma add` stopped by Ctrl-C or killed: one line, nothing half-enrolled, no file left; a second run completes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from test_formats import write_safetensors

pytestmark = pytest.mark.anywhere

MODELS = 6


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for i in range(MODELS):
        rng = np.random.default_rng(i)
        arrays = {f"l{j}.weight": rng.standard_normal((256, 256), dtype="f4") for j in range(6)}
        write_safetensors(folder / f"m{i}.safetensors", arrays)
    return folder


def stemma(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stemma", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def clean(registry: str, place: Path) -> None:
    check = stemma("check", "--registry", registry)
    out, err = check.communicate(timeout=60)
    assert check.returncode == 0, f"{out}{err}"
    assert [p.name for p in place.rglob("*.partial")] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_at_random_moments(hub: Path, tmp_path: Path, kind: signal.Signals) -> None:
    rng, stopped, place = random.Random(int(kind)), 0, tmp_path / "r"
    registry = f"sqlite:///{place / 'registry.db'}"
    place.mkdir()
    for attempt in range(3):
        child = stemma("add", hub, "--registry", registry, "--keep-weights", *(["--jobs", "2"] if attempt % 2 else []))
        time.sleep(rng.uniform(0.5, 4))
        running = child.poll() is None
        if running:
            os.killpg(child.pid, kind) if kind == signal.SIGINT else child.kill()
        _, said = child.communicate(timeout=60)
        stopped += running
        if running and kind == signal.SIGINT and child.returncode:
            assert child.returncode in (130, -signal.SIGINT), said  # the latter before Stemma has begun
            assert "Traceback" not in said
        if (place / "registry.db").exists():
            clean(registry, place)
    whole = stemma("add", hub, "--registry", registry, "--keep-weights")
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    clean(registry, place)
    listed, _ = stemma("list", "--registry", registry).communicate(timeout=60)
    assert all(f"m{i}" in listed for i in range(MODELS))
    assert stopped
