"""Competition strength against theorems; strategies and the trainer against closed forms and known competition."""

import numpy as np
import pytest
import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.competition_strength import CompetitionTest, over_concepts
from stemma.multimodal.concepts import concept_outputs, fused_representation
from stemma.multimodal.masks import masks_of
from stemma.multimodal.modulation_rule import Modulation
from stemma.multimodal.strategies import (
    ALL,
    Agm,
    EncoderRates,
    GradientBlending,
    Joint,
    Mses,
    Mslr,
    Ogm,
    OgmGe,
    Single,
)
from stemma.multimodal.strategies.base import Progress, Setting
from stemma.multimodal.training_loop import Examples, Fit, responses_of

RNG = np.random.default_rng(0)


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def _strength(h: np.ndarray, c: np.ndarray, **options: float):
    (h1, h2), (c1, c2) = _halves(h), _halves(c)
    return CompetitionTest(draws=100, **options)(h1, c1, h2, c2)


def test_a_concept_that_is_there_is_read_whole() -> None:
    h = RNG.normal(size=(400, 20))
    c = h @ RNG.normal(size=(20, 5)) + 3
    found = _strength(h, c, penalty=1e-9)
    assert found.whitened < 1e-12
    assert found.plain < 1e-12
    assert _strength(h, c).whitened < 1e-6  # cross-validation finds that no penalty is best
    hidden = _strength(h[:, :10], c, penalty=1e-9)  # the control: half of it is gone
    assert 0.2 < hidden.whitened < 0.9


def test_independent_features_say_nothing() -> None:
    found = _strength(RNG.normal(size=(4000, 10)), RNG.normal(size=(4000, 5)))
    assert found.whitened == pytest.approx(1, abs=0.05)
    assert found.plain == pytest.approx(1, abs=0.05)
    assert found.interval[0] < found.whitened < found.interval[1]
    assert found.penalty >= 1e3


def test_nothing_but_the_mean_scores_one() -> None:
    c = RNG.normal(size=(200, 6)) @ RNG.normal(size=(6, 6))
    found = CompetitionTest(penalty=1e30, draws=10)(RNG.normal(size=(200, 3)), c, RNG.normal(size=(200, 3)), c)
    assert found.whitened == pytest.approx(1, abs=1e-6)
    assert found.plain == pytest.approx(1, abs=1e-6)


def test_invariant_where_it_should_be() -> None:
    h, noise = RNG.normal(size=(600, 12)), RNG.normal(size=(600, 4))
    c = h[:, :6] @ RNG.normal(size=(6, 4)) + noise
    base = _strength(h, c, penalty=0.0)
    mixed = RNG.normal(size=(4, 4))
    assert _strength(h, c @ mixed, penalty=0.0).whitened == pytest.approx(base.whitened, abs=1e-9)
    assert _strength(h @ RNG.normal(size=(12, 12)), c, penalty=0.0).whitened == pytest.approx(base.whitened, abs=1e-9)
    assert _strength(h, c @ mixed).whitened == pytest.approx(_strength(h, c).whitened, abs=1e-9)
    assert abs(_strength(h, c @ mixed, penalty=0.0).plain - base.plain) > 1e-3  # the control: plain is not
    wide = _strength(h @ np.diag(10.0 ** RNG.uniform(-3, 3, 12)), c, penalty=120.0).whitened
    assert wide == pytest.approx(_strength(h, c, penalty=120.0).whitened, abs=1e-9)  # features are standardised


def test_the_published_formula() -> None:
    """d = trace(E (N Sigma)^+ E^T) / K with Sigma of the centred concept, on full-rank outputs."""
    h, c = RNG.normal(size=(300, 5)), RNG.normal(size=(300, 3))
    c[:, 0] += h[:, 0]
    h[:, 1] *= 10
    (h1, h2), (c1, c2) = _halves(h), _halves(c)
    for scaled in (False, True):
        found = CompetitionTest(penalty=120.0, draws=10, scaled=scaled)(h1, c1, h2, c2)
        mean, std = h1.mean(0), h1.std(0) if scaled else 1.0
        z1, z2 = (h1 - mean) / std, (h2 - mean) / std
        w = np.linalg.solve(z1.T @ z1 + 120 * np.eye(5), z1.T @ (c1 - c1.mean(0)))
        e = z2 @ w + c1.mean(0) - c2
        scatter = (c2 - c2.mean(0)).T @ (c2 - c2.mean(0))
        assert found.whitened == pytest.approx(np.trace(e @ np.linalg.pinv(scatter) @ e.T) / 3, abs=1e-9)
        assert found.plain == pytest.approx(np.square(e).sum() / np.trace(scatter), abs=1e-9)


