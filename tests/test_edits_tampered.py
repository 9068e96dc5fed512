"""What somebody changes in an edited model's folder after the edit does not pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edited_networks import trained
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.edits.artefacts.save import write
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.unlearning import Unlearning, restored_weights
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import from_module
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.verification.edit import EditReplay, read
from stemma.zoo import data


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Probes]:
    """A pruned perceptron in a folder, its parent, the probes."""
    home = tmp_path_factory.mktemp("tampered")
    save(trained("mlp"), home / "root")
    parent, learnt = load(home / "root"), data.examples("mlp", "b")
    asked = Probes.of(learnt.inputs[:128], labels=learnt.targets[:128])
    write(Pruning(budget="macs", keep_ratio=0.5)(parent, asked), home / "pruned", asked)
    return home / "pruned", parent, asked


def resealed(plan: dict[str, Any], receipt: dict[str, Any], folder: Path) -> None:
    """Both files written anew, the receipt with the digest of the plan as it is now."""
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "receipt.json").write_text(json.dumps(receipt))
    receipt["plan"] = str(read(folder)[0].digest)
    (folder / "receipt.json").write_text(json.dumps(receipt))


def flattered(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    receipt["measured"]["accuracy"] = [0.5, 0.99]


def cheaper(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    receipt["measured"]["macs"] = [1e9, 1e3]


def from_elsewhere(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    receipt["probes"]["digest"] = "sha256:0"


def of_another_kind(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    receipt["operation"] = "unlearn"


def by_another_method(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    plan["spec"]["params"] |= {"score": "random"}


def of_another_version(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    plan["spec"]["version"] = 7


def promised(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    plan["expected"]["macs"][1] = 1.0


@pytest.mark.parametrize(
    ("change", "check"),
    [(flattered, "measured"), (cheaper, "measured"), (from_elsewhere, "receipt"), (of_another_kind, "receipt"),
     (by_another_method, "choice"), (of_another_version, "choice"), (promised, "choice")],
)  # fmt: skip
def test_changed_words_are_found(
    done: tuple[Path, Model, Probes], tmp_path: Path, change: Callable[..., None], check: str
) -> None:
    folder, parent, asked = done
    shutil.copytree(folder, tmp_path / "x")
    plan, receipt = (json.loads((folder / f"{n}.json").read_text()) for n in ("plan", "receipt"))
    change(plan, receipt)
    resealed(plan, receipt, tmp_path / "x")
    assert check in [f.check for f in EditReplay()(tmp_path / "x", parent, asked) if f.good is False]


def test_what_was_left_alone_is_as_recorded(done: tuple[Path, Model, Probes]) -> None:
    assert all(f.good for f in EditReplay()(*done))


def test_another_program_beside_the_weights_is_found(done: tuple[Path, Model, Probes], tmp_path: Path) -> None:
    folder, parent, asked = done
    shutil.copytree(folder, tmp_path / "x")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    torch.export.save(torch.export.export(other, (torch.zeros(2, 1, 8, 8),)), tmp_path / "x" / "network.pt2")
    assert [f.check for f in EditReplay()(tmp_path / "x", parent, asked) if f.good is False] == ["program"]


def test_hostile_plans_and_receipts_are_one_error(done: tuple[Path, Model, Probes], tmp_path: Path) -> None:
    folder = done[0]
    for file, key, value in (
        ("plan", "expected", []), ("plan", "expected", None),
        ("plan", "spec", {"name": "x", "version": 1, "params": [1]}),
        ("plan", "spec", {"name": "x", "version": 1, "params": {"share": float("nan")}}), ("receipt", "probes", []),
        ("receipt", "parent_source", 5), ("receipt", "parent_source", ["x"]), ("receipt", "measured", "much"),
    ):  # fmt: skip
        shutil.copytree(folder, tmp_path / "x", dirs_exist_ok=True)
        whole = json.loads((folder / f"{file}.json").read_text())
        (tmp_path / "x" / f"{file}.json").write_text(json.dumps(whole | {key: value}))
        with pytest.raises(StemmaError, match="cannot be read"):
            read(tmp_path / "x")


class Twice(nn.Module):
    """A layer that is registered under two names and used once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 4)
        self.layers = nn.ModuleList([self.a, self.b])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def test_second_names_of_a_layer_are_no_false_alarm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parent = from_module(Twice().eval(), "twice", InputSpec("vector", (16,), 0.0, 1.0))
    asked = Probes.of(np.random.default_rng(0).normal(0, 1, (64, 16)).astype(np.float32))
    write(Pruning(keep_ratio=0.5)(parent, asked), tmp_path / "out", asked)
    found = EditReplay()(tmp_path / "out", parent, asked)
    assert all(f.good for f in found), found


@pytest.fixture(scope="module")
def forgot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Probes, Probes]:
    """A network with batch norm that forgot a class, its parent, the samples and the other inputs."""
    home = tmp_path_factory.mktemp("forgot")
    save(trained("cnn"), home / "root")
    parent, learnt = load(home / "root"), data.examples("cnn", "b")
    lost = learnt.targets == 3
    mine, rest = Probes.of(learnt.inputs[lost]), Probes.of(learnt.inputs[~lost])
    write(Unlearning()(parent, mine, rest), home / "out", mine)
    return home / "out", parent, mine, rest


