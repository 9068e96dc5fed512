"""Networks written in ways that nobody foresaw: cut rightly, or left alone with the reason."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemma import networks
from stemma.checkpoints.model import Model
from stemma.edits.artefacts.measured_effect import output_agreement
from stemma.edits.editable_network import checked_dependency_graph, editable_copy
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.unlearning.batch_norm_prior import MAX_OOD_SCORE
from stemma.edits.unlearning.unlearning import Unlearning
from stemma.errors import MisuseError
from stemma.networks.from_module import from_module
from stemma.networks.load import from_arrays
from stemma.probes import Probes
from stemma.types import InputSpec

MLP = {"model_type": "stemma-mlp", "input_shape": [1, 8, 8], "classes": 5, "hidden": [12]}
VECTORS = np.random.default_rng(0).normal(0, 1, (64, 16)).astype(np.float32)


class Written(nn.Module):
    """A hidden layer, code between, an output layer."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], bias: bool = True, out: int = 24) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 24, bias=bias), nn.Linear(out, 4, bias=bias)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


def swapped(h: torch.Tensor) -> torch.Tensor:
    half = h.shape[1] // 2
    return torch.cat([F.relu(h[:, half:]), torch.sin(3 * h[:, :half])], 1)


def thirds(h: torch.Tensor) -> torch.Tensor:
    return torch.cat([f(p) for f, p in zip((torch.relu, torch.sin, torch.tanh), h.chunk(3, 1), strict=True)], 1)


def interleaved(h: torch.Tensor) -> torch.Tensor:
    return F.relu(h.reshape(len(h), 2, h.shape[1] // 2).transpose(1, 2).reshape(len(h), -1))


def model(module: nn.Module, shape: tuple[int, ...] = (16,), kind: str = "vector") -> Model:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0, 0.3)
    return from_module(module.eval(), "odd", InputSpec(kind, shape, 0.0, 1.0))


@pytest.mark.parametrize(("between", "parts"), [(swapped, 2), (thirds, 3), (interleaved, 2)])
def test_code_that_splits_a_layer_by_its_present_width_loses_the_same_unit_of_every_part(
    between: Callable[[torch.Tensor], torch.Tensor], parts: int
) -> None:
    group = checked_dependency_graph(model(Written(between)), VECTORS).group("a")
    written = next(r.index for r in group.rows if r.tensor == "a.weight")
    assert written.tolist() == [[i + k * 24 // parts for k in range(parts)] for i in range(24 // parts)]


@pytest.mark.parametrize("parts", [5, 7])
def test_code_that_splits_a_layer_in_another_way_leaves_it_whole(parts: int) -> None:
    def uneven(h: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.relu(h[:, parts:]), torch.sin(3 * h[:, :parts])], 1)

    with pytest.raises(MisuseError, match="its code assumes this size"):
        checked_dependency_graph(model(Written(uneven)), VECTORS)


def test_probes_without_any_signal_do_not_make_wrong_groups_pass() -> None:
    rolled = model(Written(lambda h: torch.roll(F.relu(h), 1, -1), bias=False))
    with pytest.raises(MisuseError, match="can be removed"):
        checked_dependency_graph(rolled, np.zeros((8, 16), np.float32))


def test_a_norm_over_units_keeps_them_whole() -> None:
    with pytest.raises(MisuseError, match="a statistic over all units"):
        checked_dependency_graph(model(Written(lambda h: F.normalize(F.relu(h), dim=1))), VECTORS)


class Two(nn.Module):
    """A layer that can be cut, and one that is read in a way that cannot be collected."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.raw = nn.Parameter(torch.randn(12, 4))
        self.reads = reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.b(F.relu(self.a(x))))
        match self.reads:
            case "named":
                return self.c(input=h)
            case "function":
                return F.linear(h, self.c.weight, self.c.bias)
            case _:
                return h @ self.raw


def test_a_layer_called_by_keyword_is_fitted_too() -> None:
    edited = Pruning(keep_ratio=0.5)(model(Two("named")), Probes.of(VECTORS))
    assert {len(k) for k in edited.plan.kept.values()} == {6}
    assert set(edited.receipt.measured["layers"]) == {"b", "c"}


@pytest.mark.parametrize("reads", ["function", "raw"])
def test_units_whose_reader_cannot_be_watched_stay_and_the_others_go(reads: str) -> None:
    odd = model(Two(reads))
    net = checked_dependency_graph(odd, VECTORS)
    assert [g.name for g in net.groups] == ["a"]
    assert "cannot be collected" in net.refused["b"]
    assert len(Pruning(keep_ratio=0.5)(odd, Probes.of(VECTORS)).plan.kept["a"]) == 6


@dataclass
class Answer:
    """What a network may return."""

    logits: torch.Tensor
    features: torch.Tensor


class Speaking(nn.Module):
    """Shows its hidden units beside its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Answer:
        shown = F.relu(self.b(F.relu(self.a(x))))
        return Answer(self.c(shown), shown)


def test_hidden_units_that_are_shown_beside_the_answer_stay() -> None:
    net = checked_dependency_graph(model(Speaking()), VECTORS)
    assert [g.name for g in net.groups] == ["a"]
    assert "output" in net.refused["b"]


@pytest.mark.parametrize("count", [129, 257])
def test_any_number_of_probes_does_with_batch_norm(count: int) -> None:
    layers = [nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 12), nn.BatchNorm1d(12), nn.ReLU()]
    inputs = np.random.default_rng(1).normal(0, 1, (count, 16)).astype(np.float32)
    edited = Pruning(keep_ratio=0.6)(model(nn.Sequential(*layers, nn.Linear(12, 4))), Probes.of(inputs))
    assert np.isfinite(edited.receipt.measured["error"])


def test_large_activations_in_half_precision_do_not_overflow() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    odd = model(net)
    with torch.no_grad():
        net[0].weight.mul_(60)
        net[2].weight.div_(60)
    half = from_module(net.half(), "half", InputSpec("vector", (16,), 0.0, 1.0))
    edited = Pruning(keep_ratio=0.8)(half, Probes.of(VECTORS))
    assert edited.receipt.measured["error"] < 0.2
    assert odd.name == "odd"


def test_few_probes_are_refused_and_numbers_are_no_choice() -> None:
    with pytest.raises(MisuseError, match="give 8 or more"):
        Pruning()(model(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))), Probes.of(VECTORS[:1]))
    rows = torch.randn(5, 1)
    assert "same_top_answer" not in output_agreement(rows, rows + 1)
    maps = torch.randn(2, 3, 4, 4)
    assert output_agreement(maps, maps.flip(3))["same_top_answer"] < 1
    assert output_agreement(maps, maps + torch.randn(2, 1, 4, 4))["same_top_answer"] == 1
    assert output_agreement(torch.ones(4, 2), torch.zeros(4, 2))["error"] == 1