def test_a_unit_that_hardly_ever_fires_does_not_mislead() -> None:
    h = RNG.normal(size=(600, 8))
    c = h[:, :3] + 0.5 * RNG.normal(size=(600, 3))
    base = _strength(h, c)
    rare = np.zeros((600, 1))
    rare[7], rare[300:] = 1e-6, np.abs(RNG.normal(size=(300, 1)))  # dead but for once, then alive
    assert _strength(np.concatenate([h, rare], 1), c).whitened == pytest.approx(base.whitened, rel=0.05)


def test_a_unit_that_fires_for_few_classes_is_read_all_the_same() -> None:
    kind, read = RNG.integers(0, 50, 4000), RNG.normal(size=(50, 4))
    fired = np.eye(50)[kind]
    found = CompetitionTest(draws=10)(fired[:3000], fired[:3000] @ read, fired[3000:], fired[3000:] @ read)
    assert found.whitened < 0.01
    few = CompetitionTest(draws=10)(fired[:300], fired[:300] @ read, fired[3000:], fired[3000:] @ read)
    assert "features that differ from their median at fewer than 15" in few.reason


def test_intervals_cover_with_few_probes_for_many_directions() -> None:
    draw = np.random.default_rng(5)
    inside = 0
    for i in range(60):
        h = draw.normal(size=(400, 10))
        c = h + draw.normal(size=(400, 10))  # half of it
        found = CompetitionTest(penalty=1e-6, draws=200, seed=i)(h[:300], c[:300], h[300:], c[300:])
        beyond = draw.normal(size=(5000, 10))
        truth = CompetitionTest(penalty=1e-6, draws=2)(h[:300], c[:300], beyond, beyond + draw.normal(size=(5000, 10)))
        inside += found.interval[0] <= truth.whitened <= found.interval[1]
    assert inside >= 50


def test_the_interval_covers_the_strength_of_the_population() -> None:
    inside = 0
    for i in range(60):
        draw = np.random.default_rng(100 + i)
        h = draw.normal(size=(2300, 3))
        c = np.stack([h[:, 0] + draw.normal(size=2300), draw.normal(size=2300)], 1)  # half and nothing: .75
        found = CompetitionTest(penalty=1e-6, draws=200, seed=i)(h[:2000], c[:2000], h[2000:], c[2000:])
        inside += found.interval[0] <= 0.75 <= found.interval[1]
    assert inside >= 52  # 57 expected; below 52 with a chance of 1 in 70 if it covers 95 %


def test_constant_directions_are_left_out_and_bad_arrays_refused() -> None:
    h, c = RNG.normal(size=(100, 4)), RNG.normal(size=(100, 3))
    c = np.concatenate([c, -c.sum(1, keepdims=True)], 1)  # the shift that no softmax sees
    assert _strength(h, c).directions == 3
    assert np.isfinite(_strength(np.concatenate([h, np.ones((100, 2))], 1), c).whitened)
    assert "too few for a stable fit" in _strength(RNG.normal(size=(60, 40)), RNG.normal(size=(60, 3))).reason
    with pytest.raises(MisuseError, match="the same output for every probe"):
        _strength(h, np.ones((100, 3)))
    with pytest.raises(MisuseError, match="too few: give hundreds"):
        _strength(h[:10], c[:10])
    with pytest.raises(MisuseError, match="folds has to be 2 or more"):
        CompetitionTest(folds=1)
    with pytest.raises(MisuseError, match="NaN or infinite values"):
        _strength(np.full((100, 2), np.nan), c)
    with pytest.raises(MisuseError, match="needs features"):
        CompetitionTest()(h, c[:50], h, c)


def test_concepts_are_averaged_with_an_interval_over_them() -> None:
    h = RNG.normal(size=(800, 6))
    found = [_strength(h, h[:, :3] + s * RNG.normal(size=(800, 3))) for s in (0.5, 1.0, 1.5)]
    mean = over_concepts(found)
    assert mean.whitened == pytest.approx(np.mean([f.whitened for f in found]))
    assert mean.interval[0] < found[0].whitened
    assert mean.concepts == 3
    assert "one concept" in over_concepts(found[:1]).reason
    assert "two concepts" in over_concepts(found[:2]).reason