@pytest.mark.slow
def test_what_is_missing_of_a_change_is_said_and_the_way_back_is_checked(
    forgot: tuple[Path, Model, Probes, Probes], tmp_path: Path
) -> None:
    folder, parent, mine, rest = forgot
    assert all(f.good for f in EditReplay()(folder, parent, mine, rest))
    alone = EditReplay()(folder, parent, mine)
    assert [(f.check, f.good) for f in alone][-1] == ("replay", None)
    assert "--retain" in alone[-1].reason
    other = EditReplay()(folder, parent, mine, Probes.of(rest.inputs[:50]))[-1]
    assert other.good is False
    assert "the other inputs are" in other.reason
    shutil.copytree(folder, tmp_path / "x")
    save_file({"w": torch.zeros(2)}, tmp_path / "x" / "undo.safetensors")  # as earlier versions left it
    assert [f.check for f in EditReplay()(tmp_path / "x", parent, mine, rest) if f.good is False] == ["undo"]


def test_a_network_that_is_written_as_a_program_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()  # fmt: skip
    parent = from_module(net, "plain", InputSpec("image", (3, 8, 8), 0.0, 1.0))
    asked = Probes.of(np.random.default_rng(0).random((32, 3, 8, 8)).astype(np.float32))
    write(Pruning(keep_ratio=0.5)(parent, asked), tmp_path / "out", asked)
    assert not (tmp_path / "out" / "config.json").exists()
    found = EditReplay()(tmp_path / "out", parent, asked)
    assert all(f.good for f in found), found


def test_a_folder_is_replaced_only_where_an_edit_lies(done: tuple[Path, Model, Probes], tmp_path: Path) -> None:
    folder, parent, asked = done
    edited = Pruning(keep_ratio=0.9)(parent, asked)
    for place in (folder.parent / "root", folder.parent):
        with pytest.raises(MisuseError, match="holds the model"):
            write(edited, place, asked, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(MisuseError, match="something other than"):
        write(edited, tmp_path / "notes", asked, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    for odd in (tmp_path / "link", Path()):
        with pytest.raises(MisuseError, match="is not a folder name"):
            write(edited, odd, asked, overwrite=True)
    shutil.copytree(folder, tmp_path / "again")
    write(edited, tmp_path / "again", asked, overwrite=True)
    assert load(tmp_path / "again").digest == edited.model.digest
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def one_exchanged(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    """Another unit in one group, with all rows that go with it, and figures that nothing leads to."""
    plan["expected"]["parameters"][1] = 1.0


def by_the_clock(plan: dict[str, Any], receipt: dict[str, Any]) -> None:
    plan["spec"]["params"]["budget"] = "luck"


def test_invented_costs_and_unknown_methods_are_found(done: tuple[Path, Model, Probes], tmp_path: Path) -> None:
    folder, parent, asked = done
    for i, (change, said) in enumerate(((one_exchanged, "parameters"), (by_the_clock, "cannot be carried out"))):
        shutil.copytree(folder, tmp_path / str(i))
        plan, receipt = (json.loads((folder / f"{n}.json").read_text()) for n in ("plan", "receipt"))
        change(plan, receipt)
        resealed(plan, receipt, tmp_path / str(i))
        bad = [f.reason for f in EditReplay()(tmp_path / str(i), parent, asked) if f.good is False]
        assert any(said in reason for reason in bad), bad


def test_other_inputs_are_no_sign_of_a_false_receipt(done: tuple[Path, Model, Probes]) -> None:
    folder, parent, asked = done
    unlabelled = EditReplay()(folder, parent, Probes.of(asked.inputs))
    assert [(f.check, f.good) for f in unlabelled][-3:] == [("choice", None), ("replay", None), ("measured", None)]
    assert all(f.good for f in unlabelled[:-3])


def test_weights_are_put_back_also_under_the_names_of_a_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    parent = from_module(net, "plain", InputSpec("vector", (16,), 0.0, 1.0))
    x = np.random.default_rng(0).normal(0, 1, (200, 16)).astype(np.float32)
    answers = net(torch.from_numpy(x)).argmax(1).numpy()
    most = np.bincount(answers).argmax()
    mine, rest = Probes.of(x[answers == most]), Probes.of(x[answers != most])
    edited = Unlearning(target=0.2)(parent, mine, rest)
    write(edited, tmp_path / "out", mine, undo=tmp_path / "before.safetensors")
    child = load(tmp_path / "out" / "network.pt2")
    back = restored_weights(child, load_file(tmp_path / "before.safetensors"))
    before = [np.array(t.array()) for t in parent.tensors.values()]
    assert all(any(np.array_equal(a, b) for b in back.values()) for a in before)
    with pytest.raises(MisuseError, match="no weights called"):
        restored_weights(child, {"elsewhere.weight": torch.zeros(2)})
    assert all(f.good for f in EditReplay()(tmp_path / "out", parent, mine, rest))