def test_what_is_cut_is_what_was_silenced_for_the_very_units_of_the_plan() -> None:
    odd = model(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)))
    method = Pruning(keep_ratio=0.5, compensation="none")
    plan = method.plan(odd, Probes.of(VECTORS))
    edited = method.apply(odd, plan, Probes.of(VECTORS))
    whole = editable_copy(odd)
    gone = [i for i in range(12) if i not in plan.kept["0"]]
    with torch.no_grad():
        whole.module.get_submodule("2").weight[:, gone] = 0
    assert torch.allclose(whole.outputs(VECTORS), edited.editable.outputs(VECTORS), atol=1e-6)
    plan.slices["0.weight"]["0"] = tuple(reversed(range(6)))  # type: ignore[index]
    with pytest.raises(MisuseError, match="not those of the units"):
        method.apply(odd, plan, Probes.of(VECTORS))


class Frozen(nn.Module):
    """Batch norm with statistics of other data, which its gain and offset make good."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.n, self.b = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 16)
        self.m, self.head = nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.m(self.b(F.relu(self.n(self.a(x)))))))


def clusters(seed: int, count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Four classes of vectors around corners."""
    draw = np.random.default_rng(seed)
    labels = np.arange(4).repeat(count)
    corners = np.random.default_rng(9).normal(0, 1.5, (4, 16))
    return (corners[labels] + draw.normal(0, 0.7, (len(labels), 16))).astype(np.float32), labels


