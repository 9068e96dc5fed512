"""Shares and accuracies of modalities against closed forms, and paired probes against their arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stemma
from stemma.errors import MisuseError, StemmaError, UnreadableProbesError
from stemma.multimodal.contribution import ContributionTest
from stemma.multimodal.paired_network import side_by_side
from stemma.multimodal.strength_test import StrengthTest
from stemma.probes import Probes, pair_modalities, read_probes
from stemma.probes.modalities import split_modalities
from stemma.types import Verdict


class Additive(nn.Module):
    """Logits that are a weighted sum of two linear maps: shares have a closed form."""

    def __init__(self, image: float = 1.0, audio: float = 1.0, interaction: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.audio = nn.Linear(6, 4, bias=False), nn.Linear(5, 4, bias=False)
        self.register_buffer("scale", torch.tensor([image, audio, interaction]))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        a, b = self.image(image.flatten(1)) * self.scale[0], self.audio(audio) * self.scale[1]
        return a + b + self.scale[2] * self.image(image.flatten(1)) * self.audio(audio)


def _model(name: str = "net", **scales: float) -> stemma.Model:
    return stemma.from_module(Additive(**scales).eval(), name)


def _probes(n: int = 400, seed: int = 0, labels: bool = True) -> Probes:
    draw = np.random.default_rng(seed)
    image, audio = draw.normal(size=(n, 1, 2, 3)).astype(np.float32), draw.normal(size=(n, 5)).astype(np.float32)
    with torch.no_grad():
        y = Additive()(torch.tensor(image), torch.tensor(audio)).argmax(1).numpy()
    return pair_modalities({"image": image, "audio": audio}, y if labels else None)


# Paired probes


def test_paired_probes_come_apart_as_they_were(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (7, 4, 5), dtype=np.uint8)
    ids, sound = draw.integers(0, 50000, (7, 3)), draw.normal(size=(7, 11)).astype(np.float32)
    np.savez(tmp_path / "p.npz", image=image, text=ids, audio=sound, labels=np.arange(7) % 3)
    found = read_probes(str(tmp_path / "p.npz"))
    assert [(p.name, p.shape, p.kind) for p in found.parts] == [
        ("audio", (11,), "tensor"), ("image", (1, 4, 5), "image"), ("text", (3,), "tokens")
    ]  # fmt: skip
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for back in (
        split_modalities(found.inputs, found.parts),
        split_modalities(torch.tensor(found.inputs), found.parts),
    ):
        assert np.array_equal(back["text"], ids)
        assert np.array_equal(back["audio"], sound)
        assert np.allclose(back["image"][:, 0], image / 255)
    few = found.take([3, 1])
    assert np.array_equal(split_modalities(few.inputs, few.parts)["text"], ids[[3, 1]])
    same = pair_modalities({"text": ids, "image": image, "audio": sound}, np.arange(7) % 3)
    assert same.digest == found.digest
    other = pair_modalities({"words": ids, "image": image, "audio": sound}, np.arange(7) % 3)
    assert other.digest != found.digest
    assert len(read_probes(f"{tmp_path / 'p.npz'}#n=4,seed=1")) == 4


def test_digests_of_other_probes_are_what_they_were() -> None:
    found = Probes.of(np.arange(12, dtype=np.float32).reshape(3, 4), [0, 1, 2])
    assert found.digest == "sha256:d2d1f6cee47d4f51467160bef2e446b30459a668b940bbbae5747afb5b76e658"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((3, 2)), "b": np.ones((3, 2)) * np.nan}, "NaN or infinite"),
        ({"a": np.ones((3, 2)), "b": np.full((3, 2), 1 << 25)}, "largest supported id is 16777215"),
        ({"a": np.ones((3, 2)), "b": np.ones((3, 2)) > 0}, "modality 'b'"),
        (
            {"a": np.ones((3, 2)), "b": np.ones((3, 2)), "labels": np.ones(2, int)},
            "labels must be one integer per probe",
        ),
        ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, "neither 'inputs' nor 'images'"),
        ({"a": np.ones((3, 2))}, "neither 'inputs' nor 'images'"),
    ],
)
def test_arrays_that_are_no_modalities_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UnreadableProbesError, match=message):
        read_probes(str(tmp_path / "p.npz"))


def test_everything_that_asks_models_can_ask_a_joined_one() -> None:
    probes, model = _probes(64), _model()
    asked = side_by_side(model, probes.parts)
    pieces = split_modalities(torch.tensor(probes.inputs), probes.parts)
    assert torch.equal(asked.network(torch.tensor(probes.inputs)), Additive()(**pieces))
    assert asked.digest == model.digest
    assert asked.network.digest != model.network.digest
    far = side_by_side(_model("far", audio=0.2), probes.parts)
    here = stemma.GradientField()(asked, probes), stemma.GradientField()(far, probes)
    assert stemma.FieldCosine()(here[0], here[0]).value == pytest.approx(0, abs=1e-9)
    assert stemma.FieldCosine()(*here).value > 0.01


# Shares


def test_shares_of_an_additive_network_are_its_variances() -> None:
    probes, net = _probes(2000), Additive(image=1.0, audio=0.5)
    found = ContributionTest(draws=50)(stemma.from_module(net.eval(), "net"), probes)
    pieces = split_modalities(torch.tensor(probes.inputs), probes.parts)
    with torch.no_grad():
        a, b = net.image(pieces["image"].flatten(1)), 0.5 * net.audio(pieces["audio"])
    parts = [x.numpy().astype(float) for x in (a, b)]
    parts = [x - x.mean(1, keepdims=True) for x in parts]
    parts = [x - x.mean(0) for x in parts]
    whole = sum(parts)
    truth = [(x * whole).sum() / (whole * whole).sum() for x in parts]
    assert found.modalities["image"].share.value == pytest.approx(truth[0], abs=1e-6)
    assert sum(m.share.value for m in found.modalities.values()) == pytest.approx(1, abs=1e-9)
    low, high = found.modalities["image"].share.interval
    assert low < truth[0] < high
    assert high - low < 0.1


def test_a_modality_that_is_not_listened_to_has_no_share() -> None:
    found = ContributionTest(draws=50)(_model(audio=0.0), _probes())
    audio, image = found.modalities["audio"], found.modalities["image"]
    assert audio.share.value == pytest.approx(0, abs=1e-9)
    assert image.share.value == pytest.approx(1, abs=1e-9)
    assert image.alone.value == found.accuracy.value
    assert audio.without.value == found.accuracy.value
    assert audio.alone.value < 0.5 < image.alone.value


@pytest.mark.parametrize("mask", ["zero", "mean", "permuted"])
def test_shares_do_not_depend_on_the_order_of_probes(mask: str) -> None:
    probes, model = _probes(300), _model(interaction=0.3)
    order = np.random.default_rng(5).permutation(300)
    test = ContributionTest(mask=mask, draws=20)
    a, b = test(model, probes), test(model, probes.take(order))
    slack = 0.15 if mask == "permuted" else 1e-6
    assert a.modalities["image"].share.value == pytest.approx(b.modalities["image"].share.value, abs=slack)
    assert a.accuracy.value == b.accuracy.value


def test_without_labels_there_are_shares_and_no_accuracies() -> None:
    found = ContributionTest(draws=20)(_model(), _probes(labels=False)).to_dict()
    assert found["accuracy"] is None
    assert found["hidden"] is None
    assert found["modalities"]["image"]["response"] is None
    json.dumps(found, allow_nan=False)


def test_a_child_that_stopped_listening_is_a_finding() -> None:
    probes = _probes(500)
    test = ContributionTest(draws=300)
    deaf = test.compare(_model("parent"), _model("child", audio=0.1), probes, 0.01)
    assert deaf.verdict is Verdict.SUPPORTED
    assert deaf.p_value < 1e-6
    assert "the share of" in deaf.reason
    same = test.compare(_model("parent"), _model("child", audio=1.02, image=1.02), probes, 0.01)
    assert same.verdict is Verdict.REFUTED
    assert same.p_value == 1.0
    few = test.compare(_model("parent"), _model("child", audio=0.1), _probes(40), 0.01)
    assert few.verdict is Verdict.INCONCLUSIVE
    json.dumps(deaf.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_a_change_at_the_margin_is_rarely_called_one() -> None:
    """Two networks whose shares differ by exactly the margin: at 5 % at most 5 % of draws may say they differ more."""
    big = _probes(20000)
    model, test = _model("a"), ContributionTest(draws=2)
    start = test(model, big).modalities["image"].share.value
    low, high = 0.2, 1.0
    for _ in range(16):  # the scale of the audio for which the image's share is .1 larger
        middle = (low + high) / 2
        share = test(_model("b", audio=middle), big).modalities["image"].share.value
        low, high = (middle, high) if share > start + 0.1 else (low, middle)
    other, called = _model("b", audio=low), 0
    for seed in range(60):
        rows = np.random.default_rng(seed).choice(20000, 200, replace=False)
        found = ContributionTest(draws=60, seed=seed).compare(model, other, big.take(rows), 0.05)
        called += found.verdict is Verdict.SUPPORTED
    assert called <= 7  # 3 at most expected; above 7 with a chance of 1 in 100


def test_what_cannot_be_asked_is_said_in_one_sentence() -> None:
    with pytest.raises(MisuseError, match="one modality"):
        ContributionTest()(_model(), Probes.of(np.ones((3, 4), np.float32)))
    with pytest.raises(MisuseError, match="is not a torch module"):
        ContributionTest()(stemma.from_module(lambda x: x, "box"), _probes(8))
    wrong = pair_modalities({"image": np.ones((8, 6), np.float32), "sound": np.ones((8, 5), np.float32)})
    with pytest.raises(StemmaError, match="as its forward takes them"):
        ContributionTest()(_model(), wrong)
    with pytest.raises(MisuseError, match="no mask is called 'noise'"):
        ContributionTest(mask="noise")


def test_a_network_that_answers_the_same_leans_on_nothing() -> None:
    dead = _model("dead", image=0.0, audio=0.0)
    with pytest.raises(StemmaError, match="relies on no modality"):
        ContributionTest()(dead, _probes())
    row = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    same = pair_modalities({"image": row.repeat(300, 0), "audio": row[:, :5].repeat(300, 0)})
    with pytest.raises(StemmaError, match="relies on no modality"):
        ContributionTest()(_model(), same)
    found = ContributionTest(draws=20).compare(_model(), dead, _probes(), 0.01)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "dead has the same output for every probe" in found.reason


def test_few_probes_and_labels_beyond_the_classes_are_told() -> None:
    assert "10 probes are few" in ContributionTest(draws=20)(_model(), _probes(10)).reason
    assert ContributionTest(draws=20)(_model(), _probes()).reason == ""
    pieces = {"image": np.ones((80, 6), np.float32), "audio": np.random.default_rng(0).normal(size=(80, 5))}
    floats = {k: v.astype(np.float32) for k, v in pieces.items()}
    with pytest.raises(MisuseError, match="label 2000000000, but net has 4 classes"):
        ContributionTest()(_model(), pair_modalities(floats, np.full(80, 2 * 10**9)))


def test_heads_that_are_added_are_read_together() -> None:
    draw = np.random.default_rng(1)
    both = [
        pair_modalities(
            {"image": draw.normal(size=(300, 6)).astype(np.float32), "audio": draw.normal(size=(300, 5)).astype("f4")}
        )
        for _ in range(2)
    ]
    net, concept = _model(), stemma.from_module(Alone().eval(), "alone")
    with pytest.raises(MisuseError, match="does not depend on image"):
        StrengthTest()(net, [concept], "image", *both)
    found, layer = StrengthTest(layer="image, audio")(net, [concept], "image", *both)
    assert layer == "image, audio"
    assert found.whitened < 1e-6


class Alone(nn.Module):
    """The image's own part of the additive network."""

    def __init__(self) -> None:
        super().__init__()
        self.image = Additive().image

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.image(image.flatten(1))
