"""Boosted trees as a table: the scores of scikit-learn, without scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stemma.ancestry.boosted_trees import BoostedTrees
from stemma.errors import MisuseError, UnreadableModelError
from stemma.training.direction import _as_table


def fitted(classes: int) -> tuple[object, np.ndarray]:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    y = np.digitize(x[:, 0] * x[:, 1] + x[:, 2], np.linspace(-1, 1, classes - 1))
    return ensemble.HistGradientBoostingClassifier(max_iter=25, max_leaf_nodes=8, random_state=0).fit(x, y), x


@pytest.mark.parametrize("classes", [2, 3])
def test_the_table_scores_as_the_library_does(classes: int, tmp_path: Path) -> None:
    model, x = fitted(classes)
    trees = _as_table(model, {"features": list("abcde"), "made by": "a test"})
    expected = np.reshape(model.decision_function(x), (len(x), -1))  # type: ignore[attr-defined]
    np.testing.assert_allclose(trees.scores(x), expected, atol=1e-5)
    assert expected.std() > 0.5  # the control: there is something to agree on
    trees.save(tmp_path / "trees.safetensors")
    again = BoostedTrees.load(tmp_path / "trees.safetensors")
    np.testing.assert_array_equal(again.scores(x), trees.scores(x))
    assert again.names == tuple("abcde")
    assert again.about["made by"] == "a test"


def test_wrong_rows_and_wrong_files_are_refused(tmp_path: Path) -> None:
    model, x = fitted(2)
    trees = _as_table(model, {"features": list("abcde")})
    with pytest.raises(MisuseError, match="5 features"):
        trees.scores(x[:, :4])
    save_file({"w": np.ones((3, 3), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UnreadableModelError, match="no boosted trees"):
        BoostedTrees.load(tmp_path / "w.safetensors")