def learnt(net: nn.Module) -> nn.Module:
    x, y = (torch.from_numpy(a) for a in clusters(0))
    optimizer = torch.optim.Adam(net.train().parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("own", [True, False])
def test_inputs_are_used_where_batch_norm_remembers_other_data(own: bool) -> None:
    net = learnt(Frozen())
    if not own:
        with torch.no_grad():
            for norm in (net.get_submodule("n"), net.get_submodule("m")):
                norm.bias += 6 * norm.weight
                norm.running_mean += 6 * (norm.running_var + norm.eps).sqrt()
    odd = from_module(net, "frozen", InputSpec("vector", (16,), 0.0, 1.0))
    x, y = clusters(1)
    edited = Unlearning()(odd, Probes.of(x[y == 2]), Probes.of(x[y != 2]))
    assert edited.plan.expected["held to"] == "other inputs"
    kept = edited.editable.outputs(x[y != 2]).argmax(1).numpy()
    assert (kept == y[y != 2]).mean() > 0.95
    strange = np.random.default_rng(3).normal(0, 4, (200, 16)).astype(np.float32)
    if own:
        alone, given = (Unlearning()(odd, Probes.of(x[y == 2]), o) for o in (None, Probes.of(strange)))
        assert {e.plan.expected["held to"] for e in (alone, given)} == {"batch norm"}
        assert given.plan.expected["unlike"] > MAX_OOD_SCORE
        assert alone.model.digest == given.model.digest
        after = alone.editable.outputs(x).argmax(1).numpy()
        assert (after[y == 2] == 2).mean() < 0.1
        assert (after[y != 2] == y[y != 2]).mean() > 0.9
    else:
        with pytest.raises(MisuseError, match="usable batch-norm statistics"):
            Unlearning(action="refit")(odd, Probes.of(x[y == 2]))


class Uncounted(nn.Module):
    """A layer that one kernel runs, before layers that are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.a, self.b = nn.Bilinear(16, 16, 12), nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(self.r(x, x))))


def test_what_is_not_counted_is_named() -> None:
    net = checked_dependency_graph(model(Uncounted()), VECTORS)
    assert [g.name for g in net.groups] == ["a"]
    assert "are not counted" in net.refused["r"]
    assert net.macs() == 12 * 20 + 20 * 4


class Recurrent(nn.Module):
    """A recurrent layer before others."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.a, self.b = nn.LSTM(4, 12, batch_first=True), nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(self.r(x.reshape(len(x), 4, 4))[0][:, -1])))


def test_steps_of_a_recurrent_layer_are_counted() -> None:
    net = checked_dependency_graph(model(Recurrent()), VECTORS)
    assert net.sizes == {"r": 12, "a": 20}
    assert net.macs() == 4 * 48 * (4 + 12) + 12 * 20 + 20 * 4


def test_weights_stored_as_integer_codes_are_refused() -> None:
    arrays = {n: t.numpy() for n, t in networks.build(MLP).state_dict().items()}
    coded = from_arrays({**arrays, "layers.0.weight": np.ones((12, 64), np.int8)}, "coded", MLP)
    with pytest.raises(MisuseError, match="integer codes"):
        editable_copy(coded)


@pytest.mark.parametrize("chosen", [1, 3])
def test_units_that_choose_among_themselves_are_not_cut(chosen: int) -> None:
    """The number of entries that `topk` gives is no axis."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate, self.b = nn.Linear(16, 24), nn.Linear(24, 8), nn.Linear(chosen, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.gate(self.a(x).relu()).topk(chosen).values)

    net = checked_dependency_graph(model(Routed()), VECTORS)
    assert [g.name for g in net.groups] == ["a"]
    assert "statistic over all units" in net.refused["gate"]


def test_an_operation_with_arguments_that_its_rule_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma.edits.dependency_graph import tracer

    def broken(*_: object) -> None:
        raise IndexError("tuple index out of range")

    rules = tracer.rule_of
    monkeypatch.setattr(tracer, "rule_of", lambda func: broken if "relu" in str(func) else rules(func))
    with pytest.raises(MisuseError, match=r"no unit of odd .*a: the operation aten\.relu\.default is not supported"):
        checked_dependency_graph(model(Written(torch.relu)), VECTORS)


def test_a_computed_weight_is_named_as_the_reason() -> None:
    from torch.nn.utils.parametrizations import spectral_norm, weight_norm

    maps = nn.Sequential(nn.Conv1d(1, 24, 3), nn.ReLU(), spectral_norm(nn.Conv1d(24, 20, 3)), nn.ReLU(),
                         nn.Conv1d(20, 4, 3))  # fmt: skip
    with pytest.raises(MisuseError, match=r"\(2: its weight is computed from others"):
        checked_dependency_graph(model(maps, (1, 16)), VECTORS[:, None])
    first = weight_norm(nn.Linear(16, 24))
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 4))
    graph = checked_dependency_graph(model(net), VECTORS)
    assert [g.name for g in graph.groups] == ["2"]
    assert "computed from others" in graph.refused["0"]


def test_unlearning_leaves_grouped_convolutions_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, groups=4), nn.ReLU(),
                        nn.Flatten(), nn.Linear(224, 12), nn.ReLU(), nn.Linear(12, 4)).eval()  # fmt: skip
    with torch.no_grad():
        net[-1].bias -= net(torch.from_numpy(VECTORS[:, None])).mean(0)
    answers = net(torch.from_numpy(VECTORS[:, None])).argmax(1).numpy()
    chosen = answers == np.bincount(answers).argmax()
    parent = from_module(net, "grouped", InputSpec("vector", (1, 16), 0.0, 1.0))
    edited = Unlearning()(parent, Probes.of(VECTORS[chosen][:, None]), Probes.of(VECTORS[~chosen][:, None]))
    assert list(edited.undo) == ["5.weight"]
    assert edited.receipt.measured["forget"][1] <= 0.01
