"""Erasure: the projection against its twins, what goes and what stays, the curve, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edited_networks import LOST, held_out, prepared, probes, stemma
from stemma.edits.editable_network import editable_copy
from stemma.edits.fidelity.statistics import LayerStatistics
from stemma.edits.unlearning.class_directions import WHITENING, PairedMoments, erased_weights, erasing_projection
from stemma.edits.unlearning.erasure import STRENGTHS, Erasure
from stemma.edits.unlearning.relearning import Relearning, answered
from stemma.edits.unlearning.unlearning import restored_weights
from stemma.errors import MisuseError
from stemma.networks.from_module import from_module
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import InputSpec

home = pytest.fixture(scope="module")(prepared)


def statistics(rows: np.ndarray) -> LayerStatistics:
    u = torch.from_numpy(rows)
    return LayerStatistics(len(u), u.sum(0), u.T @ u)


def samples(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_the_projection_is_that_of_leace_and_takes_the_leading_generalised_eigenvectors() -> None:
    kept, lost = samples(400, 24, 1), samples(90, 24, 2)
    one, three = (erasing_projection([statistics(lost)], statistics(kept), rank).numpy() for rank in (1, 3))
    covariance = np.cov(kept.T, bias=True)
    covariance += WHITENING * covariance.diagonal().mean() * np.eye(24)
    offset = lost.mean(0) - kept.mean(0)
    ahead = np.linalg.solve(covariance, offset)
    assert np.abs(one - (np.eye(24) - np.outer(offset, ahead) / (offset @ ahead))).max() < 1e-9  # the slow twin
    for projection, rank in ((one, 1), (three, 3)):
        assert np.abs(projection @ projection - projection).max() < 1e-9
        assert np.abs(projection @ covariance - covariance @ projection.T).max() < 1e-7 * np.abs(covariance).max()
        assert np.linalg.matrix_rank(projection, tol=1e-6) == 24 - rank
        assert np.abs(projection @ offset).max() < 1e-9 * np.abs(offset).max()
    about_kept = (lost - kept.mean(0)).T @ (lost - kept.mean(0)) / len(lost)
    values, vectors = np.linalg.eig(np.linalg.solve(covariance, about_kept))
    leading = covariance @ vectors[:, values.real.argsort()[::-1][:2]].real
    assert np.abs(three @ leading).max() < 1e-7 * np.abs(leading).max()


def test_the_refit_is_least_squares_on_what_the_projection_leaves() -> None:
    kept, lost = samples(400, 24, 3), samples(90, 24, 4)
    weights, bias = np.random.default_rng(5).normal(size=(6, 24)), np.arange(6.0)
    read = kept @ (np.eye(24) + 0.1 * np.random.default_rng(6).normal(size=(24, 24)))  # earlier layers were edited
    answers = kept @ weights.T + bias
    projection = erasing_projection([statistics(lost)], statistics(read), 2)
    paired = PairedMoments(statistics(read), torch.from_numpy(answers.T @ read), torch.from_numpy(answers.sum(0)))
    new, shift = erased_weights(torch.from_numpy(weights), projection, paired, 1e-12, shift=True)
    assert shift is not None
    seen = np.c_[(read - read.mean(0)) @ projection.numpy().T, np.ones(len(read))]
    wanted = seen @ np.linalg.lstsq(seen, answers, rcond=None)[0]
    assert np.abs(read @ new.numpy().T + shift.numpy() - wanted).max() < 1e-5 * np.abs(answers).max()
    moved = lost + 7 * (lost.mean(0) - read.mean(0))  # further along the direction: the layer does not see it
    assert np.abs((moved - lost) @ new.numpy().T).max() < 1e-6 * np.abs(answers).max()


def shares(model: object, edited: object, classes: tuple[int, ...] = (LOST,)) -> tuple[float, float]:
    """Share of the lost classes still answered, and what is lost of the others, on unseen samples."""
    asked = held_out()
    assert asked.labels is not None
    mine = np.isin(asked.labels, classes)
    a, b = (answered(editable_copy(m), asked.inputs) for m in (model, edited))  # type: ignore[arg-type]
    before, after = ((x == asked.labels)[~mine].mean() for x in (a, b))
    return float(np.isin(b[mine], classes).mean()), float(before - after)


@pytest.mark.parametrize("kind", ["mlp", "cnn", pytest.param("vit", marks=pytest.mark.slow)])
def test_a_class_is_erased_and_the_others_stay(home: Path, kind: str) -> None:
    model, lost, rest = load(home / kind), probes(home, "lost"), probes(home, "rest")
    edited = Erasure()(model, Probes.of(lost.inputs), Probes.of(rest.inputs))
    forget, drop = shares(model, edited.model)
    assert forget <= 0.01
    assert drop < 0.06
    assert edited.receipt.measured["held_back"][0] > 0
    assert not {"retain", "accuracy"} & set(edited.receipt.measured)  # no labels were given
    back = restored_weights(edited.model, edited.undo)
    assert all(np.array_equal(back[n], t.array()) for n, t in model.tensors.items())


@pytest.mark.parametrize("turned", [False, True])
def test_a_transposed_convolution_is_refitted_as_any_other_layer(turned: bool) -> None:
    torch.manual_seed(0)
    kind = torch.nn.ConvTranspose2d if turned else torch.nn.Conv2d
    net = torch.nn.Sequential(kind(4, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 4))
    inputs = np.random.default_rng(0).normal(size=(800, 4, 6, 6)).astype("f4")
    model = from_module(net.eval(), "net", InputSpec("tensor", (4, 6, 6), -9, 9))
    outputs = editable_copy(model).outputs(inputs).numpy()
    lost, kept = (Probes.of(inputs[rows]) for rows in (outputs.argmax(1) == 0, outputs.argmax(1) != 0))
    edited = Erasure(strength=4)(model, lost, kept)
    assert "0" in edited.plan.expected["layers"]
    change = edited.editable.outputs(kept.inputs).numpy() - editable_copy(model).outputs(kept.inputs).numpy()
    assert np.square(change[:, 1:]).mean() < 0.1 * outputs[:, 1:].var()


@pytest.mark.slow
def test_the_curve_tells_hidden_from_erased(home: Path, tmp_path: Path) -> None:
    given = ("--forget", home / "lost.npz", "--retain", home / "rest.npz")
    page, out = tmp_path / "page.html", tmp_path / "out"
    done = stemma("unlearn", home / "cnn", *given, "--out", out, "--curve", "--strength", 4, "--html", page, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    points = document["curve"]["points"]
    assert [p["strength"] for p in points] == list(range(len(STRENGTHS)))
    assert points[0]["verdict"] == "refuted"  # only the answer is gone
    assert any(p["verdict"] != "refuted" and p["forget"] <= 0.01 and p["same"] > 0.95 for p in points[1:])
    assert all(p["relearning"] > 0 for p in points)
    assert document["plan"]["expected"]["strength"] == 4
    assert page.read_text().count("Every strength") == 1
    assert json.loads(stemma("verify", "edit", out, "--probes", home / "lost.npz", "--retain", home / "rest.npz",
                             "--json").stdout)["good"] is True  # fmt: skip
    text = stemma("unlearn", home / "cnn", *given, "--out", tmp_path / "two", "--curve", "--retrained", home / "mlp")
    assert "relearnt in 0 steps" in text.stdout  # a false reference, which knows the class: it needs none


def test_several_classes_a_set_and_single_samples(home: Path) -> None:
    model, rest = load(home / "cnn"), probes(home, "rest")
    everything = probes(home)
    assert everything.labels is not None
    two = everything.take(np.isin(everything.labels, [LOST, 7]))
    edited = Erasure(strength=2)(model, two, rest)
    assert edited.plan.expected["classes"] == [LOST, 7]
    assert shares(model, edited.model, (LOST, 7))[0] <= 0.02
    unlabelled = Erasure(strength=1)(model, Probes.of(two.inputs), rest)  # a mixture: both are found by the answers
    assert unlabelled.plan.expected["classes"] == [LOST, 7]
    a_set = rest.take(slice(0, 24))
    edited = Erasure(strength=1, samples=True)(model, a_set, rest)
    assert edited.plan.expected["classes"] == []
    assert edited.plan.expected["silenced"] is None
    assert shares(model, edited.model)[0] > 0.7  # no class is forgotten with a set of samples of all classes
    single = Erasure(strength=1)(model, probes(home, "lost").take(slice(0, 1)), rest)
    assert single.receipt.measured["held_back"][0] == 0
    assert single.receipt.measured["forget"] == [1.0, 0.0]


def test_what_cannot_be_erased_is_refused(home: Path, tmp_path: Path) -> None:
    model, lost, rest = load(home / "mlp"), probes(home, "lost"), probes(home, "rest")
    everything = probes(home)
    with pytest.raises(MisuseError, match="of all 10 classes"):
        Erasure()(model, everything, rest)
    with pytest.raises(MisuseError, match="recognises only"):
        Erasure()(model, lost.with_labels(np.full(len(lost), 5)), rest)  # named wrongly
    with pytest.raises(MisuseError, match="has the classes 0 to 9"):
        Erasure()(model, lost.with_labels(np.full(len(lost), 40)), rest)  # absent
    with pytest.raises(MisuseError, match="16 are needed"):
        Erasure()(model, lost, Probes.of(lost.inputs))  # nothing is kept
    with pytest.raises(MisuseError, match="strength has to lie"):
        Erasure(strength=9)
    given = ("unlearn", home / "mlp", "--forget", home / "lost.npz", "--out", tmp_path / "out")
    for words in (("--curve",), ("--strength", 2), ("--method", "erasure"), ("--method", "x"), ("--retrained", "x")):
        done = stemma(*given, *words)
        assert done.returncode == 2, words
        assert len(done.stderr.strip().splitlines()) <= 4
    assert not (tmp_path / "out").exists()


def test_frozen_statistics_and_heads_without_bias_and_relearning_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(24).eval()  # its statistics are never gathered
    net = torch.nn.Sequential(torch.nn.Linear(16, 24), norm, torch.nn.ReLU(), torch.nn.Linear(24, 3, bias=False))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    inputs = (rng.normal(size=(240, 16)) + 4 * np.eye(16)[labels]).astype(np.float32)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    model = from_module(net.eval(), "free", InputSpec("vector", (16,), -9.0, 9.0))
    edited = Erasure()(model, Probes.of(inputs[labels == 1]), Probes.of(inputs[labels != 1]))
    assert edited.receipt.measured["forget"][0] > 0.9
    assert edited.receipt.measured["forget"][1] <= 0.05
    assert edited.receipt.measured["same_top_answer"] > 0.9
    copy = editable_copy(model)
    before = {n: t.clone() for n, t in copy.module.state_dict().items()}
    shown = (inputs[labels == 1], labels[labels == 1]), (inputs[labels != 1], labels[labels != 1])
    assert Relearning()(copy, *shown, shown[0]) == 0
    assert Relearning(steps=3)(edited.editable, *shown, shown[0]) > 0
    assert all(torch.equal(before[n], t) for n, t in copy.module.state_dict().items())
