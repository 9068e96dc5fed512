"""Fingerprints of outputs, activations, parameter gradients and Jacobians, against plain autograd and theorems."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints import ALL
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.hashing import count_sketch, product_sketch
from stemma.fingerprints.jacobian import JacobianSketch
from stemma.fingerprints.outputs import Outputs
from stemma.fingerprints.parameter_gradients import ParameterGradients
from stemma.measures import ALL as MEASURES
from stemma.measures.linear_cka import LinearCka
from stemma.networks.load import from_arrays
from stemma.networks.open import from_module
from stemma.probes import Probes
from stemma.types import Digest
from stemma.types.network import Network
from stemma.zoo.kinds import KINDS
from stemma.zoo.training import initial

METHODS = [kind() for kind in ALL if issubclass(kind, AbstractFingerprinter) and kind is not GradientField]
IDS = [m.name for m in METHODS]


def made(*layers: nn.Module, seed: int = 0, name: str = "net") -> Model:
    module = nn.Sequential(*layers).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.5 if p.ndim > 1 else 0.2)
    return from_module(module, name)


def perceptron(seed: int = 0, classes: int = 3, act: nn.Module | None = None) -> Model:
    return made(nn.Linear(5, 7), act or nn.Tanh(), nn.Linear(7, classes), seed=seed)


def pictures(seed: int = 0) -> Model:
    return made(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2, 1),
                nn.ReLU(), nn.Flatten(), nn.Linear(24, 3), seed=seed)  # fmt: skip


def inside(model: Model) -> nn.Module:
    module = model.network.module
    assert module is not None
    return module


ROWS = Probes.of(np.random.default_rng(1).normal(size=(9, 5)))
IMAGES = Probes.of(np.random.default_rng(2).normal(size=(9, 2, 4, 4)))


def features(method: AbstractFingerprinter, model: Model, probes: Probes) -> np.ndarray:
    return method(model, probes).values["features"]


# What holds for every one


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_blocks_are_cut_alike_for_every_model_and_change_no_number(method: Any) -> None:
    small = replace(method, batch=4)
    assert small.spec.digest == method.spec.digest
    cuts = []
    for model in (pictures(0), pictures(1)):
        whole, blocks = method(model, IMAGES), list(small.blocks(model, IMAGES))
        cuts.append([(b.start, len(b)) for b in blocks])
        for name, array in whole.values.items():
            assert len(array) == len(IMAGES)
            np.testing.assert_allclose(np.concatenate([b.values[name] for b in blocks]), array, atol=1e-9)
        later = list(small.blocks(model, IMAGES, from_probe=4))
        assert [(b.start, len(b)) for b in later] == cuts[0][1:]
    assert cuts == [[(0, 4), (4, 4), (8, 1)]] * 2


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_model_is_left_as_it_was(method: Any) -> None:
    model = pictures()
    module = inside(model)
    for p in list(module.parameters())[:3]:
        p.requires_grad_(False)
    before = {n: (t.clone(), t.requires_grad) for n, t in module.state_dict(keep_vars=True).items()}
    for chosen in (method, replace(method, of="parameters") if isinstance(method, ParameterGradients) else method):
        chosen(model, IMAGES)
    for name, t in module.state_dict(keep_vars=True).items():
        assert torch.equal(t, before[name][0])
        assert t.requires_grad == before[name][1]
        assert t.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_there_is_a_measure_for_it_and_a_model_is_at_no_distance_from_itself(method: Any) -> None:
    fitting = [kind() for kind in MEASURES if method.produces in kind.accepts]
    assert len(fitting) >= 6
    a, same, b = (method(pictures(seed), IMAGES) for seed in (0, 0, 1))
    measure = next(m for m in fitting if m.name in ("linear-cka", "jensen-shannon"))
    assert measure(a, same).value == pytest.approx(0, abs=1e-9)
    assert measure(a, b).value > 0.01


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_wrong_use_gets_one_sentence(method: Any) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) + torch.where(x[:, :1] > 100, torch.nan, 0.0)

    rows = np.random.default_rng(3).normal(size=(9, 5)).astype(np.float32)
    rows[7, 0] = 1000
    with pytest.raises(StemmaError, match=r"NaN or infinite outputs at probes \d to \d"):
        method(from_module(Late().eval(), "late"), Probes.of(rows))
    if isinstance(method, ParameterGradients):
        with pytest.raises(StemmaError, match="NaN or infinite outputs at probes 7 to 7"):
            replace(method, of="parameters")(from_module(Late().eval(), "late"), Probes.of(rows))
    with pytest.raises(StemmaError, match="train mode"):
        method(from_module(nn.Linear(5, 3).train(), "busy"), ROWS)
    with pytest.raises(MisuseError, match="1 or more"):
        replace(method, batch=0)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_black_box_has_outputs_only(method: Any) -> None:
    def ask(x: torch.Tensor) -> torch.Tensor:
        return x.detach()[:, :3] * 2

    box = Network("box", Digest("blackbox:box"), None, ask, differentiable=False)
    model = replace(perceptron(), network_builder=lambda _: box)
    if isinstance(method, Outputs):
        np.testing.assert_array_equal(method(model, ROWS).values["outputs"], ROWS.inputs[:, :3] * 2)
        return
    with pytest.raises(MisuseError, match=r"box .*[cC]ompare outputs instead"):
        method(model, ROWS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_architecture_of_the_zoo_can_be_asked(kind: str) -> None:
    config = dict(KINDS[kind].config)
    model = from_arrays(initial(config, 0), kind, config)
    spec = model.network.input_spec
    assert spec is not None
    rng = np.random.default_rng(4)
    given = rng.integers(0, int(spec.high) + 1, (5, 6)) if spec.kind == "tokens" else rng.random((5, *spec.shape))
    probes = Probes.of(given if spec.kind == "tokens" else given.astype(np.float32))
    for method in (Outputs(), Activations(), ParameterGradients(), JacobianSketch(directions=2)):
        for array in method(model, probes).values.values():
            assert len(array) == 5
            assert np.isfinite(array).all()
            assert np.ptp(array, axis=0).max() > 0


# Outputs and activations


def test_outputs_are_the_logits() -> None:
    model = perceptron()
    expected = inside(model)(torch.from_numpy(ROWS.inputs)).detach().numpy()
    np.testing.assert_array_equal(Outputs()(model, ROWS).values["outputs"], expected)
    assert Outputs()(model, ROWS).spec.params == {}
    halves = from_module(inside(model).bfloat16(), "half")
    assert Outputs()(halves, ROWS).values["outputs"].dtype == np.float32


def test_the_default_layer_is_what_the_head_sees() -> None:
    model = pictures()
    module, x = inside(model), torch.from_numpy(IMAGES.inputs)
    expected = module[:6](x).detach().numpy()
    np.testing.assert_allclose(features(Activations(), model, IMAGES), expected)
    np.testing.assert_allclose(features(Activations(layer="5"), model, IMAGES), expected)


def test_positions_are_pooled_flattened_or_samples_of_their_own() -> None:
    model = pictures()
    maps = inside(model)[:4](torch.from_numpy(IMAGES.inputs)).detach().numpy()
    assert maps.shape == (9, 6, 2, 2)
    np.testing.assert_allclose(features(Activations("3"), model, IMAGES), maps.mean((2, 3)))
    np.testing.assert_allclose(features(Activations("3", "flatten"), model, IMAGES), maps.reshape(9, 24))
    places = features(Activations("3", "none"), model, IMAGES)
    assert places.shape == (9, 4, 6)
    np.testing.assert_allclose(places[:, 1], maps[:, :, 0, 1])


def test_a_layer_written_over_by_the_next_is_still_its_own_when_it_enters_the_head() -> None:
    """What enters a module is recorded before it runs, and maps with channels last are read as such."""
    config = dict(KINDS["vit"].config)
    model = from_arrays(initial(config, 0), "vit", config)
    probes = Probes.of(np.random.default_rng(5).random((4, 1, 8, 8)).astype(np.float32))
    names = [n for n, m in inside(model).named_modules() if isinstance(m, nn.Linear)]
    tokens = features(Activations(names[1], "none"), model, probes)
    assert tokens.ndim == 3
    np.testing.assert_allclose(features(Activations(names[1]), model, probes), tokens.mean(1), atol=1e-6)


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    config = dict(KINDS["mlp"].config)
    model = from_arrays(initial(config, 0), "mlp", config)
    probes = Probes.of(np.random.default_rng(6).random((4, 1, 8, 8)).astype(np.float32))
    with pytest.raises(MisuseError, match=r"has no layer 'layer\.1'\. Similar names: .*layers\.1"):
        Activations("layer.1")(model, probes)
    with pytest.raises(MisuseError, match="pool must be mean, flatten or none"):
        Activations(pool="max")  # ty: ignore[invalid-argument-type]

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    for method in (Activations("unused"), ParameterGradients(layer="unused")):
        with pytest.raises(MisuseError, match="does not run"):
            method(from_module(Idle().double().eval(), "idle"), ROWS)


# Parameter gradients


def objective(out: torch.Tensor, beta: float) -> torch.Tensor:
    p = out.softmax(-1)
    q = (p.detach() ** beta) / (p.detach() ** beta).sum()
    return (q * p.log()).sum()


def test_gradients_of_parameters_are_those_of_one_probe_at_a_time() -> None:
    model = perceptron()
    found = features(ParameterGradients("parameters"), model, ROWS)
    assert found.shape == (9, 5 * 7 + 7 + 7 * 3 + 3)
    for row, x in zip(found, torch.from_numpy(ROWS.inputs), strict=True):
        module = inside(model)
        module.zero_grad()
        objective(module(x), 0.5).backward()
        slow = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
        np.testing.assert_allclose(row, slow.numpy(), atol=1e-12)


def test_features_give_the_published_kernel() -> None:
    """The entrywise product of the Gram matrices of activations and of gradients with respect to them."""
    model = perceptron()
    module, x = inside(model), torch.from_numpy(ROWS.inputs)
    z = module[:2](x).detach().requires_grad_()
    gradients = torch.autograd.grad(sum(objective(row, 0.5) for row in module[2](z)), z)[0]
    kernel = ((z @ z.T) * (gradients @ gradients.T)).detach().numpy()
    found = features(ParameterGradients(), model, ROWS)
    assert found.shape == (9, 49)
    np.testing.assert_allclose(found @ found.T, kernel, atol=1e-12)
    named = features(ParameterGradients(layer="1"), model, ROWS)
    np.testing.assert_allclose(named, found, atol=1e-12)


def test_gradients_of_the_head_are_the_outer_product_with_what_it_sees() -> None:
    """Theorem: for y = W z + b the gradient of W is (dL/dy) z^T."""
    model = perceptron()
    module, x = inside(model), torch.from_numpy(ROWS.inputs)
    z, y = module[:2](x), module(x)
    p = y.softmax(-1)
    q = (0.5 * y).softmax(-1)
    outer = torch.einsum("kc,kp->kcp", q - p, z).flatten(1).detach().numpy()
    found = features(ParameterGradients("parameters", layer="2"), model, ROWS)
    np.testing.assert_allclose(found[:, :21], outer, atol=1e-12)
    np.testing.assert_allclose(found[:, 21:], (q - p).detach().numpy(), atol=1e-12)


def test_gradients_do_not_see_a_common_shift_of_the_logits() -> None:
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 5 * x[:, :1] ** 2

    model = perceptron()
    shifted = from_module(Shifted(inside(model)).eval(), "shifted")
    for of in ("features", "parameters"):
        method = ParameterGradients(of)  # ty: ignore[invalid-argument-type]
        np.testing.assert_allclose(features(method, shifted, ROWS), features(method, model, ROWS), atol=1e-12)
    shift_free, plain = JacobianSketch(), JacobianSketch(centred=False)
    np.testing.assert_allclose(features(shift_free, shifted, ROWS), features(shift_free, model, ROWS), atol=1e-12)
    assert np.abs(features(plain, shifted, ROWS) - features(plain, model, ROWS)).max() > 0.1


def test_sketches_keep_inner_products_on_average() -> None:
    rng = np.random.default_rng(7)
    x, y = (torch.from_numpy(rng.normal(size=(6, 90)) + 0.3) for _ in range(2))
    exact = ((x @ x.T) * (y @ y.T)).numpy()
    short = product_sketch(x, y, 90 * 90, 0)
    np.testing.assert_allclose((short @ short.T).numpy(), exact, rtol=1e-12)
    draws = np.array([(s @ s.T).numpy() for s in (product_sketch(x, y, 256, seed) for seed in range(300))])
    error, spread = draws.mean(0) - exact, draws.std(0) / np.sqrt(300)
    assert np.abs(error / spread).max() < 4.5
    # Between two probes (the diagonal has less): at most sqrt(8 / size) of the lengths, which a wrong hash exceeds.
    lengths = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert (draws.std(0) / lengths).max() < np.sqrt(8 / 256)
    plain = np.array([(s @ s.T).numpy() for s in (count_sketch(x, 32, seed) for seed in range(300))])
    assert np.abs((plain.mean(0) - (x @ x.T).numpy()) / (plain.std(0) / np.sqrt(300))).max() < 4.5


# Jacobians


def jacobians(model: Model, probes: Probes) -> torch.Tensor:
    """One output and one probe at a time, by reverse mode: `[k, outputs, inputs]`."""
    rows = []
    for x in torch.from_numpy(probes.inputs):
        leaf = x[None].clone().requires_grad_()
        out = inside(model)(leaf).flatten()
        rows.append(torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in out]))
    return torch.stack(rows)


def test_a_sketch_is_the_jacobian_along_shared_signs() -> None:
    model = pictures()
    method = JacobianSketch(directions=5, centred=False)
    x = torch.from_numpy(IMAGES.inputs)
    signs = torch.stack([method._direction(i, x, tokens=False)[0].flatten() for i in range(5)])
    np.testing.assert_allclose(signs.abs(), np.full((5, 32), 32**-0.5))
    assert len(np.unique(signs.numpy(), axis=0)) == 5
    expected = jacobians(model, IMAGES) @ signs.T
    np.testing.assert_allclose(features(method, model, IMAGES), expected.mT, atol=1e-12)
    centred = features(JacobianSketch(directions=5), model, IMAGES)
    np.testing.assert_allclose(centred, (expected - expected.mean(1, keepdim=True)).mT, atol=1e-12)


def test_reverse_mode_twice_gives_the_same_where_forward_mode_fails() -> None:
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, *given: torch.Tensor) -> torch.Tensor:
            return given[0] * ctx.saved_tensors[0].cos()

    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Reverse.apply(x)

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin()

    custom, plain = (perceptron(act=act) for act in (Custom(), Plain()))
    with pytest.raises((RuntimeError, StemmaError)):
        torch.func.jvp(inside(custom), (torch.zeros(1, 5).double(),), (torch.ones(1, 5).double(),))
    method = JacobianSketch(directions=3)
    np.testing.assert_allclose(features(method, custom, ROWS), features(method, plain, ROWS), atol=1e-12)

    class Cut(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy().copy())

    with pytest.raises(StemmaError, match="cannot be differentiated along a direction"):
        method(perceptron(act=Cut()), ROWS)


def test_attention_is_differentiated_forwards() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(x).mean(1))

    torch.manual_seed(0)
    model = from_module(Reader().double().eval(), "reader")
    probes = Probes.of(np.random.default_rng(8).normal(size=(4, 5, 8)))
    method = JacobianSketch(directions=3, centred=False)
    signs = torch.stack([method._direction(i, torch.zeros(1, 5, 8).double(), tokens=False)[0].flatten()
                         for i in range(3)])  # fmt: skip
    expected = (jacobians(model, probes) @ signs.T).mT
    np.testing.assert_allclose(features(method, model, probes), expected, atol=1e-10)
    assert torch.backends.mha.get_fastpath_enabled()


def test_order_and_basis_of_the_outputs_do_not_matter_and_the_input_space_does() -> None:
    """Linear networks, whose Jacobian is the weight: J, QJ and JQ."""
    weight = torch.from_numpy(np.random.default_rng(9).normal(size=(4, 6)))
    turn_out = torch.linalg.qr(torch.from_numpy(np.random.default_rng(10).normal(size=(4, 4))))[0]
    turn_in = torch.linalg.qr(torch.from_numpy(np.random.default_rng(11).normal(size=(6, 6))))[0]

    def linear(w: torch.Tensor) -> Model:
        layer = nn.Linear(6, len(w), bias=False).double().eval()
        layer.weight.data = w.clone()
        return from_module(nn.Sequential(layer, nn.Tanh()) if len(w) == 6 else layer, "linear")

    probes = Probes.of(np.random.default_rng(12).normal(size=(8, 6)))
    a = JacobianSketch(centred=False)(linear(weight), probes)
    for other, same in ((weight[[2, 0, 3, 1]], True), (turn_out @ weight, True), (weight @ turn_in, False)):
        b = JacobianSketch(centred=False)(linear(other), probes)
        distance = LinearCka(debiased=False)(a, b).value
        assert (distance < 1e-9) if same else (distance > 0.1)
    more = JacobianSketch(centred=False)(linear(torch.cat([weight, weight]) / 2**0.5), probes)
    assert LinearCka(debiased=False)(a, more).value == pytest.approx(0, abs=1e-9)  # twice as many outputs


def test_tokens_move_along_directions_that_keep_their_sum() -> None:
    config = dict(KINDS["lm"].config) | {"vocab_size": 32}
    model = from_arrays(initial(config, 0), "lm", config)
    tokens = np.random.default_rng(13).integers(0, 32, (3, 5))
    method = JacobianSketch(directions=2, centred=False, size=10_000)
    found = features(method, model, Probes.of(tokens))
    assert found.shape == (3, 2, 5 * 32)
    x = torch.nn.functional.one_hot(torch.from_numpy(tokens), 32).float()
    for i in range(2):
        v = method._direction(i, x, tokens=True)
        assert v.sum(-1).abs().max() < 1e-6
        with torch.no_grad():
            slow = (model.network.relaxed(x + 1e-2 * v) - model.network.relaxed(x - 1e-2 * v)) / 2e-2
        np.testing.assert_allclose(found[:, i], slow.flatten(1), atol=2e-3)