# Networks


class Net(nn.Module):
    def __init__(self, fusion: str = "late") -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(8, 16), nn.ReLU()) for m in "av"})
        self.head = (
            nn.Linear(32, 3) if fusion == "late" else nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
        )

    def forward(self, a: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.encoders["a"](a), self.encoders["v"](v)], 1))


def _setting(fusion: str = "late", seed: int = 0) -> Setting:
    torch.manual_seed(seed)
    return Setting(Net(fusion), ("a", "v"), masks_of("zero", ["a", "v"]), {m: f"encoders.{m}" for m in "av"})


def _examples(n: int = 128, seed: int = 0, shrink: float = 1.0) -> Examples:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    means = np.random.default_rng(99).normal(size=(3, 8))
    a, v = (torch.tensor(means[y] + s * draw.normal(size=(n, 8))).float() for s in (1.5, 0.5))
    return Examples({"a": a, "v": v / shrink}, torch.tensor(y))


def test_the_representation_is_what_enters_the_last_layer() -> None:
    s, batch = _setting(), _examples().inputs
    found, layer = fused_representation(s.model, batch)
    net = s.model
    truth = torch.cat([net.encoders[m](batch[m]) for m in "av"], 1)
    assert layer == "head"
    assert np.allclose(found, truth.detach().numpy(), atol=1e-6)
    deeper, layer = fused_representation(_setting("early").model, batch)
    assert (layer, deeper.shape[1]) == ("head.2", 16)
    named, _ = fused_representation(_setting("early").model, batch, layer="head.0")
    assert named.shape[1] == 32
    with pytest.raises(MisuseError, match="no layer 'tail'"):
        fused_representation(net, batch, layer="tail")


def test_a_concept_is_called_with_what_it_takes() -> None:
    class Alone(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a[:, :3] * 2

    batch, masks = _examples().inputs, masks_of("zero", ["a", "v"])
    found = concept_outputs(Alone(), batch, "a", masks)
    assert np.allclose(found.sum(1), 0, atol=1e-6)
    assert np.allclose(found, 2 * (batch["a"][:, :3] - batch["a"][:, :3].mean(1, keepdim=True)), atol=1e-6)
    net = _setting().model
    whole = concept_outputs(net, batch, "a", masks)
    truth = net(batch["a"], 0 * batch["v"]).detach()
    assert np.allclose(whole, truth - truth.mean(1, keepdim=True), atol=1e-6)
    with pytest.raises(MisuseError, match="the concept of 'v' takes a"):
        concept_outputs(Alone(), batch, "v", masks)


def _state(s: Setting) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in s.model.named_parameters()}


def _moved(fit: Fit, strategy: object, **changes: object) -> dict[str, torch.Tensor]:
    s = _setting(**changes)
    before = _state(s)
    fit(s, _examples(), strategy, _examples(seed=1))
    return {n: p - before[n] for n, p in _state(s).items()}


ONE_STEP = Fit(epochs=1, batch=128, momentum=0, weight_decay=0, clip=None, rate=0.1, decay_at=1)


def test_joint_is_plain_sgd() -> None:
    s = _setting()
    examples = _examples()
    nn.functional.cross_entropy(s.model(**examples.inputs), examples.labels).backward()
    for name, move in _moved(ONE_STEP, Joint()).items():
        assert torch.allclose(move, -0.1 * dict(s.model.named_parameters())[name].grad, atol=1e-6)


def test_rates_scale_one_encoder_and_nothing_else() -> None:
    joint, found = _moved(ONE_STEP, Joint()), _moved(ONE_STEP, EncoderRates({"a": 0.25}))
    for name, move in found.items():
        assert torch.allclose(move, joint[name] * (0.25 if ".a." in name else 1), atol=1e-7)


def test_fixed_factors_cancel_under_adam() -> None:
    adam = Fit(epochs=3, batch=128, weight_decay=0, clip=None, rate=1e-2, decay_at=1, optimizer="adam")
    joint, found = _moved(adam, Joint()), _moved(adam, EncoderRates({"a": 0.25}))
    for name, move in found.items():
        assert torch.allclose(move, joint[name], atol=2e-4), name
    assert max(m.abs().max() for m in joint.values()) > 0.02
    with pytest.raises(MisuseError, match="no optimiser is called 'lion'"):
        Fit(optimizer="lion")


