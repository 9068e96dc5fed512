"""The published method at parity, and its slow twin."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.paths import quadrature
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.pairwise import pairwise
from stemma.networks.load import from_arrays, load
from stemma.networks.open import from_module
from stemma.probes import Probes
from stemma.zoo.kinds import KINDS
from stemma.zoo.training import initial


def det(shape: tuple[int, ...], s: float, c: float) -> torch.Tensor:
    n = int(np.prod(shape))
    k = np.arange(n)
    return torch.from_numpy((c * np.sin(s + 1.7 * k + 0.3 * k**2 / n)).reshape(shape))


def mlp(s: float, act: nn.Module) -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 3)).double()
    values = det((8, 6), s, 0.8), det((8,), s + 10, 0.3), det((3, 8), s + 20, 0.9), det((3,), s + 30, 0.1)
    for p, v in zip(module.parameters(), values, strict=True):
        p.data = v
    return module.eval()


def encoder(s: float, maps: int) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, maps, 3, padding=1)).double()
    values = (
        det((6, 3, 3, 3), s, 0.5),
        det((6,), s + 10, 0.1),
        det((maps, 6, 3, 3), s + 20, 0.5),
        det((maps,), s + 30, 0.1),
    )
    for p, v in zip(module.parameters(), values, strict=True):
        p.data = v
    return module.eval()


ROWS = np.cos(0.5 + 0.9 * np.arange(24)).reshape(4, 6)
PICTURES = np.sin(0.2 + 0.37 * np.arange(576) + 0.001 * np.arange(576) ** 2).reshape(3, 3, 8, 8)
TANH = tuple(from_module(mlp(s, nn.Tanh()), f"mlp-{s}") for s in (0.1, 2.3))
MAPS = tuple(from_module(encoder(s, c), f"enc-{s}") for s, c in ((0.1, 4), (2.3, 5)))


def distance(models: tuple[Model, Model], probes: Probes, method: GradientField, official: bool = True) -> float:
    measure = FieldCosine.official() if official else FieldCosine()
    return measure(*(method(m, probes) for m in models)).value


@pytest.mark.parametrize(
    ("expected", "options", "extra"),
    [
        (1.204391747716, {}, {}),
        (1.208919447835, {"steps": 4}, {}),
        (1.347940285211, {"potential": "label"}, {"labels": [0, 1, 2, 0]}),
        (1.236043514185, {"cumulative": False}, {}),
        (1.185779937567, {"cumulative": False, "times_input": False}, {}),
        (1.240446430540, {}, {"baseline": ROWS[[1, 2, 3, 0]]}),
        (1.336208251124, {"potential": "sum"}, {}),
    ],
)
def test_published_values_of_perceptrons(expected: float, options: dict, extra: dict) -> None:
    extra = {k: np.asarray(v) for k, v in extra.items()}
    assert distance(TANH, Probes.of(ROWS, **extra), GradientField.official(**options)) == pytest.approx(
        expected, abs=5e-9
    )


@pytest.mark.parametrize(
    ("expected", "options", "extra"),
    [
        (0.717260118178, {"potential": "channel-max", "channel_mean": True}, {}),
        (0.720406111457, {"potential": "channel-max"}, {}),
        (0.981738777097, {"potential": "sum", "channel_mean": True}, {}),
        (0.931044648088, {"potential": "sum"}, {}),
        (0.618679611790, {"potential": "channel-max", "channel_mean": True}, {"baseline": PICTURES[[1, 2, 0]]}),
    ],
)
def test_published_values_of_encoders_with_other_heads(expected: float, options: dict, extra: dict) -> None:
    found = distance(MAPS, Probes.of(PICTURES, **extra), GradientField.official(**options))
    assert found == pytest.approx(expected, abs=5e-9)


def twin(module: nn.Module, x: np.ndarray, b: np.ndarray, nodes: np.ndarray, weights: np.ndarray, label: int | None):
    """One probe, one step at a time, with nothing but autograd: the curve of the labelled log-probability."""
    dtype = next(module.parameters()).dtype
    total, curve = 0.0, []
    for a, w in zip(nodes, weights, strict=True):
        point = torch.tensor(b + a * (x - b), dtype=dtype)[None].requires_grad_()
        scores = module(point).log_softmax(1)[0]
        phi = scores.mean() if label is None else scores[label]
        phi.backward()
        total = total + w * point.grad[0].double().numpy()
        curve.append((x - b) * total)
    return np.stack(curve)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def convolutional() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1, groups=2),
        nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    module(torch.randn(64, 3, 8, 8))  # running statistics that are not the initial ones
    return module


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("make", [convolutional, Attention])
def test_a_slow_twin_agrees(make, labelled: bool) -> None:
    torch.manual_seed(0)
    modules = [make().double().eval() for _ in range(2)]
    rng = np.random.default_rng(0)
    x, b, labels = rng.random((5, 3, 8, 8)), rng.random((5, 3, 8, 8)), rng.integers(0, 5, 5)
    probes = Probes.of(x, labels if labelled else None, b)
    method = GradientField(steps=6, batch=7)
    prints = [method(from_module(m, "m"), probes) for m in modules]
    nodes, weights = (np.arange(6) + 0.5) / 6, np.full(6, 1 / 6)
    curves = [
        np.stack([twin(m, x[i], b[i], nodes, weights, int(labels[i]) if labelled else None) for i in range(5)])
        for m in modules
    ]
    for found, slow in zip(prints, curves, strict=True):
        np.testing.assert_allclose(found.values["curve"], slow.reshape(5, 6, -1), atol=1e-12)
    u, v = (c.reshape(5, 6, -1) for c in curves)
    cosine = (u * v).sum(2) / np.linalg.norm(u, axis=2) / np.linalg.norm(v, axis=2)
    share = np.array([1.5, 1, 1, 1, 1, 0.5]) / 6  # constant up to the first value, then the trapezoid rule
    assert FieldCosine()(*prints).value == pytest.approx(((1 - cosine) @ share).mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gauss-legendre", "gausslegendre"), ("riemann-right", "riemann_right"), ("riemann-left", "riemann_left"),
        ("riemann-middle", "riemann_middle"), ("riemann-trapezoid", "riemann_trapezoid"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.slow
def test_quadratures_are_those_of_captum(ours: str, theirs: str, steps: int) -> None:
    methods = pytest.importorskip("captum.attr._utils.approximation_methods")
    shares, nodes = methods.approximation_parameters(theirs)
    found = quadrature(ours, steps)
    # Captum rounds nodes of Riemann sums to single precision, where a machine's last digit is its own.
    np.testing.assert_allclose(found[0], nodes(steps), rtol=0, atol=1e-12 if ours.startswith("gauss") else 2.0**-22)
    np.testing.assert_allclose(found[1], shares(steps), rtol=0, atol=1e-12)


def test_averages_over_the_path_tend_to_their_laws() -> None:
    """Even weights at Gauss-Legendre nodes tend to the arcsine law, the uniform average to the plain integral."""
    probes = Probes.of(ROWS)
    crowded = GradientField.official(steps=800)
    assert distance(TANH, probes, crowded, official=False) == pytest.approx(1.203939, abs=1e-4)
    assert distance(TANH, probes, crowded) < 1.2035  # the published epsilon swallows the short first curves
    even = GradientField(steps=800, potential="own-argmax", baseline="zero")
    assert distance(TANH, probes, even, official=False) == pytest.approx(1.202916, abs=1e-5)
    few = GradientField(steps=16, potential="own-argmax", baseline="zero")
    assert distance(TANH, probes, few, official=False) == pytest.approx(1.202916, abs=3e-3)


class Changed(nn.Module):
    """The first golden perceptron with something done to its scores."""

    def __init__(self, change) -> None:
        super().__init__()
        self.inner, self.change = mlp(0.1, nn.Tanh()), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(x), x)


def common(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return z + 20 * torch.sin(3 * x).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("change", "own", "fixed"),
    [
        (lambda z, x: 7 * z - 2, 0.0, 0.0),
        (lambda z, x: z[:, [1, 2, 0]], 0.0, 1.0),
        (lambda z, x: -z, None, 2.0),
        (lambda z, x: z.softmax(1), 0.168, 0.168),
        (lambda z, x: z.log_softmax(1), 0.169, 0.169),
    ],
)
def test_what_leaves_the_published_distance_alone_and_what_does_not(change, own, fixed) -> None:
    pair = TANH[0], from_module(Changed(change).eval(), "changed")
    probes = Probes.of(ROWS)
    if own is not None:
        assert distance(pair, probes, GradientField.official()) == pytest.approx(own, abs=6e-4)
    labelled = Probes.of(ROWS, labels=np.ones(4, int))  # the class that the first model chooses
    found = distance(pair, labelled, GradientField.official(potential="label"))
    assert found == pytest.approx(fixed, abs=6e-4 if fixed in (0, 2, 0.168, 0.169) else 0.7)
    if fixed == 1.0:
        assert found > 0.3


def test_a_common_shift_of_all_scores_evades_the_published_distance_but_not_the_default() -> None:
    pair = TANH[0], from_module(Changed(common).eval(), "shifted")
    labelled = Probes.of(ROWS, labels=np.ones(4, int))
    assert distance(pair, labelled, GradientField.official(potential="label")) > 0.8
    assert distance(pair, labelled, GradientField(), official=False) < 1e-12
    assert distance(pair, Probes.of(ROWS), GradientField(), official=False) < 1e-12


@pytest.mark.parametrize("temperature", [1, 30, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fields_of_networks_that_are_sure_hold_no_rounding(dtype: torch.dtype, temperature: float) -> None:
    """1 - p of the chosen class rounds to 0 long before the derivatives of the other scores do."""

    class Linear(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(temperature / 100, dtype=dtype))  # scores a few units apart at 100

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.scale * x
            return torch.cat([8 * z[:, :1], z[:, 1:]], 1)

    rows = np.ones((3, 3)) * [[4, 1, 2], [3, 2, 1], [4, 2, 1]]  # exact in every type
    probes = Probes.of(rows, labels=[0, 0, 0], baseline=np.array([2.0, 1.0, 1.0]))
    found = from_module(Linear(dtype).eval(), "found")
    exact = from_module(Linear(dtype).double().eval(), "exact")  # the same numbers
    pair = found, exact
    assert distance(pair, probes, GradientField(steps=2), official=False) < 2e-3
    assert distance(pair, Probes.of(rows, baseline=probes.baseline), GradientField(steps=2), official=False) < 2e-3


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-30, 1, 1e160])
def test_the_length_of_a_field_changes_no_distance(scale: float) -> None:
    """Products of lengths leave the range of doubles long before the lengths do."""
    rng = np.random.default_rng(3)
    plain = [{"curve": rng.normal(size=(3, 2, 5)), "weights": np.full((3, 2), 0.5), "defined": np.ones((3, 2), bool)}
             for _ in range(2)]  # fmt: skip
    short = [{**v, "curve": v["curve"] * scale} for v in plain]
    expected = FieldCosine().distances(*plain)
    np.testing.assert_allclose(FieldCosine().distances(*short), expected, atol=1e-12)
    np.testing.assert_allclose(FieldCosine().gram(short)[0, 1], expected, atol=1e-12)
    assert FieldCosine().distances(short[0], short[0]) == pytest.approx(0, abs=1e-12)


def test_a_field_too_small_for_its_type_is_undefined_and_not_orthogonal_to_itself() -> None:
    model = from_module(Changed(lambda z, x: z * 1e-45).eval().float(), "tiny")  # derivatives below every float32
    method = GradientField(potential="sum", baseline="zero")
    with pytest.raises(MisuseError, match="undefined at all"):
        distance((model, model), Probes.of(ROWS * 0.1), method, official=False)


def test_a_model_is_at_distance_zero_from_itself_and_undefined_probes_are_counted() -> None:
    same = np.concatenate([ROWS, np.zeros((1, 6))])  # the last probe lies on its baseline
    assert distance((TANH[0], TANH[0]), Probes.of(ROWS), GradientField.official()) == pytest.approx(0, abs=1e-15)
    kept = [GradientField.official()(TANH[0], Probes.of(same))] * 2
    assert FieldCosine.official()(*kept).value == pytest.approx(1 / 5)
    method = GradientField(baseline="zero")
    left_out = FieldCosine()(*[method(TANH[0], Probes.of(same))] * 2)
    assert left_out.value == pytest.approx(0, abs=1e-15)
    assert left_out.coverage == pytest.approx(4 / 5)
    assert left_out.per_probe[4] is None
    with pytest.raises(MisuseError, match="undefined at all 1 probes"):
        FieldCosine()(*[method(TANH[0], Probes.of(np.zeros((1, 6))))] * 2)
    with pytest.raises(MisuseError, match="baseline=zero"):
        GradientField()(TANH[0], Probes.of(ROWS[:1]))


def test_the_integral_is_complete_and_kinks_show() -> None:
    gaps = [
        GradientField.official()(from_module(mlp(0.1, act), "m"), Probes.of(ROWS)).values["gap"].max()
        for act in (nn.Tanh(), nn.ReLU())
    ]
    assert gaps[0] < 1e-9
    assert 1e-4 < gaps[1] < 2e-2


def test_batches_and_blocks_change_nothing() -> None:
    torch.manual_seed(1)
    model = from_module(convolutional().eval(), "m")
    probes = Probes.of(np.random.default_rng(1).random((9, 3, 8, 8), np.float32))
    whole = GradientField(batch=1000)(model, probes).values["curve"]
    for batch in (1, 5, 8, 17):
        np.testing.assert_allclose(GradientField(batch=batch)(model, probes).values["curve"], whole, atol=1e-6)
    assert GradientField(batch=5).spec == GradientField(batch=8).spec
    assert GradientField(steps=5).spec != GradientField(steps=6).spec


def test_several_baselines_are_averaged() -> None:
    probes = Probes.of(ROWS, labels=[0, 1, 2, 0])
    single = [distance(TANH, probes, GradientField(baseline=b), official=False) for b in ("zero", "mean", "probe")]
    assert len(set(np.round(single, 6))) == 3
    both = distance(TANH, probes, GradientField(baseline="zero+mean+probe"), official=False)
    assert both == pytest.approx(np.mean(single), abs=1e-12)


def test_sketches_come_near_the_distance_and_black_boxes_near_their_sketch() -> None:
    torch.manual_seed(2)
    modules = [convolutional().double().eval() for _ in range(2)]
    rng = np.random.default_rng(2)
    probes = Probes.of(rng.random((24, 3, 8, 8)), rng.integers(0, 5, 24))
    exact = distance([from_module(m, "m") for m in modules], probes, GradientField(steps=4), official=False)
    errors = {}
    for width in (16, 64, 256):
        method = GradientField(steps=4, sketch=width)
        errors[width] = abs(distance([from_module(m, "m") for m in modules], probes, method, official=False) - exact)
        assert errors[width] < 4 / np.sqrt(width)  # four standard errors of one cosine
    assert errors[256] < 0.05
    method = GradientField(steps=4, sketch=64, contrast=1e-4)
    silent = [from_module(lambda x, m=m: m(x.double()).detach().numpy(), "box") for m in modules]
    wide = Probes.of(probes.inputs, probes.labels)
    estimated = distance(silent, wide, method, official=False)
    true = distance([from_module(m, "m") for m in modules], wide, method, official=False)
    assert estimated == pytest.approx(true, abs=0.02)
    with pytest.raises(MisuseError, match="sketch=64"):
        GradientField()(silent[0], wide)


def test_all_pairs_without_storing_fields(tmp_path: Path) -> None:
    torch.manual_seed(3)
    models = [from_module(convolutional().eval(), f"m{i}") for i in range(4)]
    probes = Probes.of(np.random.default_rng(3).random((11, 3, 8, 8), np.float32))
    method, state = GradientField(steps=3, batch=9), tmp_path / "state.npz"
    stored = [method(m, probes) for m in models]
    found = pairwise(models, probes, method, FieldCosine())
    slow = np.array([[FieldCosine()(a, b).value for b in stored] for a in stored])
    np.testing.assert_allclose(found.values, slow, atol=1e-12)

    class Stopped(Exception):
        pass

    asked: list[int] = []

    def stop(what: str, done: int, total: int | None) -> None:
        asked.append(done)
        if done == 6 and len(asked) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        pairwise(models, probes, method, FieldCosine(), state=state, progress=stop)
    kept = pairwise(models, probes, method, FieldCosine(), state=state, progress=stop)
    np.testing.assert_array_equal(kept.per_probe, found.per_probe)
    assert asked == [3, 6, 6, 9, 11]  # the last block before the stop was not yet kept
    assert not state.exists()


def byte_model(seed: int, **changed: int) -> Model:
    config = dict(KINDS["lm"].config) | {"vocab_size": 32} | changed
    arrays = initial(config, seed)
    return from_arrays(arrays, f"lm-{seed}", config)


def test_language_models_are_asked_in_the_space_of_relaxed_one_hot_vectors() -> None:
    tokens = np.random.default_rng(4).integers(0, 32, (3, 7))
    probes, model = Probes.of(tokens), byte_model(0)
    method = GradientField(steps=4, times_input=False, baseline="zero")
    curve = method(model, probes).values["curve"].reshape(3, 4, 7, 32)
    np.testing.assert_allclose(curve.sum(3), 0, atol=1e-6)
    network = model.network
    x = torch.nn.functional.one_hot(torch.from_numpy(tokens), 32).float()
    slow, total = [], 0.0
    for a in (np.arange(4) + 0.5) / 4:
        point = (1 / 32 + a * (x - 1 / 32)).requires_grad_()
        scores = network.relaxed(point)[:, :-1].log_softmax(2)
        phi = sum(scores[i, t, tokens[i, t + 1]] for i in range(3) for t in range(6)) / 6
        (slope,) = torch.autograd.grad(phi, point)
        total = total + (slope - slope.mean(2, keepdim=True)).double().numpy() / 4
        slow.append(total)
    np.testing.assert_allclose(curve, np.stack(slow, 1), atol=1e-5)
    wider = byte_model(1, hidden_size=48, head_dim=12)
    far = FieldCosine()(method(model, probes), method(wider, probes)).value
    assert far > 0.3  # another width is no obstacle
    noisy = from_arrays({n: t.array() + 1e-3 * np.random.default_rng(5).normal(size=t.shape).astype(np.float32)
                         for n, t in model.tensors.items()}, "near", model.config)  # fmt: skip
    assert FieldCosine()(method(model, probes), method(noisy, probes)).value < far / 5


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_encoders_without_a_head_are_compared_by_their_hidden_states(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 24, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}  # fmt: skip
    for seed in range(2):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / str(seed))
    one, other = (load(tmp_path / str(seed)) for seed in range(2))
    probes = Probes.of(np.random.default_rng(3).integers(0, 60, (6, 5)))
    method = GradientField(steps=3)
    assert FieldCosine()(method(one, probes), method(one, probes)).value == pytest.approx(0, abs=1e-6)
    assert FieldCosine()(method(one, probes), method(other, probes)).value > 0.01
    with pytest.raises(MisuseError, match="hidden states"):
        replace(method, potential="next-tokens")(one, probes)


def test_models_of_different_tokenizers_are_not_compared() -> None:
    probes, models = Probes.of(np.random.default_rng(6).integers(0, 32, (3, 7))), [byte_model(0), byte_model(1)]

    def reading(model: Model, tokenizer: str | None) -> Model:
        return replace(
            model, network_builder=lambda m: replace(byte_model(0).network, name=m.name, tokenizer=tokenizer)
        )

    for same in ("words", None):
        pairwise([reading(m, same) for m in models], probes, GradientField(2), FieldCosine())
    with pytest.raises(MisuseError, match="different tokenizers"):
        pairwise([reading(models[0], "words"), reading(models[1], "letters")], probes, GradientField(2), FieldCosine())


def test_wrong_questions_get_one_sentence() -> None:
    probes = Probes.of(ROWS, labels=[0, 1, 2, 3])
    with pytest.raises(MisuseError, match="labels up to 3, but the network has 3 outputs"):
        GradientField()(TANH[0], probes)
    with pytest.raises(MisuseError, match="maps"):
        GradientField(potential="own-argmax")(MAPS[0], Probes.of(PICTURES))
    with pytest.raises(MisuseError, match="unknown quadrature 'simpson'"):
        GradientField(quadrature="simpson")
    flat = from_module(nn.Sequential(Rounded(), mlp(0.1, nn.Tanh())).eval(), "rounded")
    with pytest.raises(StemmaError, match="do not depend differentiably"):
        GradientField()(flat, Probes.of(ROWS))
    a = GradientField()(TANH[0], Probes.of(ROWS))
    with pytest.raises(MisuseError, match="different probes"):
        FieldCosine()(a, GradientField()(TANH[1], Probes.of(ROWS[:3])))
    with pytest.raises(MisuseError, match="but Model was given"):
        FieldCosine()(TANH[0], TANH[1])  # ty: ignore[invalid-argument-type]
    with pytest.raises(MisuseError, match="different methods"):
        FieldCosine()(a, GradientField(steps=9)(TANH[1], Probes.of(ROWS)))


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().round()
