"""Networks of every source answer what their own libraries answer, in raw input space."""

import contextlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import stemma  # noqa: E402
from stemma import InputSpec, Probes, from_arrays, from_module, load  # noqa: E402
from stemma.errors import (  # noqa: E402
    MissingExtraError,
    MisuseError,
    NotAModelError,
    StemmaError,
    UnreadableModelError,
    UnsafeFileError,
)
from stemma.fingerprints.evaluation import checked_network, compute_outputs  # noqa: E402
from stemma.networks.from_factory import network_from_factory  # noqa: E402
from stemma.networks.open import open_network  # noqa: E402
from stemma.zoo.kinds import KINDS  # noqa: E402
from stemma.zoo.training import initial  # noqa: E402

SPEC = InputSpec("image", (1, 8, 8), 0.0, 1.0)


class Small(nn.Module):
    """Convolution, batch norm with statistics that matter, head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(256, 3)
        nn.init.normal_(self.norm.running_mean)
        self.eval()

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).tanh().flatten(1))


def images(count=5, shape=(1, 8, 8), seed=0):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def gradient(call, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(call(x).square().sum(), x)[0]


def close(a, b, tolerance=1e-5):
    return a.shape == b.shape and float((a - b).detach().abs().max()) <= tolerance


# Modules and callables


def test_a_module_is_its_own_network():
    module = Small()
    model = from_module(module, "small", SPEC)
    assert close(model.network(images()), module(images()), 0)
    assert close(gradient(model.network, images()), gradient(module, images()), 0)
    assert model.digest == from_arrays(module.state_dict(), "again").digest
    assert set(model.tensors) == set(module.state_dict())
    assert model.network.input_spec == SPEC
    assert stemma.from_module is from_module


def test_a_module_without_parameters_works():
    model = from_module(nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval(), "bare")
    assert model.tensors == {}
    assert close(model.network(images()), images().flatten(1).softmax(1), 0)
    other = from_module(nn.Sequential(nn.Flatten(), nn.Tanh()).eval(), "bare")
    assert model.network.digest != other.network.digest  # no weights to tell them apart


class Scaled(nn.Module):
    def __init__(self, scale, shift=0.0):
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(64, 3)
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.constant_(self.linear.bias, 0.1)
        self.register_buffer("shift", torch.tensor([shift]), persistent=False)

    def forward(self, x):
        return self.linear(x.flatten(1)) * self.scale + self.shift


def test_a_networks_digest_knows_structure_settings_and_hidden_buffers():
    def digest(*arguments):
        return from_module(Scaled(*arguments).eval(), "m", SPEC).network.digest

    assert digest(1.0) == digest(1.0)
    assert len({digest(1.0), digest(2.0), digest(1.0, 3.0)}) == 3
    torch.manual_seed(0)
    first, last = nn.Linear(64, 8), nn.Linear(8, 3)
    relu, tanh = (nn.Sequential(nn.Flatten(), first, act, last).eval() for act in (nn.ReLU(), nn.Tanh()))
    assert from_module(relu, "m").digest == from_module(tanh, "m").digest
    assert from_module(relu, "m").network.digest != from_module(tanh, "m").network.digest


def test_shared_tensors_are_counted_once():
    layer = nn.Linear(64, 64)
    head = nn.Linear(64, 64)
    head.weight = layer.weight
    model = from_module(nn.Sequential(nn.Flatten(), layer, head).eval(), "tied")
    assert [n for n in model.tensors if n.endswith("weight")]
    assert model.network(images()).shape == (5, 64)


def test_train_mode_is_refused_when_questioned_not_before():
    model = from_module(Small().train(), "busy", SPEC)
    probes = Probes.of(images().numpy())
    with pytest.raises(StemmaError, match=r"train mode.*Call \.eval\(\)"):
        checked_network(model, probes)
    assert checked_network(from_module(Small(), "calm", SPEC), probes).name == "calm"


@pytest.mark.parametrize("spec", [SPEC, None])
def test_a_callable_is_a_black_box_only_where_no_gradient_comes_back(spec):
    module = Small()
    probes = Probes.of(images().numpy())
    smooth = from_module(lambda x: module(x), "smooth", spec)
    rough = from_module(lambda x: module(x.detach()).detach().numpy(), "rough", spec)
    assert checked_network(smooth, probes).differentiable
    assert not checked_network(rough, probes).differentiable
    for model in (smooth, rough):
        assert model.digest == model.network.digest == f"blackbox:{model.name}"
        assert close(model.network(images()), module(images()), 0)
    np.testing.assert_array_equal(compute_outputs(rough, probes), module(images()).detach().numpy())


def test_a_callable_may_answer_with_classes():
    model = from_module(lambda x: np.eye(3, dtype=np.int64)[x.numpy().sum((1, 2, 3)).astype(int) % 3], "votes", SPEC)
    assert model.network(images()).dtype == torch.float32
    assert not model.network.differentiable
    with pytest.raises(MisuseError, match="torch module or a callable"):
        from_module(3, "three")  # ty: ignore[invalid-argument-type]
    with pytest.raises(StemmaError, match=r"answers 5 inputs with a tensor of shape \[5\]"):
        from_module(lambda x: x.sum((1, 2, 3)), "flat", SPEC).network(images())


def test_axes_of_any_length_fit_all_probes():
    model = from_module(lambda x: x.mean((2, 3)), "free", InputSpec("image", (1, 0, 0), 0.0, 1.0))
    assert checked_network(model, Probes.of(images().numpy())).differentiable
    with pytest.raises(MisuseError, match=r"shape \[1, 0, 0\]"):
        checked_network(model, Probes.of(images(shape=(3, 8, 8)).numpy()))


# Our own networks


@pytest.mark.parametrize("tied", [False, True])
def test_relaxed_one_hot_of_our_language_model(tied):
    config = {**KINDS["lm"].config, "tie_word_embeddings": tied}
    net = open_network(from_arrays(initial(config, 3), "lm", config))
    check_relaxed(net, net.module.model.embed_tokens.weight, 256)
    assert net.tokenizer == "bytes"


def check_relaxed(net, table, words, tolerance=1e-5):
    ids = torch.randint(0, words, (2, 9), generator=torch.Generator().manual_seed(1))
    exact = nn.functional.one_hot(ids, words).to(table.dtype)
    assert close(net.relaxed(exact), net(ids), tolerance)
    assert not close(net.relaxed(exact.flip(1)), net(ids), 1e-3)  # the control: other words, other answers
    # The gradient of the relaxed input is that of the embeddings, pulled back by the embedding matrix.
    caught = []
    hook = net.module.get_submodule(EMBEDDINGS[type(net.module).__name__]).register_forward_hook(
        lambda _module, _inputs, out: caught.append(out.retain_grad() or out)
    )
    net(ids).square().mean().backward()
    hook.remove()
    mixed = exact.clone().requires_grad_()
    (given,) = torch.autograd.grad(net.relaxed(mixed).square().mean(), mixed)
    expected = caught[0].grad @ table.detach()[:words].T
    assert float((given - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    # A mixture of two words is embedded between them.
    assert net.relaxed((exact + exact.flip(1)) / 2).isfinite().all()


EMBEDDINGS = {
    "LanguageModel": "model.embed_tokens",
    "GPT2LMHeadModel": "transformer.wte",
    "LlamaForCausalLM": "model.embed_tokens",
    "BertForSequenceClassification": "bert.embeddings.word_embeddings",
    "BertForMaskedLM": "bert.embeddings.word_embeddings",
    "RobertaForSequenceClassification": "roberta.embeddings.word_embeddings",
    "GPT2ForSequenceClassification": "transformer.wte",
}


# Factories

FACTORY = """
import torch
from torch import nn
from stemma import InputSpec
import beside

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.b(self.a(x.flatten(1)))

