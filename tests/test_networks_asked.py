"""Networks as people hold them: fused attention, no_grad around and inside, odd answers, encoders without a head."""

import contextlib
import dataclasses
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stemma
from stemma.errors import StemmaError
from stemma.export.difference import Difference, difference_sections
from stemma.fingerprints.activations import Activations
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.jacobian import JacobianSketch
from stemma.fingerprints.outputs import Outputs
from stemma.fingerprints.parameter_gradients import ParameterGradients
from stemma.kinship.function.finetuning_approximation import FineTuningApproximation
from stemma.kinship.function.label_observations import hard_labels
from stemma.kinship.function.network_body import body_up_to, difference, feature_tangents
from stemma.kinship.function.sketches import FunctionalSketch, from_sketch
from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.linear_cka import LinearCka
from stemma.networks.from_module import from_module
from stemma.networks.normalization import Normalised
from stemma.probes import Probes
from stemma.types import InputSpec
from stemma.types.asking import plain_torch
from stemma.types.network import main_output

pytestmark = pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*:UserWarning")

VECTORS = Probes.of(np.random.default_rng(0).standard_normal((12, 6)).astype("f4"))
SEQUENCES = Probes.of(np.random.default_rng(1).standard_normal((12, 5, 8)).astype("f4"))
SETTINGS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def perceptron(seed: int = 0, wrap=lambda first: first) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(wrap(nn.Linear(6, 8)), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)).eval()


class Trunk(nn.Module):
    """A frozen trunk under `guard`, and a way around it."""

    def __init__(self, guard=contextlib.nullcontext) -> None:
        super().__init__()
        self.trunk, self.around, self.guard = perceptron(), perceptron(1), guard
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.guard():
            inside = self.trunk(x)
        return inside + self.around(x)


