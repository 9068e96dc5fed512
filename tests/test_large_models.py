"""The same answers at a hundred million parameters, read from files in bfloat16."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from stemma.kinship.compare import compare
from stemma.networks.load import load

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 2816, "vocab_size": 16000, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return importlib.import_module("speed")


@pytest.mark.anywhere
@pytest.mark.slow
def test_a_large_language_model_is_found_in_another_order_and_scale_and_told_from_a_stranger(
    speed: ModuleType, tmp_path: Path
) -> None:
    speed.generate(tmp_path / "base", SHAPE, 1)
    speed.reorder(tmp_path / "base", tmp_path / "moved", SHAPE, 2, noise=0.03, scale=1.7)
    base = load(tmp_path / "base")
    assert base.parameters > 100_000_000
    found = compare(base, load(tmp_path / "moved"))
    assert (found.verdict, found.not_tested) == ("related", ())
    assert found.weights.log10_p is not None
    assert found.weights.log10_p < -1000
    assert found.weights.effect > 0.95
    assert "units permuted" in found.relation.steps
    speed.generate(tmp_path / "stranger", SHAPE, 3)
    apart = compare(base, load(tmp_path / "stranger"))
    assert (apart.verdict, apart.not_tested) == ("independent", ())
