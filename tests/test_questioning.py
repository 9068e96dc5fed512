"""What has to hold before a network is measured: each refusal is one sentence, and its control passes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints import ALL
from stemma.fingerprints.evaluation import (
    as_tensor,
    checked_network,
    compute_outputs,
)
from stemma.fingerprints.gradient_field import GradientField
from stemma.networks.from_module import from_module
from stemma.probes import Probes
from stemma.types import InputSpec

SPEC = InputSpec("image", (1, 4, 4), 0.0, 1.0)
INPUTS = np.random.default_rng(0).random((10, 1, 4, 4), np.float32)
PROBES = Probes.of(INPUTS)


class Given(nn.Module):
    """A module of one function."""

    def __init__(self, does: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: torch.Tensor) -> object:
        return self.does(x)


def plain(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), *more, nn.Linear(6, 3)).eval()


def of(module: nn.Module | Callable[[torch.Tensor], object], spec: InputSpec | None = SPEC) -> Model:
    return from_module(module, "net", spec)


def refused(model: Model, *parts: str, probes: Probes = PROBES, kind: type[StemmaError] = StemmaError) -> None:
    for ask in (checked_network, compute_outputs, lambda m, p: GradientField(steps=2)(m, p)):
        with pytest.raises(kind) as error:
            ask(model, probes)
        said = str(error.value)
        assert said.startswith("net ")
        assert "\n" not in said
        for part in parts:
            assert part in said, said


def test_answers_are_those_of_the_module() -> None:
    module = plain()
    expected = np.stack([module(torch.from_numpy(x)[None])[0].detach().numpy() for x in INPUTS])
    for batch in (1, 3, 256):
        np.testing.assert_allclose(compute_outputs(of(module), PROBES, batch), expected, atol=1e-6)
    assert checked_network(of(module), PROBES).differentiable


def test_train_mode_is_refused_wherever_it_is() -> None:
    for inner in (nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Identity()):
        module = plain(inner)
        assert compute_outputs(of(module), PROBES).shape == (10, 3)  # evaluation mode: no chance in it
        inner.train()
        refused(of(module), "train mode (in 3)", "Call .eval()")
        module.train()
        refused(of(module), "train mode", "Call .eval()")


def test_chance_is_refused_and_a_fixed_seed_is_not() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(1))

    always_on = Given(lambda x: nn.functional.dropout(x, 0.5, training=True))
    refused(of(plain(Given(noisy))), "is not deterministic", "two runs on the same")
    refused(of(plain(always_on)), "two runs on the same")
    assert compute_outputs(of(plain(Given(seeded))), PROBES).shape == (10, 3)
    assert compute_outputs(of(plain(nn.Dropout(0.5).eval())), PROBES).shape == (10, 3)


def test_a_network_that_writes_into_its_input_is_not_random() -> None:
    module = plain()

    def centred(x: torch.Tensor) -> torch.Tensor:
        return module(x.sub_(0.5))

    before = PROBES.digest
    with torch.no_grad():
        expected = module(torch.from_numpy(INPUTS) - 0.5).numpy()
    for asked in (Given(centred).eval(), centred):
        np.testing.assert_allclose(compute_outputs(of(asked, None), PROBES), expected, atol=1e-6)
    assert Probes.of(PROBES.inputs).digest == before
    np.testing.assert_array_equal(PROBES.inputs, INPUTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_answers_that_are_no_numbers_are_refused(bad: float) -> None:
    def broken(limit: float) -> nn.Module:
        return plain(Given(lambda x: torch.where(x.amax(1, keepdim=True) > limit, bad, x)))

    refused(of(broken(-2.0)), "NaN or infinite")
    assert np.isfinite(compute_outputs(of(broken(2.0)), PROBES)).all()
    # One bad answer late in the probes is found too, and placed.
    hidden = plain()[:3](torch.from_numpy(INPUTS)).amax(1).detach()
    order = hidden.argsort().tolist()
    late = broken(float(hidden[order[-1]] + hidden[order[-2]]) / 2)
    with pytest.raises(StemmaError, match="probes 8 to 9"):
        compute_outputs(of(late), PROBES.take(order), batch=2)
    assert compute_outputs(of(late), PROBES.take(order[:-1])).shape == (9, 3)


def test_probes_are_of_the_input_space_of_the_network() -> None:
    def pooled() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)).eval()

    wrong = (INPUTS[:, :, :3], INPUTS[:, 0], np.repeat(INPUTS, 3, 1), INPUTS.reshape(10, 16))
    for inputs in wrong:
        refused(of(pooled()), "[1, 4, 4]", probes=Probes.of(inputs), kind=MisuseError)
    ids = Probes.of(np.arange(40).reshape(10, 4))
    refused(of(pooled()), "takes image inputs", "kind tokens", probes=ids, kind=MisuseError)
    # The controls: the right shape, and axes that may have any length.
    assert compute_outputs(of(pooled()), PROBES).shape == (10, 3)
    free = InputSpec("image", (1, 0, 0), 0.0, 1.0)
    assert compute_outputs(of(pooled(), free), Probes.of(INPUTS[:, :, :3])).shape == (10, 3)
    refused(of(pooled(), free), "[1, 0, 0]", probes=Probes.of(np.repeat(INPUTS, 3, 1)), kind=MisuseError)


def test_where_nobody_says_the_shape_the_network_itself_refuses() -> None:
    refused(of(plain(), None), "does not answer inputs of shape [1, 3, 4]", probes=Probes.of(INPUTS[:, :, :3]))
    assert compute_outputs(of(plain(), None), PROBES).shape == (10, 3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x.sum(), "shape []"),
        (lambda x: x.flatten(1).sum(1), "shape [4]"),
        (lambda x: x.flatten(1).mean(0, keepdim=True), "shape [1, 16]"),
        (lambda x: torch.cat([x, x]).flatten(1), "shape [8, 16]"),
        (lambda x: "cat", "no tensor"),
        (lambda x: {"answer": "cat"}, "no tensor"),
        (lambda x: 1 // 0, "division"),
    ],
)
def test_an_answer_is_one_row_of_numbers_per_probe(answer: Callable[[torch.Tensor], object], words: str) -> None:
    with pytest.raises(StemmaError) as error:
        compute_outputs(of(Given(answer).eval()), PROBES)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    good = of(Given(lambda x: {"other": "cat", "logits": x.flatten(1)}).eval())
    np.testing.assert_array_equal(compute_outputs(good, PROBES), INPUTS.reshape(10, 16))


def test_tokens_are_of_the_vocabulary_and_fit_the_context() -> None:
    spec = InputSpec("tokens", (6,), 0, 9)
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.LazyLinear(3)).eval()
    module(torch.zeros(1, 6, dtype=torch.long))
    good = np.arange(12).reshape(2, 6) % 10
    assert compute_outputs(of(module, spec), Probes.of(good)).shape == (2, 3)
    for ids, words in ((good + 1, "ids up to 10"), (np.tile(good, 2), "have 12")):
        with pytest.raises(MisuseError, match=words):
            checked_network(of(module, spec), Probes.of(ids))
    with pytest.raises(MisuseError, match="takes tokens inputs, but the probes are of kind image"):
        checked_network(of(module, spec), PROBES)
    # A length of 0 is any length.
    bag = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 3)).eval()
    assert compute_outputs(of(bag, InputSpec("tokens", (0,), 0, 9)), Probes.of(np.tile(good, 2))).shape == (2, 3)


def test_labels_have_an_output() -> None:
    field = GradientField(steps=2, potential="label")
    assert field(of(plain()), PROBES.with_labels([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])).values
    with pytest.raises(MisuseError, match="labels up to 3"):
        field(of(plain()), PROBES.with_labels([0, 1, 2, 0, 1, 2, 0, 1, 2, 3]))


def test_inputs_take_the_type_of_the_network() -> None:
    wide = of(plain().double()).network
    assert as_tensor(wide, INPUTS).dtype == torch.float64
    assert as_tensor(of(plain()).network, INPUTS).dtype == torch.float32
    assert as_tensor(wide, np.arange(4)[None]).dtype == torch.int64
    assert compute_outputs(of(plain().double()), PROBES).dtype == np.float64
    tensor = as_tensor(of(plain()).network, PROBES.inputs)
    tensor.zero_()  # nobody can write into the probes through it
    np.testing.assert_array_equal(PROBES.inputs, INPUTS)
    flipped = as_tensor(wide, INPUTS[::-1])
    np.testing.assert_array_equal(flipped.numpy(), INPUTS[::-1])


def test_a_callable_is_differentiable_if_a_gradient_comes_back() -> None:
    module = plain()
    smooth = of(lambda x: module(x), None)
    rough = of(lambda x: module(x).detach().numpy(), None)
    assert checked_network(smooth, PROBES).differentiable
    assert not checked_network(rough, PROBES).differentiable
    np.testing.assert_allclose(compute_outputs(smooth, PROBES), compute_outputs(rough, PROBES), atol=1e-7)


@pytest.mark.parametrize(
    "method", [m for m in ALL if hasattr(m, "blocks") and "batch" in m.__dataclass_fields__], ids=lambda m: m.name
)
def test_whoever_takes_blocks_keeps_gradients_on(method: type) -> None:
    probes = PROBES.with_labels(np.arange(10) % 3)
    streams = [iter(method(batch=2).blocks(of(plain()), probes)) for _ in range(2)]
    for _ in range(2):
        for stream in streams:
            next(stream)
            assert torch.is_grad_enabled()
    for stream in streams:
        stream.close()
    assert torch.is_grad_enabled()


def test_a_callable_of_numpy_alone_is_a_black_box() -> None:
    weights = np.ones((3, INPUTS[0].size), np.float32)
    box = of(lambda x: np.asarray(x).reshape(len(x), -1) @ weights.T, None)  # NumPy refuses tensors with gradients
    assert not checked_network(box, PROBES).differentiable
    assert compute_outputs(box, PROBES).shape == (10, 3)
