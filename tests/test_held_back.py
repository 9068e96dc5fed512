"""The held-back beds: stacks learn as their networks do alone, questions have one answer, intervals are of sources."""

import importlib
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

MODULES = ("networks", "tasks", "members", "questions", "rates", "detector_scores", "dna_scores")


@pytest.fixture(scope="module")
def bed() -> Any:
    return SimpleNamespace(**{n: importlib.import_module(f"testbeds.held_back.{n}") for n in MODULES})


def members(bed: Any, sources: int = 10) -> list[Any]:
    task, kinds = bed.tasks.Task("fashion"), ("source", *bed.members.KINDS, *bed.members.GRANDCHILDREN)
    return [bed.members.Member(f"{s}-{k}", "garments", s, None, k, int(k != "source"), task, 1.0, 0.1, 0.0, {})
            for s, k in product(range(sources), kinds)]  # fmt: skip


def test_networks_of_a_stack_learn_what_each_learns_alone_and_frozen_layers_stay(bed: Any) -> None:
    rng = np.random.default_rng(0)
    starts = [bed.networks.fresh("garments", seed) for seed in range(3)]
    lessons = [
        bed.networks.Lesson(
            start, rng.integers(0, 256, (20, 1, 28, 28)).astype(np.uint8),
            np.eye(10, dtype=np.float32)[rng.integers(10, size=20)], seed, 0.05,
            ("entry", "middle") if seed == 2 else (),
        )
        for seed, start in enumerate(starts)
    ]  # fmt: skip
    together = bed.networks.learn("garments", lessons, 4, 8)
    for i, lesson in enumerate(lessons):
        alone = bed.networks.learn("garments", [lesson], 4, 8)[0]
        for name, array in alone.items():
            np.testing.assert_allclose(together[i][name], array, rtol=1e-3, atol=1e-5, err_msg=name)
        moved = {n for n in alone if n.endswith(("weight", "bias")) and not np.array_equal(alone[n], lesson.start[n])}
        assert {n.split("_")[0].split(".")[0] for n in moved} == ({"late", "answer"} if i == 2 else
                                                                  {"entry", "middle", "late", "answer"})  # fmt: skip
    # The twin: the same two networks by an optimiser of torch, with the same order.
    module = bed.networks.module_of("garments", starts[0]).train().requires_grad_(True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = np.random.default_rng([0, 11]).integers(20, size=(4, 8))
    for step in range(4):
        rate = 0.05 * (1 if step < 2.4 else 0.3 if step < 3.4 else 0.1)
        optimizer.param_groups[0]["lr"] = rate
        x, y = (torch.from_numpy(a[order[step]]) for a in (lessons[0].inputs, lessons[0].targets))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x.float() / 255), y).backward()
        optimizer.step()
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(together[0][name], tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def test_every_question_has_the_answer_that_its_history_gives(bed: Any) -> None:
    asked = bed.questions.questions(members(bed))
    scenarios = {q.scenario for q in asked}
    assert {"parent", "none", "student", "orphan, like sibling", "root and child", "root and all children",
            "parent and root", "root and grandchild"} <= scenarios  # fmt: skip
    assert len(scenarios) == 8 + 2 * 5
    assert {q.kind for q in asked if q.scenario == "parent"} == bed.members.SAME_START
    for q in asked:
        own = [c.kind for c in q.candidates if c.source == q.source]
        assert q.child.name not in {c.name for c in q.candidates}
        assert len(own) + bed.questions.STRANGERS == len(q.candidates)
        above = bed.members.GRANDCHILDREN.get(q.child.kind)
        line = [] if q.child.kind in ("source", "distilled") else [above, "source"] if above else ["source"]
        there = next((f"{q.source}-{k}" for k in line if k in own), None)
        assert q.parent == there, (q.scenario, q.kind)
    again = bed.questions.questions(members(bed))
    assert [[c.name for c in q.candidates] for q in again] == [[c.name for c in q.candidates] for q in asked]


def test_outcomes_are_told_apart(bed: Any) -> None:
    with_parent, without = (
        next(q for q in bed.questions.questions(members(bed)) if q.scenario == s) for s in ("parent", "none")
    )
    said = bed.detector_scores.Said
    stranger = without.candidates[0].name
    cases = [
        (said(with_parent, with_parent.parent, 0.9, 0.1), "right"),
        (said(with_parent, stranger, 0.99, 0.0), "wrong"),
        (said(with_parent, None, 0.02, 0.98), "missed"),
        (said(with_parent, None, 0.3, 0.7), "abstained"),
        (said(without, None, 0.3, 0.7), "right"),
        (said(without, stranger, 0.7, 0.3), "wrong"),
    ]
    for answer, expected in cases:
        names = [n for n in ("right", "wrong", "missed", "abstained") if getattr(answer, n)]
        assert names == [expected]
    table = bed.detector_scores.table([a for a, _ in cases])
    assert table["all"]["right"]["share"] == pytest.approx(2 / 6, abs=1e-4)
    assert table["all"]["wrong at 0.95"]["share"] == pytest.approx(2 / 6, abs=1e-4)


def test_intervals_are_as_wide_as_the_number_of_sources_demands(bed: Any) -> None:
    rate = bed.rates.rate
    same = rate([True] * 200, list(range(20)) * 10)
    assert same["interval"] == pytest.approx([1 / (1 + 1.959964**2 / 20), 1.0], abs=1e-3)  # Wilson at 20 of 20
    clustered = rate(np.repeat(np.arange(20) % 2 == 0, 10), np.repeat(np.arange(20), 10))
    spread = rate(np.tile(np.arange(10) % 2 == 0, 20), np.repeat(np.arange(20), 10))
    assert clustered["interval"][1] - clustered["interval"][0] > 0.38
    assert spread["interval"][1] - spread["interval"][0] < 0.15
    assert bed.rates.area(np.array([2.0, 3.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(5.5 / 6)


def test_calibration_weighs_own_and_other_pairs_alike(bed: Any) -> None:
    rows = [{"probability": p, "own": own, "source": i % 4} for i in range(40)
            for p, own in ((0.55, True), (0.55, False), (0.55, False), (0.55, False))]  # fmt: skip
    assert bed.dna_scores.calibration_error(rows)["value"] == pytest.approx(0.05, abs=1e-6)
    assert bed.dna_scores.calibration_error([{**rows[0], "probability": None}]) is None


def test_few_and_imbalanced_examples_are_as_many_as_said(bed: Any) -> None:
    labels = np.repeat(np.arange(5), 200)
    counts = np.bincount(labels[bed.tasks.few(labels, 10, 1)])
    assert counts.tolist() == [10] * 5
    found = np.sort(np.bincount(labels[bed.tasks.imbalanced(labels, 50, 1)]))
    assert (found[0], found[-1]) == (4, 200)
    shuffled = bed.tasks.labelling(bed.tasks.Task("mnist", seed=3), 40)
    assert np.bincount(shuffled).tolist() == [4] * 10
