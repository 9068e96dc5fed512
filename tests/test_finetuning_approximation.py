"""Fine-tuning approximation against explicit Jacobians, autodiff, its own algebra, and families with known parents."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stemma
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.kinship.function.feature_similarities import similarity
from stemma.kinship.function.finetuning_approximation import FineTuningApproximation, LineageScores, shorten_steps
from stemma.kinship.function.network_body import body_up_to, difference
from stemma.probes import Probes
from stemma.zoo import data
from stemma.zoo.independent_networks import independents
from stemma.zoo.kinds import Schedule
from stemma.zoo.memory import arrays_of, model_of
from stemma.zoo.training import train

SMOOTH = ("l1", "l2", "lp", "lse", "cka", "dc")
ALL = (*SMOOTH, "linf")


class Convolutional(nn.Module):
    """Batch norm, a shortcut, a ReLU that writes in place, a head of its own size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.more = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.head((x + self.more(x).tanh()).mean((2, 3)))


def perceptron(seed: int, classes: int = 3, widths: tuple[int, int] = (6, 5), act: type = nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    first, second = widths
    return nn.Sequential(nn.Linear(4, first), act(), nn.Linear(first, second), act(), nn.Linear(second, classes))


def convolutional(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    made = Convolutional(classes)
    for buffer in (made.norm.running_mean, made.norm.running_var):
        assert buffer is not None
        buffer.uniform_(0.5, 1.5)
    return made


def child_of(module: nn.Module, seed: int, by: float = 0.1) -> nn.Module:
    made, noise = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p += by * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    return made


def model(module: nn.Module, name: str = "m") -> Model:
    return stemma.from_module(module.eval(), name)


def tensors(n: int = 7) -> Probes:
    return Probes.of(np.random.default_rng(3).normal(size=(n, 4)))


def images(n: int = 7) -> Probes:
    return Probes.of(np.random.default_rng(3).normal(size=(n, 1, 5, 5)))


CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[], Probes], str]] = {
    "perceptron": (perceptron, tensors, "4"),
    "convolutional": (convolutional, images, "head"),
}


# ---- slow twins: everything one number at a time -----------------------------------------------------------------