def small():
    from stemma import Model
    import later
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(0.5)), InputSpec("image", (1, 8, 8), 0.0, 1.0)

def leaves():
    raise SystemExit(5)

def fails():
    raise ValueError("no weights for you")

number = lambda: 3
constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(FACTORY)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "later.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("nets_of_mine", "beside", "later"):
        sys.modules.pop(name, None)


def test_a_factory_builds_the_network_of_bare_weights(folder):
    torch.manual_seed(5)
    linear = nn.Linear(64, 5)
    weights = {"1.weight": linear.weight, "1.bias": linear.bias}
    model = network_from_factory(from_arrays(weights, "bare"), "nets_of_mine:small", allow_code=True)
    assert close(model.network(images()), linear(images().flatten(1)), 1e-6)
    assert model.network.input_spec == SPEC
    assert not model.network.module.training
    half = {n: t.half() for n, t in weights.items()}
    found = network_from_factory(from_arrays(half, "half"), "nets_of_mine:small", allow_code=True)
    assert found.network.parameter.dtype == torch.float32
    double = {n: t.double() for n, t in weights.items()}
    found = network_from_factory(from_arrays(double, "double"), "nets_of_mine:small", allow_code=True)
    assert close(found.network(images().double()), linear.double()(images().double().flatten(1)), 1e-12)


