"""Old names of parameters are accepted for one release with a warning, and plans that recorded them still verify."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edited_networks import stemma, trained
from stemma.checkpoints.save import save
from stemma.edits.artefacts.save import write
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.errors import MisuseError
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.verification.edit import EditReplay, read
from stemma.zoo import data

pytestmark = pytest.mark.anywhere

PRUNING = {"keep_ratio": "share", "min_keep": "least", "round_to": "multiple"}
UNLEARNING = {"max_fraction": "most"}


@pytest.mark.parametrize(
    ("kind", "old", "new", "value"),
    [
        (Pruning, "share", "keep_ratio", 0.4),
        (Pruning, "least", "min_keep", 0.2),
        (Pruning, "multiple", "round_to", 4),
        (Unlearning, "most", "max_fraction", 0.5),
    ],
)
def test_old_keywords_are_taken_with_a_warning_that_names_the_new_one(
    kind: Any, old: str, new: str, value: float
) -> None:
    with pytest.warns(DeprecationWarning, match=f"'{old}' is deprecated.*use '{new}'"):
        method = kind(**{old: value})
    assert method == kind(**{new: value})
    assert method.spec.params[new] == value
    assert old not in method.spec.params
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(method, old) == value
    with pytest.raises(MisuseError, match=f"'{old}' is the old name of '{new}'"):
        kind(**{old: value, new: value})
    assert replace(method, seed=3) == kind(**{new: value, "seed": 3})


def test_old_names_of_multimodal_training_are_taken() -> None:
    import stemma.multimodal as multimodal
    from stemma.multimodal.masks import Zero
    from stemma.multimodal.strategies import Agm

    with pytest.warns(DeprecationWarning, match="use 'ContributionTest'"):
        assert multimodal.LeaningTest is multimodal.ContributionTest
    with pytest.warns(DeprecationWarning, match="use 'unimodal_loss_weight'"):
        assert Agm(alone=0.5) == Agm(unimodal_loss_weight=0.5)  # ty: ignore[unknown-argument]
    with pytest.warns(DeprecationWarning, match="use 'unimodal_loss_weight'"):
        agm = multimodal.AdaptiveGradientModulation(torch.nn.Identity(), ["a", "v"], alone=0.5)
    assert agm.unimodal_loss_weight == 0.5
    with pytest.warns(DeprecationWarning, match="use 'independent_of_batch'"):

        class Custom(Zero):
            alone = False

    assert Custom().independent_of_batch is False
    assert agm.record()["alone"] == 0.5  # documents keep their fields
    step = multimodal.Modulated(torch.zeros(1), None, {}, {}, {"a": 2.0}, {"a": 1.0}, {}, None)
    with pytest.warns(DeprecationWarning, match="use 'discrepancy_ratio'"):
        assert step.ratio == {"a": 2.0}  # ty: ignore[missing-attribute]
    with pytest.warns(DeprecationWarning, match="use 'reference_ratio'"):
        assert step.usual == {"a": 1.0}  # ty: ignore[missing-attribute]


def test_old_keywords_of_methods_are_taken() -> None:
    with pytest.warns(DeprecationWarning, match="use 'keep_ratio'"):
        assert Pruning.official(share=0.6) == Pruning.official(0.6)  # ty: ignore[unknown-argument]
    both = {"retain": None, "others": None}
    with pytest.raises(MisuseError, match="'others' is the old name of 'retain'"):
        Unlearning()(trained("mlp"), Probes.of(np.zeros((2, 4), np.float32)), **both)


def test_names_of_the_field_are_recorded_as_the_score_that_they_stand_for() -> None:
    for alias, name in (
        ("optimal-brain-surgeon", "elimination"), ("leave-one-out", "left-out"), ("activation-energy", "energy")
    ):  # fmt: skip
        assert Pruning(score=alias).spec.digest == Pruning(score=name).spec.digest
    assert Unlearning(score="activation-energy") == Unlearning(score="energy")


def with_old_names(folder: Path, names: dict[str, str]) -> None:
    """Rewrite a plan as the version before wrote it, and the receipt with its digest."""
    plan, receipt = (json.loads((folder / f"{n}.json").read_text()) for n in ("plan", "receipt"))
    plan["spec"]["version"] = 2
    plan["spec"]["params"] = {names.get(k, k): v for k, v in plan["spec"]["params"].items()}
    (folder / "plan.json").write_text(json.dumps(plan))
    receipt["plan"] = str(read(folder)[0].digest)
    (folder / "receipt.json").write_text(json.dumps(receipt))


def test_plans_with_old_names_still_verify(tmp_path: Path) -> None:
    save(trained("mlp"), tmp_path / "root")
    parent, learnt = load(tmp_path / "root"), data.examples("mlp", "b")
    probes = Probes.of(learnt.inputs[:128], labels=learnt.targets[:128])
    write(Pruning(keep_ratio=0.5)(parent, probes), tmp_path / "pruned", probes)
    forget, retain = (Probes.of(learnt.inputs[rows]) for rows in (learnt.targets == 3, learnt.targets != 3))
    write(Unlearning()(parent, forget, retain), tmp_path / "unlearned", forget)
    for folder, names, inputs, other in (
        (tmp_path / "pruned", PRUNING, probes, None), (tmp_path / "unlearned", UNLEARNING, forget, retain)
    ):  # fmt: skip
        with_old_names(folder, names)
        assert set(names.values()) <= set(read(folder)[0].spec.params)
        findings = EditReplay()(folder, parent, inputs, other)
        assert all(f.good for f in findings), findings
    plan = json.loads((tmp_path / "pruned" / "plan.json").read_text())
    plan["spec"]["version"] = 1  # whose numbers were others
    (tmp_path / "pruned" / "plan.json").write_text(json.dumps(plan))
    found = {f.check: f.good for f in EditReplay()(tmp_path / "pruned", parent, probes)}
    assert found["choice"] is False


def test_the_command_line_takes_old_names(tmp_path: Path) -> None:
    save(trained("mlp"), tmp_path / "root")
    np.savez(tmp_path / "probes.npz", inputs=data.examples("mlp", "b").inputs[:64])
    words = ["prune", tmp_path / "root", "--ratio", ".5", "--probes", tmp_path / "probes.npz", "--dry-run", "--json"]
    done = stemma(*words, "-P", "multiple=4")
    assert done.returncode == 0, done.stderr
    assert "warning: 'multiple' is deprecated" in done.stderr
    assert "use 'round_to'" in " ".join(done.stderr.split())
    plan = json.loads(done.stdout)["plan"]
    assert plan["spec"]["params"]["round_to"] == 4
    assert plan == json.loads(stemma(*words, "-P", "round_to=4").stdout)["plan"]
    assert stemma(*words, "-P", "round_to=4", "-P", "multiple=4").returncode == 2
    twice = stemma(*words, "-P", "keep_ratio=.9")  # --ratio says something else
    assert (twice.returncode, "give --ratio only" in twice.stderr) == (2, True)


def test_where_a_registry_lies_is_told_under_its_old_name_too(tmp_path: Path) -> None:
    from stemma.registry import Registry

    registry = Registry(tmp_path / "r.db")
    with pytest.warns(DeprecationWarning, match="use 'where'"):
        assert registry.url == registry.where == str(tmp_path / "r.db")  # ty: ignore[unresolved-attribute]
