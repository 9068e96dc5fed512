"""Every test runs offline, on one thread, and never near the user's own registry."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.setdefault("STEMMA_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "stemma"))

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "registry" / "registry.db"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no folder 'shared' with real checkpoints beside the checkout")
    return SHARED