def test_ogm_damps_the_more_confident_encoder_as_published() -> None:
    s, examples = _setting(), _examples()
    right = {m: r.softmax(1).gather(1, examples.labels[:, None]).sum() for m, r in responses_of(s, examples).items()}
    ahead, behind = ("a", "v") if right["a"] > right["v"] else ("v", "a")
    factor = 1 - np.tanh(0.5 * float(right[ahead] / right[behind]))
    joint, found = _moved(ONE_STEP, Joint()), _moved(ONE_STEP, Ogm(0.5))
    weights = {m: f"encoders.{m}.0.weight" for m in "av"}
    assert torch.allclose(found[weights[ahead]], factor * joint[weights[ahead]], atol=1e-6)
    assert torch.allclose(found[weights[behind]], joint[weights[behind]], atol=1e-7)
    noisy = _moved(ONE_STEP, OgmGe(0.5))
    noise = (noisy[weights[ahead]] - found[weights[ahead]]) / 0.1
    assert float(noise.std() / (joint[weights[ahead]] / 0.1).std()) == pytest.approx(1, abs=0.2)
    assert torch.allclose(noisy[weights[behind]], joint[weights[behind]], atol=1e-7)


def test_agm_in_the_loop_is_agm() -> None:
    from stemma.multimodal import AdaptiveGradientModulation

    s, examples = _setting(), _examples()
    agm = AdaptiveGradientModulation(s.model, ["a", "v"], alpha=2.0, reference="parity")
    agm(examples.inputs, examples.labels).loss.backward()
    for name, move in _moved(ONE_STEP, Agm(Modulation(2.0, reference="parity"))).items():
        assert torch.allclose(move, -0.1 * dict(s.model.named_parameters())[name].grad, atol=1e-6)


def test_single_never_looks_at_the_other() -> None:
    found = _moved(Fit(epochs=2, weight_decay=0), Single("v"))
    assert found["encoders.a.0.weight"].abs().max() == 0
    assert found["encoders.v.0.weight"].abs().max() > 0


def test_mslr_follows_recent_accuracy() -> None:
    run = Mslr({"a": 2.0}, memory=2).start(_setting())
    for epoch, accuracy in enumerate((0.2, 0.6)):
        run.epoch(Progress(epoch, {}, {"a": accuracy, "v": 0.5}, {}))
    assert run.factors == pytest.approx({"a": 2.0 * 0.6 / 0.4, "v": 1.0})