class Encoder(nn.Module):
    """Torch's own transformer, which evaluation mode runs as one fused operation."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


class Attention(Encoder):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.layers = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x, x, x)[0].mean(1))


def tangents_by_differences(a, b, probes: Probes, h: float = 1e-5) -> np.ndarray:
    """The slow twin of `feature_tangents`: features at weights moved both ways, in float64."""
    parent, change = body_up_to(a, probes), difference(body_up_to(a, probes), body_up_to(b, probes))
    inputs = parent.inputs(probes, 0, len(probes))
    ends = [{n: p + s * h * change[n] for n, p in parent.parameters.items()} for s in (1, -1)]
    with plain_torch(), torch.no_grad():
        up, down = (parent.features(inputs, end) for end in ends)
    return ((up - down) / (2 * h)).numpy()


@pytest.mark.parametrize("kind", [Encoder, Attention])
def test_fused_attention_is_asked_as_any_other_network(kind: type[Encoder]) -> None:
    a, b = (from_module(kind(seed).double(), f"net{seed}") for seed in (0, 1))
    fused = kind(0).double()(torch.from_numpy(SEQUENCES.inputs).double()).detach().numpy()
    np.testing.assert_allclose(Outputs()(a, SEQUENCES).values["outputs"], fused, rtol=1e-8, atol=1e-10)
    for method in (GradientField(steps=2), JacobianSketch(directions=2), Activations(), ParameterGradients()):
        assert all(np.isfinite(np.asarray(v, float)).all() for v in method(a, SEQUENCES).values.values())
    inner = "layers.layers.0.linear1" if kind is Encoder else "layers"
    assert Activations(layer=inner)(a, SEQUENCES).values["features"].any()  # the fused one calls no hooks
    sides = [body_up_to(m, SEQUENCES) for m in (a, b)]
    with plain_torch():
        found = feature_tangents(sides[0], [difference(*sides)], SEQUENCES, 4)[0].numpy()
    np.testing.assert_allclose(found, tangents_by_differences(a, b, SEQUENCES), rtol=1e-5, atol=1e-8)
    child = kind(0).double()
    with torch.no_grad():
        for p in child.parameters():
            p.add_(0.01 * torch.randn(p.shape))
    for form in ("linear", "taylor"):
        best = FineTuningApproximation(form).best_parent([b, a], from_module(child, "child"), SEQUENCES)
        assert best.parent == "net0"
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_around_a_call_change_nothing(setting: str) -> None:
    methods = (GradientField(steps=2), Outputs(), JacobianSketch(directions=2), Activations(), ParameterGradients(),
               ParameterGradients(of="parameters"))  # fmt: skip
    models = [from_module(perceptron(s), f"net{s}") for s in (0, 1)]
    plain = [m(models[0], VECTORS).values for m in methods]
    scores = FineTuningApproximation()(models[0], models[1:], VECTORS)
    apart = stemma.distance(*models, VECTORS).value
    with SETTINGS[setting]():
        fresh = [from_module(perceptron(s), f"net{s}") for s in (0, 1)] if setting == "no_grad" else models
        for method, before in zip(methods, plain, strict=True):
            for name, value in method(fresh[0], VECTORS).values.items():
                np.testing.assert_array_equal(value, before[name])
        np.testing.assert_array_equal(FineTuningApproximation()(fresh[0], fresh[1:], VECTORS), scores)
        assert stemma.distance(*fresh, VECTORS).value == apart
        for _ in Outputs(batch=4).blocks(models[0], VECTORS):  # between blocks the caller's own setting holds
            assert torch.is_inference_mode_enabled() is (setting == "inference_mode")
            assert not torch.is_grad_enabled()


def test_no_grad_inside_a_network_is_no_part_of_its_function() -> None:
    free, guarded = from_module(Trunk(), "free"), from_module(Trunk(torch.no_grad), "guarded")
    for method in (GradientField(steps=3), JacobianSketch(directions=2), ParameterGradients(layer="trunk.0")):
        for name, value in method(free, VECTORS).values.items():
            np.testing.assert_allclose(value, method(guarded, VECTORS).values[name], atol=1e-6)
    black_box = from_module(torch.no_grad()(lambda x: perceptron()(x)), "call")
    assert GradientField(steps=2)(black_box, VECTORS).values["curve"].any()
    assert torch.is_grad_enabled()


def test_inference_mode_inside_a_network_or_around_its_making_is_named() -> None:
    inside = from_module(nn.Sequential(torch.nn.Identity(), Trunk()).eval(), "net")
    inside.network.module[1].forward = torch.inference_mode()(inside.network.module[1].forward)
    assert Outputs()(inside, VECTORS).values["outputs"].any()
    for method in (GradientField(), ParameterGradients(), ParameterGradients(of="parameters")):
        with pytest.raises(StemmaError, match=r"runs under torch\.inference_mode"):
            method(inside, VECTORS)
    with torch.inference_mode():
        made = from_module(perceptron(), "made")
    assert Outputs()(made, VECTORS).values["outputs"].any()
    for method in (GradientField(), ParameterGradients(of="parameters")):
        with pytest.raises(StemmaError, match="outside of it"):
            method(made, VECTORS)


@dataclasses.dataclass
class Answer:
    loss: torch.Tensor
    scores: torch.Tensor


def test_the_main_output_is_found_in_whatever_holds_it() -> None:
    scores, loss = torch.ones(3, 2), torch.tensor(0.5)
    pair = namedtuple("pair", "loss scores")
    for answer in (scores, (loss, scores), pair(loss, scores), {"loss": loss, "y": scores}, Answer(loss, scores),
                   ((loss, {"y": [scores]}),), {"x": loss, "logits": scores}):  # fmt: skip
        assert main_output(answer) is scores
    assert main_output({"x": None, "y": "text"}) is None
    assert main_output((loss,)) is loss


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights_are_differentiated(wrap) -> None:
    a, b = (from_module(perceptron(s, wrap).double(), f"net{s}") for s in (0, 1))
    sides = [body_up_to(m, VECTORS) for m in (a, b)]
    with plain_torch():
        found = feature_tangents(sides[0], [difference(*sides)] * 2, VECTORS, 5)
    np.testing.assert_allclose(found[1].numpy(), tangents_by_differences(a, b, VECTORS), rtol=1e-5, atol=1e-8)


def test_a_compiled_module_is_the_module_it_was_compiled_from() -> None:
    plain = perceptron()
    one, other = from_module(torch.compile(plain, backend="eager"), "net"), from_module(plain, "net")
    assert one.digest == other.digest
    assert one.network.digest == other.network.digest
    assert list(one.tensors) == list(other.tensors)


def test_the_switch_of_fused_attention_survives_threads() -> None:
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with plain_torch():
            inside.set()
            done.wait(5)

    thread = threading.Thread(target=other)
    with plain_torch():
        thread.start()
        assert inside.wait(5)
    assert not torch.backends.mha.get_fastpath_enabled()  # the other one is still asking
    done.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers")


def tiny(hf, kind: str, seed: int = 0, **more):
    torch.manual_seed(seed)
    settings = hf.BertConfig(
        vocab_size=24, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, **more,
    )  # fmt: skip
    return getattr(hf, kind)(settings).eval()


TOKENS = Probes.of(np.random.default_rng(2).integers(0, 24, (10, 6)))


def test_a_text_model_in_memory_has_the_field_of_its_folder(hf, tmp_path: Path) -> None:
    module = tiny(hf, "BertForSequenceClassification", num_labels=3)
    module.save_pretrained(tmp_path / "folder")
    stored, made = stemma.load(tmp_path / "folder"), from_module(module, "made")
    method = GradientField(steps=2)
    one, other = method(stored, TOKENS).values["curve"], method(made, TOKENS).values["curve"]
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())
    assert made.network.scores
    assert stored.network.scores
    assert stemma.distance(stored, made, TOKENS).value < 1e-5


def test_a_classifier_without_padding_token_keeps_its_configuration(hf) -> None:
    torch.manual_seed(0)
    settings = hf.LlamaConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=3, pad_token_id=None,
    )  # fmt: skip
    module = hf.LlamaForSequenceClassification(settings).eval()
    assert GradientField(steps=2)(from_module(module, "made"), TOKENS).values["curve"].any()
    assert module.config.pad_token_id is None


def test_an_encoder_without_a_head_answers_with_hidden_states(hf, tmp_path: Path) -> None:
    """32 entries of a hidden state, 24 tokens: by their shape they could be scores of next tokens."""
    models = []
    for seed in (0, 1):
        tiny(hf, "BertModel", seed).save_pretrained(tmp_path / f"enc{seed}")
        models.append(stemma.load(tmp_path / f"enc{seed}"))
    models.append(from_module(tiny(hf, "BertModel", 2), "made"))
    assert not any(m.network.scores for m in models)
    for other in models[1:]:
        found = stemma.distance(models[0], other, TOKENS)
        by_hidden = GradientField(potential="difference")
        assert found.value == pytest.approx(stemma.distance(models[0], other, TOKENS, by_hidden).value, abs=1e-6)
    with pytest.raises(StemmaError, match=r"hidden states .* linear-cka"):
        stemma.distance(*models[:2], TOKENS, Outputs(), JensenShannon())
    assert 0 <= stemma.distance(*models[:2], TOKENS, Outputs(), LinearCka()).value <= 1
    assert hard_labels(models[0], TOKENS)[0] is None
    seen = from_sketch(FunctionalSketch.of(TOKENS)(models[0], TOKENS), "enc0", "tokens", labelled=False)
    assert seen.classes is None
    labels = [e for e in stemma.compare(*models[:2], TOKENS, null=[models[2]]).evidence if "partition" in e.statistic]
    assert [e.reason for e in labels] == ["the answers of enc0 are not class scores"]
    page = "".join(difference_sections(Difference.of(*models[:2], TOKENS, GradientField(steps=2))))
    assert "an output of shape [6, 32]" in page


def test_the_published_paths_start_at_the_mean_colour() -> None:
    """Twin: the inner network on inputs that are normalised before, from zero: x - b and gradients scale inversely."""
    mean, std = (0.5, 0.2, 0.4), (0.3, 0.1, 0.2)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double().eval()
    spec = InputSpec("image", (3, 5, 5), 0.0, 1.0, mean, std)
    raw = np.random.default_rng(0).random((4, 3, 5, 5))
    normalised = (raw - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    found = GradientField.official(steps=4)(from_module(Normalised(inner, spec), "net", spec), Probes.of(raw))
    twin = GradientField.official(steps=4, baseline="zero")(from_module(inner, "net"), Probes.of(normalised))
    np.testing.assert_allclose(found.values["curve"], twin.values["curve"], rtol=1e-5, atol=1e-7)
    black = GradientField.official(steps=4, baseline="zero")(from_module(Normalised(inner, spec), "n"), Probes.of(raw))
    assert np.abs(black.values["curve"] - found.values["curve"]).max() > 1e-3


def test_a_page_shows_answers_however_even_they_are() -> None:
    wide = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 400)).eval() for _ in range(2)]
    for module in wide:
        nn.init.normal_(module[2].weight, std=1e-3)
        nn.init.zeros_(module[2].bias)
    models = [from_module(module, f"net{i}") for i, module in enumerate(wide)]
    page = "".join(difference_sections(Difference.of(*models, VECTORS, GradientField(steps=2))))
    assert page.count('class="answers"') == 2 * len(VECTORS.inputs[:10])


def test_a_network_that_builds_layers_while_it_runs_is_asked() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.kept = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = nn.Linear(5, 3)
            made.load_state_dict(self.kept.state_dict())
            return made(self.first(x).tanh())

    x = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    found = GradientField()(from_module(Late().eval(), "late"), Probes.of(x, np.zeros(12, int)))
    assert all(np.isfinite(v).all() for v in found.values.values())
