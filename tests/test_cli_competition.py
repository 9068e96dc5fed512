"""`stemma competition`, and paired probes in `stemma compare` and `stemma distance`, on networks of known leaning."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stemma
from checkpoints import Run
from stemma.probes import pair_modalities, read_probes

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.audio, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, image, audio):
        return self.head(torch.cat([self.image(image.flatten(1)).relu(), self.audio(audio).relu()], 1))

class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, audio):
        return self.head(self.audio(audio).relu())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks, two of one start and one that does not hear, and probes; the code is beside them."""
    (tmp_path / "pairednets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scope: dict = {}
    exec(compile(NET, "pairednets", "exec"), scope)  # the networks above
    torch.manual_seed(0)
    net, other, alone = scope["Net"](), scope["Net"](), scope["Alone"]()
    with torch.no_grad():
        for part in (net.image, net.audio):
            part.bias.zero_()
        deaf = {k: v.clone() for k, v in net.state_dict().items()}
        deaf["head.weight"][:, 8:] *= 0.05
    for name, state in (("net", net.state_dict()), ("deaf", deaf), ("other", other.state_dict())):
        save_file(state, tmp_path / f"{name}.safetensors")
    save_file(alone.state_dict(), tmp_path / "alone.safetensors")
    draw = np.random.default_rng(1)
    for name, n in (("p", 200), ("fit", 150)):
        image, audio = (draw.normal(size=(n, *s)).astype(np.float32) for s in ((1, 2, 3), (5,)))
        y = net(torch.tensor(image), torch.tensor(audio)).argmax(1).numpy()
        np.savez(tmp_path / f"{name}.npz", image=image, audio=audio, labels=y)
    return tmp_path


CODE = ("--network", "pairednets:Net", "--allow-code")
FITTED = ("--probes", "p.npz", "--fit-probes", "fit.npz", "--concept")


def test_a_person_sees_what_the_model_leans_on(run: Run, place: Path) -> None:
    code, out, err = run("competition", "deaf.safetensors", "--probes", "p.npz", *CODE, "--html", "page.html")
    assert code == 0, err
    assert out.startswith("deaf relies most on image: ")
    assert "competition strength of audio: needs networks of audio alone" in " ".join(out.split())
    page = (place / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page


def test_the_document_holds_every_figure(run: Run, place: Path) -> None:
    words = ("competition", "net.safetensors", "--probes", "p.npz", *CODE, "--json")
    code, out, err = run(*words)
    assert code == 0, err
    found = json.loads(out)
    assert found["accuracy"]["value"] == 1.0
    assert sum(m["share"]["value"] for m in found["modalities"].values()) == pytest.approx(1)
    assert found["strength"] == {"audio": None, "image": None}
    assert len(found["missing"]) == 2
    probes = read_probes("p.npz")
    from stemma.multimodal.contribution import ContributionTest

    module = __import__("pairednets").Net()
    module.load_state_dict({n: torch.tensor(t.array()) for n, t in stemma.load("net.safetensors").tensors.items()})
    again = ContributionTest()(stemma.from_module(module.eval(), "net"), probes)
    assert found["modalities"]["audio"]["share"]["value"] == again.modalities["audio"].share.value


def test_strength_with_concepts_of_either_kind(run: Run, place: Path) -> None:
    code, out, err = run(
        "competition", "net.safetensors", "--probes", "p.npz", "--fit-probes", "fit.npz", *CODE, "--json",
        "--concept", "audio=alone.safetensors", "image=net.safetensors", "image=other.safetensors",
        "--concept-network", "audio=pairednets:Alone",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["layer"] == "head"
    assert found["strength"]["image"]["concepts"] == 2
    assert 0 < found["strength"]["audio"]["whitened"] < 1.2
    assert "one concept" in found["strength"]["audio"]["reason"]
    code, out, _ = run(
        "competition", "net.safetensors", "--probes", "p.npz", "--fit-probes", "fit.npz", *CODE,
        "--concept", "image=net.safetensors",
    )  # fmt: skip
    assert code == 0
    # what the network itself does with the image alone is linear in its own features
    assert "competition image: " in " ".join(out.split())
    assert float(out.split("image: ")[1].split()[0]) < 0.01


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--probes", "p.npz", "--concept", "audio=net.safetensors"), 2, "give both or none"),
        ((*FITTED, "audio"), 2, "given as NAME=MODEL"),
        ((*FITTED, "sound=net.safetensors"), 2, "concept of 'sound'"),
        ((*FITTED, "audio=net.safetensors", "--fit-probes", "p.npz"), 2, "are among the probes"),
        (("--probes", "flat.npz"), 2, "one modality"),
        (("--probes", "wrong.npz"), 1, "Name the arrays as its forward takes them"),
        (("--probes", "p.npz", "--mask", "noise"), 2, "no mask is called 'noise'"),
        ((*FITTED, "audio=net.safetensors", "--layer", "z"), 2, "no layer"),
        ((), 2, "add --probes"),
    ],
)  # fmt: skip
def test_misuse_is_one_sentence(run: Run, place: Path, words: tuple[str, ...], code: int, message: str) -> None:
    np.savez(place / "flat.npz", inputs=np.ones((4, 3), np.float32))
    np.savez(place / "wrong.npz", picture=np.ones((4, 6), np.float32), audio=np.ones((4, 5), np.float32))
    got, _, err = run("competition", "net.safetensors", *words, *CODE)
    assert message in " ".join(err.split())
    assert got == code
    assert "Traceback" not in err


def test_without_code_the_way_out_is_named(run: Run, place: Path) -> None:
    code, _, err = run("competition", "net.safetensors", "--probes", "p.npz")
    assert code in (1, 2)
    assert "--network" in err or "config.json" in err


def test_compare_finds_a_child_that_stopped_listening(run: Run, place: Path) -> None:
    words = ("--probes", "p.npz", *CODE, "--json")
    code, out, err = run("compare", "net.safetensors", "deaf.safetensors", *words)
    assert code == 0, err
    shares = [e for e in json.loads(out)["evidence"] if e["claim"] == "the modality shares differ"]
    assert [e["verdict"] for e in shares] == ["supported"]
    assert shares[0]["details"]["modalities"]["audio"]["change"] < -0.2
    code, out, _ = run("compare", "net.safetensors", "net.safetensors", *words)
    shares = [e for e in json.loads(out)["evidence"] if e["claim"] == "the modality shares differ"]
    assert [e["verdict"] for e in shares] in ([], ["refuted"])  # one network has nothing to compare
    code, out, err = run("compare", "net.safetensors", "deaf.safetensors", "--probes", "p.npz", *CODE)
    assert code == 0, err
    assert "the modality shares differ: yes: the share of" in " ".join(out.split())


@pytest.mark.slow
def test_trace_and_add_take_paired_probes(run: Run, place: Path) -> None:
    code, out, err = run("add", "net.safetensors", "other.safetensors", "--probes", "p.npz", *CODE, "--jobs", "2")
    assert code == 0, err
    assert "warning" not in err
    code, out, err = run("trace", "deaf.safetensors", "--probes", "p.npz", *CODE, "--json")
    assert code == 0, err
    asked = {c["name"]: c["function"] for c in json.loads(out)["candidates"]}
    assert all(f is not None and f["distance"] is not None for f in asked.values())
    assert asked["net"]["distance"] < asked["other"]["distance"]
    code, out, err = run("compare", "net.safetensors", "deaf.safetensors", "--probes", "p.npz", *CODE, "--json")
    assert code == 0, err
    function = json.loads(out)["function"]
    assert not function["details"]["left_out"]  # the enrolled stranger is small, but shown to be independent
    assert function["verdict"] == "inconclusive"
    code, out, err = run("trace", "deaf.safetensors", "--against", "net.safetensors", "--probes", "p.npz", *CODE)
    assert code == 0, err


def test_distance_takes_paired_probes(run: Run, place: Path) -> None:
    code, out, err = run("distance", "net.safetensors", "deaf.safetensors", "--probes", "p.npz", *CODE, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["value"] < 1
    assert found["agreement"]["accuracy_a"] == 1.0
    words = ("--method", "outputs", "--probes", "p.npz", *CODE, "--out", "taken.npz")
    code, _, err = run("fingerprint", "net.safetensors", *words)
    assert code == 0, err
    taken = np.load("taken.npz")["outputs"]
    assert np.array_equal(taken.argmax(1), np.load("p.npz")["labels"])


def test_paired_probes_in_python() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    probes = pair_modalities({"a": np.eye(3, dtype=np.float32), "b": np.zeros((3, 3), np.float32)}, [0, 1, 2])
    from stemma.multimodal.contribution import ContributionTest

    found = ContributionTest(draws=10)(stemma.from_module(Sum().eval(), "sum"), probes)
    assert found.accuracy.value == 1.0
    assert found.modalities["a"].share.value == pytest.approx(1)


@pytest.mark.anywhere
@pytest.mark.slow
@pytest.mark.parametrize(("name", "needs"), [("balance_trainer", "accelerate"), ("balance_lightning", "lightning")])
def test_the_examples_balance_a_network(name: str, needs: str) -> None:
    pytest.importorskip(needs, reason=f"the example is for {needs}, which is not installed")
    script = Path(__file__).parents[1] / "examples" / f"{name}.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    joint, balanced = (float(x) for x in re.findall(r"([0-9.]+)%", done.stdout.splitlines()[-1]))
    assert balanced > joint + 5


def test_the_registry_keeps_how_a_network_was_balanced(run: Run, place: Path) -> None:
    from stemma.multimodal import AdaptiveGradientModulation

    agm = AdaptiveGradientModulation(nn.Linear(2, 2), ["image", "audio"], alpha=2.0)
    (place / "balanced").mkdir()
    (place / "net.safetensors").rename(place / "balanced" / "model.safetensors")
    (place / "balanced" / "config.json").write_text(json.dumps({"balance": agm.record()}))
    code, _, err = run("add", "balanced", "--name", "mine")
    assert code == 0, err
    code, out, err = run("show", "mine", "--json")
    assert code == 0, err
    kept = json.dumps(json.loads(out))
    assert '"alpha": 2.0' in kept
    assert "adaptive-gradient-modulation" in kept


PAGE = Path(__file__).parents[1] / "docs" / "methods" / "multimodal.md"


def test_the_page_trains_a_network_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    exec(code, {})
    assert re.fullmatch(r"\{'image': [0-9.]+, 'audio': [0-9.]+\}", capsys.readouterr().out.strip())


def test_the_page_knows_every_strategy_plan_mask_and_field() -> None:
    from stemma.multimodal import masked_passes, masks, strategies
    from stemma.multimodal.late_fusion_passes import LateFast
    from stemma.multimodal.modulation_rule import REFERENCES, Modulation

    text = PAGE.read_text()
    words = set(re.findall(r"`([^`\n]+)`", text))
    assert {k.name for k in strategies.ALL} <= words
    assert {k.name for k in (*masked_passes.ALL, LateFast)} <= words
    assert set(REFERENCES) <= words
    shown = {w.partition("(")[0] for w in words}
    assert all(k.name in words or k.__name__ in shown for k in masks.ALL)
    assert set(Modulation.__dataclass_fields__) - {"decay"} <= words


@pytest.mark.slow
def test_names_of_the_package_are_there_and_load_nothing() -> None:
    code = (
        "import sys, stemma.multimodal as m, stemma.multimodal.strategies\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules\n"
        "assert all(getattr(m, n) for n in m.__all__)\nassert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