def test_a_tied_tensor_may_be_stored_once(folder):
    torch.manual_seed(6)
    weight, bias, other = torch.randn(64, 64), torch.randn(64), torch.randn(64)
    model = from_arrays({"a.weight": weight, "a.bias": bias, "b.bias": other}, "tied")
    found = network_from_factory(model, "nets_of_mine:Tied", allow_code=True)
    expected = (images().flatten(1) @ weight.T + bias) @ weight.T + other
    assert close(found.network(images()), expected, 1e-3)


def test_weights_that_do_not_fit_a_factory_are_refused(folder):
    right = {"1.weight": torch.randn(5, 64), "1.bias": torch.randn(5)}

    def refused(weights, pattern):
        with pytest.raises(UnreadableModelError, match=pattern) as caught:
            network_from_factory(from_arrays(weights, "w"), "nets_of_mine:small", allow_code=True)
        assert "\n" not in str(caught.value)

    refused(
        {"2.weight": right["1.weight"], "2.bias": right["1.bias"]}, r"2 missing \(1\.bias, 1\.weight\), 2 unexpected"
    )
    refused({**right, "1.weight": torch.randn(64, 5)}, r"1 of the wrong shape \(1\.weight\)")
    refused(
        {**right, **{f"more.{i}": torch.ones(2) for i in range(9)}}, r"9 unexpected \(more\.0, more\.1, more\.2, …\)"
    )
    refused({"1.weight": right["1.weight"]}, r"1 missing \(1\.bias\)")


def test_a_factory_runs_only_when_code_is_allowed(folder):
    model = from_arrays({"1.weight": torch.randn(5, 64)}, "bare")
    with pytest.raises(MisuseError, match="--allow-code"):
        network_from_factory(model, "nets_of_mine:small")
    assert "nets_of_mine" not in sys.modules
    for name, kind, pattern in (
        ("nets_of_mine", MisuseError, "MODULE:FACTORY"),
        ("nowhere_at_all:small", MisuseError, "cannot find 'small' in the Python module 'nowhere_at_all'"),
        ("nets_of_mine:other", MisuseError, "cannot find 'other'"),
        ("nets_of_mine:constant", MisuseError, "is not callable"),
        ("nets_of_mine:number", MisuseError, "returns a int"),
        ("nets_of_mine:fails", StemmaError, "no weights for you"),
        ("nets_of_mine:leaves", StemmaError, "failed: SystemExit: 5"),
    ):
        with pytest.raises(kind, match=pattern):
            network_from_factory(model, name, allow_code=True)


# torch.export


def exported(path, module, x, **options):
    torch.export.save(torch.export.export(module, (x,), **options), path)
    return path


@pytest.mark.parametrize("free", [True, False])
def test_an_exported_program_answers_as_its_module(tmp_path, free):
    module = Small()
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if free else {}
    model = load(exported(tmp_path / "net.pt2", module, images(2), **shapes))
    assert model.digest == from_module(module, "net").digest
    net = model.network
    assert net.input_spec == SPEC
    assert net.differentiable
    assert close(net(images()), module(images()), 1e-6)  # five inputs, through batches of two where it is fixed
    assert close(gradient(net, images()), gradient(module, images()), 1e-5)
    assert checked_network(model, Probes.of(images().numpy())).name == "net"
    assert load(tmp_path / "net.pt2").network.digest == net.digest
    assert load(exported(tmp_path / "b.pt2", Small(1), images(2), **shapes)).network.digest != net.digest


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        with torch.no_grad():
            return self.linear(x.flatten(1))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(0, keepdim=True)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