def slow_similarity(name: str, x: torch.Tensor, y: torch.Tensor, power: float = 4.0, t: float = 0.01) -> torch.Tensor:
    n = len(x)
    e = x - y
    if name in {"l1", "l2", "lp"}:
        p = {"l1": 1.0, "l2": 2.0, "lp": power}[name]
        return -sum((v.abs() ** p for v in e.flatten()), torch.zeros(())) / e.numel()
    if name == "lse":
        rows = [torch.log(sum((torch.exp(t * v.abs()) for v in row), torch.zeros(()))) / t for row in e]
        return -sum(rows, torch.zeros(())) / e.numel()
    if name == "linf":
        return -sum((row.abs().max() for row in e), torch.zeros(())) / n
    if name == "cka":
        xc, yc = x - x.mean(0), y - y.mean(0)
        cross, own, other = ((a.T @ b).square().sum() for a, b in ((yc, xc), (xc, xc), (yc, yc)))
        return cross / (own.sqrt() * other.sqrt())
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    a, b = (h @ torch.stack([((r - z).square().sum(1) + 1e-18).sqrt() for r in z]) @ h for z in (x, y))
    return (a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt()


def slow_finish(name: str, s: torch.Tensor) -> float:
    power = {"l2": 2.0, "lp": 4.0}.get(name)
    value = float(s.detach())
    return value if power is None else -((-min(value, 0.0)) ** (1 / power))


def slow_features(module: nn.Module, head: str, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(x)
    handle.remove()
    return seen[0]


def explicit(module: nn.Module, child: nn.Module, head: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features of both, and the whole Jacobian times the difference of weights, row by row."""
    own, theirs = slow_features(module, head, x), slow_features(child, head, x).detach()
    inside = [(n, p) for n, p in module.named_parameters() if not n.startswith(f"{head}.")]
    other = dict(child.named_parameters())
    d = torch.cat([(other[n] - p).detach().flatten() for n, p in inside])
    rows = [torch.autograd.grad(v, [p for _, p in inside], retain_graph=True) for v in own.flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return own.detach(), theirs, (jacobian @ d).view_as(own)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.first(2)
def test_all_forms_are_those_of_an_explicit_jacobian(case: str, name: Any) -> None:
    make, probes, head = CASES[case]
    parent = make(0).double().eval()
    children = [child_of(parent, 1).eval(), child_of(parent, 2, 0.3).eval(), make(3).double().eval()]
    x = torch.from_numpy(probes().inputs.copy())
    given = [model(c, f"c{i}") for i, c in enumerate(children)]
    for alpha in (0.01, 1.0):
        twins: dict[str, list[float]] = {"plain": [], "linear": [], "taylor": []}
        for child in children:
            own, theirs, step_of_features = explicit(parent, child, head, x)
            twins["plain"].append(slow_finish(name, slow_similarity(name, own, theirs)))
            twins["linear"].append(slow_finish(name, slow_similarity(name, own + alpha * step_of_features, theirs)))
            leaf = own.clone().requires_grad_()
            s = slow_similarity(name, leaf, theirs)
            slope = torch.autograd.grad(s, leaf)[0]
            twins["taylor"].append(slow_finish(name, s + alpha * (slope * step_of_features).sum()))
        for form, expected in twins.items():
            if (form, name) == ("taylor", "linf"):
                continue
            step = {} if form == "plain" else {"alpha": alpha}
            method = FineTuningApproximation(form, name, bounded=False, batch=3, chunk=2, **step)
            found = method(model(parent), given, probes())
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=form)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_autodiff(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = similarity(name, 4.0, 0.01).gradient(x, y)
    for i in range(3):
        leaf = x[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(slow_similarity(name, leaf, y[i]), leaf)
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-9)


def test_the_log_sum_exp_cuts_its_exponents_off() -> None:
    x, y = torch.full((2, 3), 5000.0, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    lse = similarity("lse", 4.0, 0.01)
    assert float(lse.value(x, y)) == pytest.approx(-(10 + np.log(3)) / (3 * 0.01))
    assert torch.isfinite(lse.gradient(x, y)).all()


# ---- the algebra of a body that is linear in its weights ------------------------------------------------------------


def test_in_a_linear_body_the_step_arrives_and_the_forms_are_as_derived() -> None:
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    child, other = child_of(parent, 1), nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    probes, p, c = tensors(), model(parent, "p"), [model(child, "c")]
    plain = {s: FineTuningApproximation("plain", s)(p, c, probes)[0] for s in ("l1", "l2")}
    for alpha in (0.1, 0.5, 1.0):
        l1 = FineTuningApproximation("taylor", "l1", alpha)(p, c, probes)[0]
        l2 = FineTuningApproximation("taylor", "l2", alpha)(p, c, probes)[0]
        assert l1 == pytest.approx((1 - alpha) * plain["l1"], abs=1e-12)
        assert l2 == pytest.approx(-np.sqrt(max(0.0, 1 - 2 * alpha)) * -plain["l2"], abs=1e-7)
    # The step of the linear form arrives from anywhere, so such a body tells nobody's children apart.
    for candidate in (p, model(other, "q")):
        assert FineTuningApproximation()(candidate, c, probes)[0] == pytest.approx(0, abs=1e-12)


def test_both_forms_agree_to_first_order() -> None:
    parent = perceptron(0, act=nn.Tanh).double()
    p, c, probes = model(parent), [model(child_of(parent, 5, 0.2))], tensors()
    for name in ("l1", "cka", "dc", "lse"):
        small = 1e-5
        plain = FineTuningApproximation("plain", name)(p, c, probes)[0]
        linear = FineTuningApproximation("linear", name, small, bounded=False)(p, c, probes)[0]
        taylor = FineTuningApproximation("taylor", name, small)(p, c, probes)[0]
        assert linear - plain == pytest.approx(taylor - plain, rel=1e-2)
        assert linear != plain


# ---- families whose parents are known -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def families() -> tuple[list[Model], list[Model], Probes]:
    """Five perceptrons, and two children of each on inverted digits with other labels."""
    parents = independents("mlp", 5, seed=11, steps=120)
    config, found = parents[0].config, data.examples("mlp", "b")
    assert config is not None
    task = data.Examples(1 - found.inputs, (found.targets * 3 + 1) % 10)
    starts = [arrays_of(p) for p in parents for _ in range(2)]
    ends = train(config, starts, task, Schedule(60, 32, 2e-3), list(range(10)))
    children = [model_of(f"{i // 2}-{i % 2}", e[-1], config) for i, e in enumerate(ends)]
    return parents, children, Probes.of(task.inputs[:64])


def right(scores: LineageScores) -> int:
    return sum(b.winner == int(b.child[0]) for b in scores.best())


@pytest.mark.parametrize("name", ALL)
def test_the_linear_form_finds_parents_and_not_those_of_permuted_children(name: Any, families: Any) -> None:
    parents, children, probes = families
    method = FineTuningApproximation(similarity=name)
    assert right(method.matrix(parents, children, probes)) >= 9
    # The control: the same functions in another order of units are out of its reach.
    step_of_features = [permuted_copy(c, i) for i, c in enumerate(children)]
    assert right(method.matrix(parents, step_of_features, probes)) <= 6


def permuted_copy(child: Model, seed: int) -> Model:
    config, arrays = child.config, arrays_of(child)
    rng = np.random.default_rng(seed)
    for here, after in (("layers.0", "layers.1"), ("layers.1", "layers.2"), ("layers.2", "head")):
        order = rng.permutation(len(arrays[f"{here}.bias"]))
        arrays[f"{here}.weight"], arrays[f"{here}.bias"] = (
            arrays[f"{here}.weight"][order],
            arrays[f"{here}.bias"][order],
        )
        arrays[f"{after}.weight"] = arrays[f"{after}.weight"][:, order]
    return model_of(child.name, arrays, config)


def test_all_layers_rank_together(families: Any) -> None:
    parents, children, probes = families
    scores = FineTuningApproximation(layer="all").matrix(parents, children, probes)
    assert right(scores) >= 9
    assert scores.values.min() >= 1
    assert scores.values.max() <= len(parents)
    with pytest.raises(MisuseError, match="matrix"):
        FineTuningApproximation(layer="all")(parents[0], children, probes)


def test_a_large_step_ruins_the_taylor_form(families: Any) -> None:
    parents, children, probes = families
    small, large = (FineTuningApproximation("taylor", "l1", a).matrix(parents, children, probes) for a in (0.01, 1.0))
    assert right(small) > right(large)


def test_steps_are_shortened_to_what_they_are_to_bridge_and_only_where_scale_is_not_seen() -> None:
    step_of_features, apart = torch.zeros(3, 2, 2, dtype=torch.float64), torch.ones(3, 2, 2, dtype=torch.float64)
    step_of_features[0, 0, 0], step_of_features[1, 0, 0] = 5.0, 0.5
    found = shorten_steps(step_of_features, apart)
    assert [float(t.norm()) for t in found] == [2.0, 0.5, 0.0]
    parent, child = model(perceptron(0).double()), [model(perceptron(1).double())]
    for name, same in (("l1", True), ("l2", True), ("cka", False), ("dc", False)):
        short, whole = (
            FineTuningApproximation("linear", name, bounded=b)(parent, child, tensors()) for b in (True, False)
        )
        assert (short == whole).all() == same, name


@pytest.mark.parametrize("form", ["plain", "linear", "taylor"])
def test_batches_and_chunks_change_nothing(form: Any, families: Any) -> None:
    parents, children, probes = families
    whole = FineTuningApproximation(form, "cka")(parents[0], children, probes)
    parts = FineTuningApproximation(form, "cka", batch=10, chunk=3)
    np.testing.assert_allclose(parts(parents[0], children, probes), whole, atol=1e-5)
    assert parts.spec == FineTuningApproximation(form, "cka").spec


# ---- what is compared -----------------------------------------------------------------------------------------------


def test_heads_and_buffers_are_no_part_of_the_difference() -> None:
    parent = convolutional(0)
    child = child_of(parent, 1)
    wider = convolutional(9, classes=8)
    state = {n: t for n, t in child.state_dict().items() if not n.startswith("head.")}
    wider.load_state_dict(state, strict=False)
    given = [body_up_to(model(m), images()) for m in (parent, child, wider)]
    added = difference(given[0], given[1])
    assert set(added) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "more.weight", "more.bias"}
    method = FineTuningApproximation()
    one, other = (method(model(parent), [model(m)], images())[0] for m in (child, wider))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_wrapper_around_the_network_changes_nothing() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    parent, child = convolutional(0), convolutional(1)
    for form in ("linear", "taylor"):
        method = FineTuningApproximation(form)
        bare = method(model(parent), [model(child)], images())
        assert method(model(Wrapped(parent)), [model(child)], images()) == bare
        assert method(model(parent), [model(Wrapped(child))], images()) == bare


def test_a_named_layer_is_cut_there() -> None:
    parent = perceptron(0).double()
    child = child_of(parent, 1)
    named = FineTuningApproximation("plain", "l2", layer="1")(model(parent), [model(child)], tensors())[0]
    x = torch.from_numpy(tensors().inputs.copy())
    with torch.no_grad():
        expected = -float((parent[:2](x) - child[:2](x)).square().mean().sqrt())
    assert named == pytest.approx(expected, rel=1e-9)
    assert set(body_up_to(model(parent), tensors(), "1").parameters) == {"0.weight", "0.bias"}


def test_vision_transformers_and_language_models_are_taken() -> None:
    for kind in ("vit", "lm"):
        parents = independents(kind, 2, seed=4, untrained=True, keep=False)
        rng = np.random.default_rng(0)
        arrays = {n: a + rng.normal(0, 0.01, a.shape).astype(a.dtype) for n, a in arrays_of(parents[0]).items()}
        child = model_of("child", arrays, parents[0].config)
        given = data.examples(kind, "b").inputs[:8]
        found = Probes.of(given, kind="tokens" if kind == "lm" else None)
        for form in ("linear", "taylor", "plain"):
            best = FineTuningApproximation(form).best_parent(parents, child, found)
            assert best.winner == 0, (kind, form)


def test_half_precision_copies_score_as_the_original(families: Any) -> None:
    parents, children, probes = families
    halves = [model_of(c.name, arrays_of(c), c.config, "float16") for c in children]
    method = FineTuningApproximation()
    np.testing.assert_allclose(method(parents[0], halves, probes), method(parents[0], children, probes), rtol=1e-2)
    modules = [model(copy.deepcopy(m.network.module).half(), m.name) for m in (parents[0], children[0])]
    found = method(modules[0], modules[1:], probes)
    np.testing.assert_allclose(found, method(parents[0], children[:1], probes), rtol=1e-2)


def test_models_are_left_as_they_were() -> None:
    parent, child = convolutional(0), convolutional(1)
    parent.conv.weight.requires_grad_(False)
    before = copy.deepcopy(parent.state_dict())
    asked = [p.requires_grad for p in parent.parameters()]
    for form in ("linear", "taylor"):
        FineTuningApproximation(form)(model(parent), [model(child)], images())
    assert all(torch.equal(before[n], t) for n, t in parent.state_dict().items())
    assert [p.requires_grad for p in parent.parameters()] == asked
    assert all(p.grad is None for p in parent.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in parent.modules())


def test_frozen_parameters_count_as_any_others() -> None:
    parent = perceptron(0)
    frozen = copy.deepcopy(parent).requires_grad_(False)
    child = [model(child_of(parent, 1))]
    for form in ("linear", "taylor"):
        method = FineTuningApproximation(form)
        np.testing.assert_allclose(method(model(frozen), child, tensors()), method(model(parent), child, tensors()))


# ---- answers --------------------------------------------------------------------------------------------------------


def test_a_model_is_its_own_best_parent() -> None:
    parent = perceptron(0)
    best = FineTuningApproximation().best_parent(
        [model(perceptron(1), "stranger"), model(parent, "itself")], model(parent, "child"), tensors()
    )
    assert best.parent == "itself"
    assert best.scores[1] == 0
    assert best.margin == pytest.approx(-best.scores[0])


def test_equal_candidates_tie_and_a_single_one_has_no_margin() -> None:
    parent = perceptron(0)
    child = model(child_of(parent, 1), "child")
    twins = [model(copy.deepcopy(parent), "a"), model(perceptron(4), "b"), model(copy.deepcopy(parent), "c")]
    best = FineTuningApproximation().best_parent(twins, child, tensors())
    assert (best.winner, best.parent, best.margin, best.tied) == (None, None, 0.0, (0, 2))
    alone = FineTuningApproximation().best_parent(twins[:1], child, tensors())
    assert (alone.winner, alone.margin) == (0, None)


def test_dead_features_share_nothing_and_give_no_nan() -> None:
    dead = perceptron(0).double()
    with torch.no_grad():
        dead[2].weight.zero_()
        dead[2].bias.fill_(0.1)
    alive = perceptron(1).double()
    for name in ("cka", "dc"):
        for one, other in ((dead, alive), (alive, dead), (dead, dead)):
            for form in ("plain", "taylor"):
                assert FineTuningApproximation(form, name)(model(one), [model(other)], tensors())[0] == 0
            assert np.isfinite(FineTuningApproximation("linear", name)(model(one), [model(other)], tensors())).all()


def test_what_is_not_finite_falls_back_to_the_plain_score_and_says_so() -> None:
    parent, child = perceptron(0, widths=(1, 1)), perceptron(0, widths=(1, 1))
    with torch.no_grad():
        for module, weight in ((parent, 1e-20), (child, -1e20)):
            module[0].weight.fill_(weight)
            module[0].bias.fill_(1.0)
            module[2].weight.fill_(1e20)
            module[2].bias.fill_(0.0)
    probes = Probes.of(np.abs(tensors().inputs).astype(np.float32))
    for form in ("linear", "taylor"):
        scores = FineTuningApproximation(form).matrix([model(parent)], [model(child), model(parent)], probes)
        assert scores.replaced.tolist() == [[True, False]]
        assert scores.values[0, 0] == FineTuningApproximation("plain")(model(parent), [model(child)], probes)[0]
        assert scores.values[0, 1] == 0


def test_scores_that_overflow_are_refused() -> None:
    large = perceptron(0).double()
    with torch.no_grad():
        large[2].weight.mul_(1e100)
    method = FineTuningApproximation("plain", "lp")
    with pytest.raises(StemmaError, match="too large for lp: use l1"):
        method(model(large), [model(perceptron(0).double())], tensors())
    assert np.isfinite(FineTuningApproximation("plain")(model(large), [model(perceptron(0).double())], tensors())).all()


# ---- wrong use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"form": "quadratic"}, "form must be one of"),
        ({"similarity": "cosine"}, "no similarity 'cosine'"),
        ({"form": "taylor", "similarity": "linf"}, "lse"),
        ({"form": "plain", "alpha": 1.0}, "no step"),
        ({"form": "combined", "alpha": 0.1}, "no step"),
        ({"form": "combined", "similarity": "cka"}, "takes a norm"),
        ({"alpha": float("nan")}, "finite"),
        ({"power": 0.5}, "power"),
        ({"temperature": 0.0}, "temperature"),
        ({"batch": 0}, "batch"),
    ],
)
def test_wrong_parameters_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        FineTuningApproximation(**given)


def test_wrong_models_are_refused_in_one_sentence() -> None:
    method, parent, probes = FineTuningApproximation(), model(perceptron(0), "p"), tensors()
    child = model(perceptron(1), "c")
    cases: list[tuple[Any, Any, Any, str]] = [
        ([], [child], probes, "no candidate"),
        ([parent], [], probes, "no child"),
        ([parent], child, probes, "list of models"),
        ([parent], [child], probes.inputs, "stemma.Probes.of"),
        ([parent], [model(perceptron(1, widths=(6, 7)), "wide")], probes, "p has 5 features per probe and wide has 7"),
        (
            [parent],
            [model(perceptron(1, widths=(8, 5)), "wide")],
            probes,
            "'0.bias' is \\[6\\] in the first and \\[8\\]",
        ),
        ([parent], [model(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "q")], probes, "no such parameter"),
        ([parent], [stemma.from_module(lambda x: x @ torch.ones(4, 2), "box")], probes, "black box"),
        ([parent], [child], images(), "does not answer"),
    ]
    for candidates, children, asked, says in cases:
        with pytest.raises(StemmaError, match=says):
            method.matrix(candidates, children, asked)


def test_layers_that_are_not_there_are_refused() -> None:
    p, c, probes = model(perceptron(0)), [model(perceptron(1))], tensors()
    with pytest.raises(MisuseError, match="no layer 'nine'"):
        FineTuningApproximation(layer="nine")(p, c, probes)
    only = [model(nn.Sequential(nn.Linear(4, 3)), n) for n in "ab"]
    with pytest.raises(MisuseError, match="no parameter of b reaches the features at its head"):
        FineTuningApproximation().matrix(only[:1], only[1:], probes)
    with pytest.raises(MisuseError, match="compare outputs instead"):
        FineTuningApproximation(layer="all").matrix(only[:1], only[1:], probes)


def test_networks_in_train_mode_and_nan_are_refused() -> None:
    training = stemma.from_module(convolutional(0).train(), "busy")
    with pytest.raises(StemmaError, match="train mode"):
        FineTuningApproximation()(training, [model(convolutional(1))], images())
    broken = perceptron(0)
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    with pytest.raises(StemmaError, match="NaN"):
        FineTuningApproximation()(model(perceptron(1)), [model(broken)], tensors())


# ---- the benchmark's own counting -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counting() -> Any:
    return importlib.import_module("testbeds.parent_scores")


def test_ties_are_shared_and_intervals_are_those_of_families(counting: Any) -> None:
    scores = np.array([[3.0, 1.0, 0.0, 5.0], [2.0, 1.0, 0.0, 7.0], [1.0, 0.0, 0.0, 6.0]])
    assert counting.right(scores, np.array([0, 0, 2, 0])).tolist() == [1.0, 0.5, pytest.approx(1 / 3), 0.0]
    values, family = np.array([1.0] * 10 + [0.0] * 10), np.repeat([0, 1], 10)
    found = counting.interval(values, family)
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0.0, 1.0)  # two families are no twenty children
    assert counting.interval(values, np.arange(20))["low"] > 0.2


def test_the_benchmark_scores_as_the_library_does(counting: Any, families: Any) -> None:
    parents, children, probes = families
    zoos = importlib.import_module("testbeds.parent_zoos")
    truth = np.repeat(np.arange(5), 2)
    question = zoos.Question(parents, children, truth, truth, probes)
    scores = counting.all_scores(question)
    assert counting.agreement(question, scores) < 1e-5
    scores["l1"]["plain"] = scores["l1"]["plain"] * 1.1  # the control: a difference would be seen
    assert counting.agreement(question, scores) > 0.01
