"""Every command reads every folder that a command wrote: networks of one's own are written as exported programs."""

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import stemma  # noqa: E402
from stemma.checkpoints.load import discover  # noqa: E402
from stemma.edits.artefacts.save import write  # noqa: E402
from stemma.probes import read_probes  # noqa: E402
from stemma.types.edits import UNDO  # noqa: E402
from stemma.workspace import Workspace  # noqa: E402

SPEC = stemma.InputSpec("image", (1, 8, 8), 0.0, 1.0)
PROBES = "noise:n=64,seed=3"


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.BatchNorm2d(16)
        self.second, self.head = torch.nn.Conv2d(16, 24, 3, padding=1), torch.nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def parent() -> stemma.Model:
    torch.manual_seed(0)
    return stemma.from_module(Small().eval(), "net", SPEC)


@pytest.fixture(scope="module")
def folders(parent: stemma.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("written")
    probes = read_probes(PROBES, SPEC)
    write(stemma.prune(parent, probes), where / "smaller", probes)
    write(stemma.unlearn(parent, probes), where / "without", probes)
    return {name: where / name for name in ("smaller", "without")}


@pytest.mark.parametrize("name", ["smaller", "without"])
def test_an_edited_folder_is_one_model_under_its_own_name(
    name: str, folders: dict[str, Path], parent: stemma.Model
) -> None:
    assert [c.name for c in discover(folders[name])] == [name]
    model = stemma.load(folders[name])
    assert model.name == name
    assert stemma.compare(parent, folders[name]).verdict == "related"
    traced = stemma.trace(folders[name], against=[parent])
    assert [f["name"] for f in (*traced.copies, *traced.parents, *traced.relatives)] == ["net"]
    assert stemma.distance(parent, folders[name], PROBES).value > 0  # its network is the exported program
    assert stemma.fingerprint(folders[name], probes=PROBES).values


def test_the_weights_before_are_no_model_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert not (folders["without"] / UNDO).exists()
    from safetensors.torch import save_file

    from stemma.registry import Registry

    shutil.copytree(folders["without"].parent, tmp_path / "made")
    save_file({"head.weight": torch.zeros(5, 24)}, tmp_path / "made" / "without" / UNDO)  # as earlier versions left it
    workspace = Workspace(Registry(tmp_path / "r.db"))
    workspace.add([tmp_path / "made"])
    assert sorted(record.name for record in workspace.list()) == ["smaller", "without"]
    loose = tmp_path / "elsewhere" / UNDO  # there the name says nothing
    loose.parent.mkdir()
    loose.write_bytes((tmp_path / "made" / "without" / UNDO).read_bytes())
    assert [c.path for c in discover(loose.parent)] == [loose]