def test_mses_goes_back_to_the_best_epoch_and_stays_there() -> None:
    s = _setting()
    run = Mses(patience=2, smoothing=0.0).start(s)
    weight = s.model.encoders["a"][0].weight
    losses, marks = (1.0, 0.5, 0.9, 0.9, 0.9), []
    for epoch, loss in enumerate(losses):
        with torch.no_grad():
            weight.fill_(epoch)
        run.epoch(Progress(epoch, {"a": loss, "v": 1.0 / (epoch + 1)}, {}, {}))
        marks.append((run.stopped.copy(), weight[0, 0].item()))
    assert marks == [(set(), 0.0), (set(), 1.0), (set(), 2.0), ({"a"}, 1.0), ({"a"}, 4.0)]
    with torch.no_grad():
        weight.fill_(1.0)
    sgd = torch.optim.SGD(s.model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    run.loss(_examples().inputs, _examples().labels).backward()
    run.gradients()
    sgd.step()
    assert weight.mean().item() == 1.0
    assert s.model.encoders["v"][0].weight.grad is not None


def test_batch_norm_of_a_stopped_encoder_stops_too() -> None:
    s, examples = _setting(), _examples()
    s.model.encoders["a"] = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    run = Mses(patience=1).start(s)
    for epoch, loss in enumerate((1.0, 2.0)):
        run.epoch(Progress(epoch, {"a": loss, "v": 1.0 - epoch}, {}, {}))
    before = s.model.encoders["a"][1].running_mean.clone()
    s.model.train()
    run.loss(examples.inputs, examples.labels)
    assert torch.equal(s.model.encoders["a"][1].running_mean, before)


def test_gradient_blending_weights_by_gain_over_overfitting_squared() -> None:
    run = GradientBlending(every=2).start(_setting())
    before = {"a": 1.0, "v": 1.0, "fused": 1.0}
    run.epoch(Progress(0, before, {}, before))
    run.epoch(Progress(1, {"a": 0.8, "v": 0.9, "fused": 1.1}, {}, {"a": 0.6, "v": 0.8, "fused": 0.5}))
    gains = {"a": 0.2 / 0.2**2, "v": 0.1 / 0.1**2, "fused": 0.0}
    even = 0.1 / 3
    assert run.weights == pytest.approx({k: even + 0.9 * g / sum(gains.values()) for k, g in gains.items()})


@pytest.mark.parametrize("fusion", ["late", "early"])
@pytest.mark.first(1)
def test_every_strategy_learns_and_repeats_itself(fusion: str) -> None:
    examples, valid = _examples(256), _examples(128, seed=1)
    for kind in ALL:
        strategy = kind("v") if kind is Single else kind()
        found = []
        for _ in range(2):
            s = _setting(fusion)
            Fit(epochs=12, rate=0.05)(s, examples, strategy, valid)
            found.append(responses_of(s, valid)["fused"])
        assert torch.equal(*found), kind.name
        assert float((found[0].argmax(1) == valid.labels).float().mean()) > 0.7, kind.name
        assert strategy.spec.name == kind.name


def test_what_a_strategy_lacks_is_said() -> None:
    bare = Setting(Net(), ("a", "v"), masks_of("zero", ["a", "v"]))
    for strategy in (Ogm(0.5), Mses(), EncoderRates({"a": 0.5})):
        with pytest.raises(MisuseError, match="but none is given for"):
            Fit(epochs=1)(bare, _examples(), strategy, _examples())
    with pytest.raises(MisuseError, match="give valid="):
        Fit(epochs=1)(_setting(), _examples(), Mslr())
    with pytest.raises(MisuseError, match="there are 10"):
        Fit(epochs=1)(_setting(), _examples(10), Joint())


def _views(seed: int) -> Examples:
    """Digits twice: `a` noisy and large, `v` cleaner and eight times smaller: joint training hardly learns it."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.data / 16
    x, draw = (x - x.mean(0)) / x.std(), np.random.default_rng(seed)
    a, v = x + 1.5 * draw.normal(size=x.shape), (x + 0.5 * draw.normal(size=x.shape)) / 8
    order = draw.permutation(len(x))
    return Examples(
        {m: torch.tensor(z[order]).float() for m, z in (("a", a), ("v", v))}, torch.tensor(digits.target[order])
    )


def _digits_net(fusion: str, seed: int) -> Setting:
    torch.manual_seed(seed)
    depth = 2 if fusion == "late" else 1
    net = Net()
    for m in "av":
        parts = [p for i in range(depth) for p in (nn.Linear(64, 64), nn.ReLU())]
        net.encoders[m] = nn.Sequential(*parts)
    head = nn.Linear(128, 10)
    net.head = head if fusion == "late" else nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return Setting(net, ("a", "v"), masks_of("zero", ["a", "v"]), {m: f"encoders.{m}" for m in "av"})


@pytest.mark.parametrize("fusion", ["late", pytest.param("early", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_competition_is_seen_and_modulation_lessens_it(fusion: str) -> None:
    every = _views(0)
    train, dep, test = (every.take(slice(*ends)) for ends in ((0, 800), (800, 1100), (1100, None)))
    fit, masks = Fit(epochs=25, decay_at=1.0), masks_of("zero", ["a", "v"])
    alone = _digits_net(fusion, 7)
    fit(alone, train, Single("v"))
    found = {}
    for alpha in (0.0, 2.0, -2.0):
        s = _digits_net(fusion, 0)
        fit(s, train, Joint() if alpha == 0 else Agm(Modulation(alpha), plan="batched"))
        arrays = []
        for part in (dep, test):
            arrays.append(fused_representation(s.model, part.inputs)[0])
            arrays.append(concept_outputs(alone.model, part.inputs, "v", masks))
        accuracy = float((responses_of(s, test)["fused"].argmax(1) == test.labels).float().mean())
        found[alpha] = (CompetitionTest(draws=20)(*arrays).whitened, accuracy)
    gain = found[2.0][1] - found[0.0][1]
    assert gain > 0.05
    assert found[-2.0][1] - found[0.0][1] < gain / 2  # the control: whoever is ahead is fed
    assert found[2.0][0] < found[0.0][0] - 0.04