def test_programs_say_where_they_cannot_be_asked(tmp_path):
    net = load(exported(tmp_path / "frozen.pt2", Frozen().eval(), images(2))).network
    assert not net.differentiable
    mixes = from_module(Small(), "x").tensors and load_program(tmp_path, Mean())
    with pytest.raises(StemmaError, match="fixed batch size of 2"):
        mixes.network(images())
    torch.export.save(torch.export.export(Two(), (images(2), images(2))), tmp_path / "two.pt2")
    with pytest.raises((UnreadableModelError, NotAModelError), match=r"takes 2 inputs|contains no tensors"):
        _ = load(tmp_path / "two.pt2").network


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11)

    def forward(self, ids):
        return self.head(self.embed(ids).cumsum(1))


def test_a_program_of_tokens_knows_its_vocabulary(tmp_path):
    module, ids = Words().eval(), torch.tensor([[1, 2, 3], [4, 5, 10]])
    auto = torch.export.Dim.AUTO
    path = exported(tmp_path / "lm.pt2", module, ids, dynamic_shapes=({0: auto, 1: auto},))
    net = load(path).network
    assert (net.input_spec.kind, net.input_spec.high) == ("tokens", 10)
    assert close(net(ids.repeat(2, 2)), module(ids.repeat(2, 2)), 1e-6)  # other lengths of both axes
    assert checked_network(load(path), Probes.of(ids.numpy())).name == "lm"
    with pytest.raises(MisuseError, match="ids up to 10"):
        checked_network(load(path), Probes.of(ids.numpy() + 1))


def load_program(folder, module):
    whole = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), module).eval()
    return load(exported(folder / "made.pt2", whole, images(2)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A program that is fine."""
    return exported(tmp_path_factory.mktemp("program") / "good.pt2", Small(), images(2))


def rewritten(source, target, change):
    """The same archive with records changed: `change` maps a name and content to a new content, or None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _graph_edit(edit):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        edit(program)
        return json.dumps(program)

    return change


def _node(program):
    return program["graph_module"]["graph"]["nodes"][0]


def _pickled(bomb):
    out = io.BytesIO()
    torch.save(bomb, out)
    return out.getvalue()


def attacks(bomb):
    def weights(name, content):
        if name.endswith("weights/weight_0"):
            return _pickled(bomb)
        if not name.endswith("model_weights_config.json"):
            return content
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config)

    def constants(name, content):
        if not name.endswith("model_constants_config.json"):
            return content
        said = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"c": said}})

    def target(text):
        return _graph_edit(lambda p: _node(p).update(target=text))

    def expression(program):
        sizes = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
        sizes[0] = {"as_expr": {"expr_str": f"open('{bomb.path}', 'w')", "hint": None}}

    def argument_name(program):
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"x=open('{bomb.path}', 'w')"]

    return {
        "pickled weight": weights,
        "opaque constant": constants,
        "function of torch": target("torch.serialization.os.system"),
        "file operation": target("torch.ops.aten.from_file.default"),
        "operator": target("_operator.methodcaller"),
        "builtin": target("math.__loader__.load_module"),
        "expression": _graph_edit(expression),
        "argument name": _graph_edit(argument_name),
        "second graph": lambda name, content: content,
    }


@pytest.mark.parametrize("attack", list(attacks(Bomb(Path("x")))))
def test_a_program_that_would_run_code_is_refused(tmp_path, good, attack):
    bomb = Bomb(tmp_path / "ran")
    bad = rewritten(good, tmp_path / "bad.pt2", attacks(bomb)[attack])
    if attack == "second graph":
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("good/models/other.json", "{}")
    with pytest.raises(UnsafeFileError, match=r"not loaded|not read"):
        _ = load(bad).network
    assert not bomb.path.exists()
    assert load(good).network.differentiable  # the control
    if attack in {"pickled weight", "expression"}:  # torch itself runs these
        with contextlib.suppress(Exception):
            torch.export.load(bad)
        assert bomb.path.exists()


def test_the_example_inputs_of_a_program_are_not_read(tmp_path, good):
    bomb = Bomb(tmp_path / "ran")
    bad = rewritten(good, tmp_path / "bad.pt2", lambda n, c: _pickled(bomb) if "sample_inputs" in n else c)
    assert close(load(bad).network(images()), Small()(images()), 1e-6)
    assert not bomb.path.exists()
    with contextlib.suppress(Exception):
        torch.export.load(bad)
    assert bomb.path.exists()  # the control: torch itself runs it


