"""What comparisons cost, in processor time beside hashing the same files: a tenfold loss does not pass unseen."""

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from processor_time import times_as_long
from stemma.kinship.compare import compare
from stemma.networks.load import load

pytestmark = pytest.mark.anywhere

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
LIMITS = {"child": ("related", 20.0), "stranger": ("independent", 36.0), "moved": ("related", 90.0)}
"""Verdict, and how many times hashing it may cost: about five times what was measured."""


@pytest.fixture(scope="module")
def benchmarks() -> Callable[[str], ModuleType]:
    return importlib.import_module


@pytest.fixture(scope="module")
def models(benchmarks: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    speed, folder = benchmarks("speed"), tmp_path_factory.mktemp("models")
    speed.generate(folder / "base", SHAPE, 1)
    speed.generate(folder / "child", SHAPE, 2, folder / "base")
    speed.generate(folder / "stranger", SHAPE, 3)
    speed.reorder(folder / "base", folder / "moved", SHAPE, 4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("other", LIMITS)
def test_large_models_are_compared_in_a_few_times_what_hashing_takes(models: Path, other: str) -> None:
    verdict, limit = LIMITS[other]
    files = [models / name / "model.safetensors" for name in ("base", other)]
    told = set()

    def hashed() -> None:
        for file in files:
            with file.open("rb", buffering=0) as f:
                hashlib.file_digest(f, "sha256")

    def compared() -> None:
        told.add(compare(load(models / "base"), load(models / other)).verdict)

    assert times_as_long(compared, hashed, limit) <= limit
    assert told == {verdict}


@pytest.mark.slow
def test_many_tensors_without_namesakes_cost_in_proportion(
    benchmarks: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    cases = benchmarks("testbeds.speed_cases")

    def made(count: int) -> Callable[[], object]:
        paths = [cases.kept(tmp_path / f"{count}-{side}", cases.nameless(side, count, side)) for side in (0, 1)]
        return lambda: compare(*(load(path) for path in paths))

    assert times_as_long(made(1200), made(300), 9) <= 9  # measured: 3 to 4; twelvefold where pairs are looked at
