"""Models of which most tensors are zeros, as in files with holes: zeros tell of no origin, and cost nothing."""

import numpy as np

from stemma.checkpoints.arrays import from_arrays
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import entries_with_content
from stemma.kinship.compare import compare

LAYERS, FILLED = 40, 1


def model(name: str, seed: int, noise: float = 0.0, filled: int = FILLED) -> Model:
    rng, arrays = np.random.default_rng(seed), {}
    for i in range(LAYERS):
        for part, shape in (("fc1", (96, 64)), ("fc2", (64, 96))):
            content = rng.standard_normal(shape, dtype="f4") if i < filled else np.zeros(shape, "f4")
            if i < filled and noise:
                content = content + np.float32(noise) * np.random.default_rng(i).standard_normal(shape, dtype="f4")
            arrays[f"layers.{i}.{part}.weight"] = content
    return from_arrays(arrays, name)


def test_a_child_is_found_by_the_few_layers_with_content_and_a_stranger_is_not() -> None:
    base = model("base", 1)
    assert entries_with_content(base) == FILLED * 2 * 96 * 64
    assert compare(base, model("child", 1, noise=0.1)).verdict == "related"
    stranger = compare(base, model("stranger", 2))
    assert stranger.verdict != "related"
    assert stranger.relation is None or stranger.relation.kind.value not in ("copy", "reformatted")


def test_equal_zeros_are_no_evidence_of_a_copy() -> None:
    one, other = model("one", 1, filled=0), model("other", 2, filled=0)
    assert one.digest == other.digest
    found = compare(one, other)
    assert found.verdict == "inconclusive"
    assert any("zeros" in e.reason for e in found.evidence)
    assert compare(model("a", 1), model("b", 1)).relation.kind.value == "copy"