@pytest.mark.parametrize("record", ["models/model.json", "model_weights_config.json", "model_constants_config.json"])
def test_a_damaged_program_is_one_clear_error(tmp_path, good, record):
    rng = np.random.default_rng(0)

    def damaged(node):
        place = node
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            parent, key = place, keys[rng.integers(len(keys))]
            place = parent[key]
            if rng.random() < 0.2:
                break
        parent[key] = [None, -1, "x", [], {}, 1e9, True, 2**60, ["a"], {"a": 1}][rng.integers(10)]
        return json.dumps(node)

    said = []
    for _ in range(12):
        bad = rewritten(good, tmp_path / "bad.pt2", lambda n, c: damaged(json.loads(c)) if n.endswith(record) else c)
        try:
            load(bad).network(images())
        except StemmaError as error:
            said.append(str(error))
    assert len(said) >= 3  # the others changed what does not matter
    assert not any("\n" in line for line in said)


def test_other_archives_are_no_programs(tmp_path):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/serialized_exported_program.json", "{}")
    with pytest.raises(NotAModelError, match=r"torch 2\.8 or older"):
        load(path)
    path.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(UnreadableModelError, match="damaged zip"):
        load(path)


# ONNX


def onnx_file(path, node, inputs, output, initialisers=()):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    tensors = [numpy_helper.from_array(a, n) for n, a in initialisers]
    graph = helper.make_graph(
        [helper.make_node(*n[:3], **(n[3] if len(n) > 3 else {})) for n in node],
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*output)],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


FLOAT, HALF, INT64 = 1, 10, 7


def linear_onnx(path, batch, dtype=np.float32):
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(size=(64, 3)).astype(dtype), rng.normal(size=3).astype(dtype)
    kind = FLOAT if dtype == np.float32 else HALF
    nodes = [("Flatten", ["x"], ["f"], {"axis": 1}), ("Gemm", ["f", "w", "b"], ["y"])]
    onnx_file(path, nodes, [("x", kind, [batch, 1, 8, 8])], ("y", kind, [batch, 3]), [("w", weight), ("b", bias)])
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_onnx_file_is_a_black_box(tmp_path, batch, dtype):
    path = tmp_path / "net.onnx"
    weight, bias = linear_onnx(path, batch, dtype)
    model = load(path)
    net = model.network
    assert net.input_spec == SPEC
    assert not net.differentiable
    assert net.module is None
    expected = images().flatten(1) @ weight + bias
    assert close(net(images()), expected, 1e-5 if dtype == np.float32 else 3e-2)
    assert net(images()).dtype == torch.float32
    assert set(model.tensors) == {"w", "b"}
    assert not checked_network(model, Probes.of(images().numpy())).differentiable


def test_an_onnx_digest_knows_the_graph(tmp_path):
    weight = np.ones((64, 64), np.float32)
    models = []
    for kind in ("Relu", "Tanh"):
        nodes = [("Flatten", ["x"], ["f"]), ("MatMul", ["f", "w"], ["h"]), (kind, ["h"], ["y"])]
        given = [("x", FLOAT, ["n", 1, 8, 8])], ("y", FLOAT, ["n", 64]), [("w", weight)]
        models.append(load(onnx_file(tmp_path / f"{kind}.onnx", nodes, *given)))
    assert models[0].digest == models[1].digest
    assert models[0].network.digest != models[1].network.digest


def test_onnx_token_models_get_the_masks_they_want(tmp_path):
    nodes = [
        ("Gather", ["e", "input_ids"], ["h"]),
        ("Cast", ["attention_mask"], ["m"], {"to": FLOAT}),
        ("Cast", ["position_ids"], ["p"], {"to": FLOAT}),
        ("Mul", ["m", "p"], ["mp"]),
        ("Unsqueeze", ["mp", "last"], ["u"]),
        ("Mul", ["h", "u"], ["logits"]),
    ]
    inputs = [(n, INT64, ["n", "t"]) for n in ("input_ids", "attention_mask", "position_ids")]
    table = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    fixed = [("e", table), ("last", np.array([-1]))]
    net = load(onnx_file(tmp_path / "lm.onnx", nodes, inputs, ("logits", FLOAT, ["n", "t", 4]), fixed)).network
    ids = torch.tensor([[1, 2, 3], [4, 5, 10]])
    expected = torch.from_numpy(table)[ids] * torch.arange(3.0)[None, :, None]
    assert close(net(ids), expected, 1e-6)
    assert net.input_spec.kind == "tokens"
    wants = [("x", FLOAT, ["n", 4]), ("y", FLOAT, ["n", 4])]
    given = [("Add", ["x", "y"], ["s"]), ("Mul", ["s", "w"], ["z"])]
    weights = [("w", np.arange(4, dtype=np.float32))]
    with pytest.raises(UnreadableModelError, match="needs the input y in addition to x"):
        _ = load(onnx_file(tmp_path / "two.onnx", given, wants, ("z", FLOAT, ["n", 4]), weights)).network


def test_an_onnx_file_in_a_checkpoint_folder_takes_raw_inputs_too(tmp_path):
    weight, bias = linear_onnx(tmp_path / "model.onnx", "n")
    bare = load(tmp_path / "model.onnx").network
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25]}))
    net = load(tmp_path).network
    expected = ((images() - 0.5) / 0.25).flatten(1) @ weight + bias
    assert close(net(images()), expected, 1e-4)
    assert (net.input_spec.mean, net.input_spec.std) == ((0.5,), (0.25,))
    assert not close(net(images()), bare(images()), 0.1)
    assert net.digest != bare.digest


def test_external_data_outside_the_folder_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    inside = tmp_path / "inside"
    inside.mkdir()
    linear_onnx(inside / "net.onnx", "n")
    made = onnx.load(inside / "net.onnx")
    onnx.save(made, inside / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    control = load(inside / "net.onnx").network(images())
    raw = (inside / "net.onnx").read_bytes()
    (tmp_path / "x.data").write_bytes((inside / "net.data").read_bytes())
    assert b"net.data" in raw
    far = onnx.load(inside / "net.onnx", load_external_data=False)
    for tensor in far.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../x.data"
    (inside / "far.onnx").write_bytes(far.SerializeToString())
    with pytest.raises(UnsafeFileError, match="outside the folder"):
        load(inside / "far.onnx")
    assert control.shape == (5, 3)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    linear_onnx(path, "n")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"'onnxruntime'.*stemma-ml\[onnx\]"):
        _ = load(path).network
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'transformers'.*stemma-ml\[hf\]"):
        _ = from_arrays({"w": np.ones(3)}, "hf", {"model_type": "vit"}).network


def test_a_model_that_says_nothing_is_refused():
    with pytest.raises(UnreadableModelError, match="--network MODULE:FACTORY --allow-code"):
        _ = from_arrays({"w": np.ones(3)}, "bare").network


# Hugging Face folders

NAMES = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *(f"word{i}" for i in range(45)))


@pytest.fixture(scope="module")
def hf():
    """The library, with its own answers as the truth."""
    return pytest.importorskip("transformers")


def tiny(hf, kind):
    """A tiny random network with its statistics and biases away from their trivial values, and its preprocessor."""
    picture = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True, "do_rescale": True}
    text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made = {
        "vit": lambda: (hf.ViTForImageClassification, hf.ViTConfig(image_size=16, patch_size=4, **vit), picture),
        "deit": lambda: (hf.DeiTForImageClassification, hf.DeiTConfig(image_size=16, patch_size=4, **vit), picture),
        "resnet": lambda: (
            hf.ResNetForImageClassification,
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
            {**picture, "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}},
        ),
        "convnext": lambda: (
            hf.ConvNextForImageClassification,
            hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16, num_labels=3),
            {**picture, "do_rescale": False},
        ),
        "swin": lambda: (
            hf.SwinForImageClassification,
            hf.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
            {**picture, "rescale_factor": 1 / 127.5},
        ),
        "gpt2": lambda: (hf.GPT2LMHeadModel, hf.GPT2Config(
            vocab_size=50, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0), None),
        "gpt2-classes": lambda: (hf.GPT2ForSequenceClassification, hf.GPT2Config(
            vocab_size=50, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0), None),
        "llama": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(
            num_key_value_heads=1, attention_bias=True, bos_token_id=0, eos_token_id=0, **text), None),
        "bert": lambda: (hf.BertForSequenceClassification, hf.BertConfig(num_labels=4, pad_token_id=3, **text), None),
        "bert-masked": lambda: (hf.BertForMaskedLM, hf.BertConfig(pad_token_id=3, **text), None),
        "roberta": lambda: (hf.RobertaForSequenceClassification, hf.RobertaConfig(
            pad_token_id=49, **{**text, "max_position_embeddings": 74}), None),
        "wav2vec2": lambda: (hf.Wav2Vec2ForSequenceClassification, hf.Wav2Vec2Config(
            conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, num_labels=3,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, classifier_proj_size=8, **vit),
            {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "feature_size": 1}),
        "ast": lambda: (hf.ASTForAudioClassification, hf.ASTConfig(
            max_length=24, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8, num_labels=3, **vit),
            {"feature_extractor_type": "ASTFeatureExtractor", "do_normalize": True, "mean": -4.2, "std": 4.5}),
    }  # fmt: skip
    made_class, config, says = made[kind]()
    torch.manual_seed(0)
    module = made_class(config).eval()
    with torch.no_grad():
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if t.is_floating_point() and t.ndim <= 1:
                t.add_(0.2 * torch.rand_like(t) if "var" in name else 0.2 * torch.randn_like(t))
            elif t.is_floating_point() and "rotary" not in name:
                t.add_(0.1 * torch.randn_like(t))
    return module, says


def stored(module, says, folder):
    module.save_pretrained(folder)
    if says is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(says))
    return folder


def their_answer(module, says, x):
    """The library's own reading of the folder's preprocessor, written out."""
    if x.dtype == torch.int64:
        return module(x).logits
    if "image_mean" in says:
        x = 255 * x * says.get("rescale_factor", 1 / 255) if says["do_rescale"] else 255 * x
        mean, std = (torch.tensor(says[k])[None, :, None, None] for k in ("image_mean", "image_std"))
        return module((x - mean) / std).logits
    if "mean" in says:
        return module((x - says["mean"]) / (2 * says["std"])).logits
    return module((x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-7).sqrt()).logits


def inputs_of(net):
    generator = torch.Generator().manual_seed(4)
    spec = net.input_spec
    if spec.kind == "tokens":
        return torch.randint(0, 49, (3, 11), generator=generator)
    shape = [n or 400 for n in spec.shape]
    return spec.low + (spec.high - spec.low) * torch.rand((3, *shape), generator=generator)


def check_family(hf, kind, folder):
    module, says = tiny(hf, kind)
    theirs = type(module).from_pretrained(stored(module, says, folder), local_files_only=True).eval()
    if kind == "gpt2-classes":  # without a padding token it takes one text at a time
        theirs.config.pad_token_id = -1
    model = load(folder)
    net = model.network
    x = inputs_of(net)
    with torch.no_grad():
        expected = their_answer(theirs, says, x)
        assert close(net(x), expected, 1e-5), kind
        assert not close(net(x.flip(0)), expected, 1e-3), kind
    assert net.parameter.dtype == torch.float32
    assert not net.module.training
    if net.input_spec.kind == "tokens":
        table = theirs.get_input_embeddings().weight
        check_relaxed(net, table, len(table) - 1 if kind in ("roberta",) else len(table))
    else:
        assert close(gradient(net, x), gradient(lambda z: their_answer(theirs, says, z), x), 1e-3)
    return model


def test_an_image_folder_answers_as_transformers_on_normalised_inputs(hf, tmp_path):
    net = check_family(hf, "vit", tmp_path).network
    assert net.input_spec == InputSpec("image", (3, 16, 16), 0.0, 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert checked_network(load(tmp_path), Probes.of(images(shape=(3, 16, 16)).numpy())).differentiable
    (tmp_path / "preprocessor_config.json").unlink()
    bare = load(tmp_path).network
    assert bare.input_spec.mean == (0.0,)
    assert bare.digest != net.digest
    assert not close(bare(inputs_of(net)), net(inputs_of(net)), 1e-3)


def test_a_text_folder_answers_as_transformers_and_knows_its_tokenizer(hf, tmp_path):
    net = check_family(hf, "gpt2", tmp_path).network
    assert net.input_spec == InputSpec("tokens", (24,), 0, 49)
    assert net.tokenizer is None
    words = {w: i for i, w in enumerate(NAMES)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    identity = load(tmp_path).network.tokenizer
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(NAMES) + "\n")
    assert load(tmp_path).network.tokenizer == identity  # the same words in another file
    (tmp_path / "vocab.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    assert load(tmp_path).network.tokenizer not in {identity, None}


def test_half_precision_folders_run_in_float32(hf, tmp_path):
    module, says = tiny(hf, "bert")
    full = module(torch.arange(11)[None]).logits
    for dtype in (torch.bfloat16, torch.float16):
        net = load(stored(module.to(dtype), says, tmp_path / str(dtype))).network
        assert net.parameter.dtype == torch.float32
        assert 0 < float((net(torch.arange(11)[None]) - full).detach().abs().max()) < 0.1
        module.float()


def test_nothing_is_fetched_whatever_a_configuration_names(hf, tmp_path, monkeypatch):
    import socket

    from huggingface_hub import constants

    asked = []

    def refuse(*place):
        asked.append(place)
        raise OSError("no connections in tests")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    config = {"model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"], "backbone": "someone/model",
              "use_pretrained_backbone": True}  # fmt: skip
    with pytest.raises(UnreadableModelError, match=r"upernet|UperNet"):
        _ = from_arrays({"w": np.ones(3, np.float32)}, "far", config).network
    assert not asked
    assert constants.HF_HUB_OFFLINE is False  # as it was


def test_two_folders_with_one_vocabulary_share_one_space(hf, tmp_path):
    module, _ = tiny(hf, "bert-masked")
    longer = hf.BertForMaskedLM(hf.BertConfig(**{**module.config.to_dict(), "vocab_size": 64}))
    specs, identities = set(), set()
    for name, net in (("a", module), ("b", longer)):
        stored(net, None, tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("\n".join(NAMES) + "\n")
        found = load(tmp_path / name).network
        specs.add(found.input_spec)
        identities.add(found.tokenizer)
        assert found.relaxed(torch.full((1, 5, 50), 1 / 50)).isfinite().all()
    assert specs == {InputSpec("tokens", (24,), 0, 49)}
    assert len(identities) == 1


def test_weights_that_do_not_fit_their_class_are_refused(hf, tmp_path):
    module, says = tiny(hf, "bert")
    stored(module, says, tmp_path)
    model = load(tmp_path)
    arrays = {n: t.array() for n, t in model.tensors.items()}

    def refused(change, pattern, config=model.config):
        with pytest.raises(UnreadableModelError, match=pattern) as caught:
            _ = from_arrays(change, "changed", config).network
        assert "\n" not in str(caught.value)

    refused({n: a for n, a in arrays.items() if n != "classifier.bias"}, r"1 missing \(classifier\.bias\)")
    refused({**arrays, "classifier.bias": np.zeros(9, np.float32)}, r"1 of the wrong shape \(classifier\.bias\)")
    refused({**arrays, "bert.more.weight": np.zeros(9, np.float32)}, r"1 unexpected \(bert\.more\.weight\)")
    renamed = {n.replace("query", "asked"): a for n, a in arrays.items()}
    refused(renamed, r"4 missing .*query.*, …\), 4 unexpected")
    refused(arrays, "has the model_type 'nonsense'", {"model_type": "nonsense"})
    own = {**model.config, "architectures": ["MyOwn"], "auto_map": {"AutoModel": "code.MyOwn"}}
    refused(arrays, "is a MyOwn.*Code in the checkpoint folder is never run", own)
    # Another task's head beside the trunk changes nothing; a head that is not named is found by what fits.
    extra = from_arrays({**arrays, "cls.seq.weight": np.zeros(9, np.float32)}, "extra", model.config).network
    silent = {k: v for k, v in model.config.items() if k != "architectures"}
    guessed = from_arrays(arrays, "guessed", silent).network
    x = torch.arange(11)[None]
    assert close(extra(x), model.network(x), 0)
    assert close(guessed(x), model.network(x), 0)
    assert type(guessed.module).__name__ == "BertForSequenceClassification"


FAMILIES = ("deit", "resnet", "convnext", "swin", "gpt2-classes", "llama", "bert", "bert-masked", "roberta", "wav2vec2")


@pytest.mark.parametrize("kind", [*FAMILIES, "ast"])
def test_every_family_answers_as_transformers(hf, tmp_path, kind):
    model = check_family(hf, kind, tmp_path)
    shapes = {"resnet": (3, 16, 16), "wav2vec2": (0,), "ast": (24, 16), "roberta": (24,)}
    assert model.network.input_spec.shape == shapes.get(kind, model.network.input_spec.shape)
