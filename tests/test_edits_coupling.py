"""Which units belong together: cutting them gives what silencing them gives, and families of architectures agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemma import networks
from stemma.architectures.unit_groups import unit_groups
from stemma.checkpoints.model import Model
from stemma.edits.dependency_graph import slicing
from stemma.edits.dependency_graph.dependency_groups import DependencyGraph
from stemma.edits.editable_network import checked_dependency_graph, editable_copy, head_weights
from stemma.errors import MisuseError
from stemma.networks.from_module import from_module
from stemma.types import InputSpec


class Residual(nn.Module):
    """A bottleneck ResNet: stem, a block with a projection, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.ModuleList([self.block(8, 6, 16), self.block(16, 6, 16)])
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    @staticmethod
    def block(a: int, inner: int, b: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, b, 1, bias=False), nn.BatchNorm2d(b),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(self.body[0](x) + self.shortcut(x))
        x = F.relu(self.body[1](x).add_(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Vgg(nn.Module):
    """Convolutions, pooling, a flattened map into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 3, padding=1),
            nn.BatchNorm2d(7), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(7 * 4, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Mobile(nn.Module):
    """Inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.norm1 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 8, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu6(self.norm2(self.depth(F.relu6(self.norm1(self.expand(x))))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head((x + self.project(y * gate)).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all that came before it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 5, 1)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(x))], 1)
        x = torch.cat([x, self.c(F.relu(self.norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class Split(nn.Module):
    """One projection made of two halves that gate each other, and a layer whose weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(10, 16, bias=False), nn.Linear(8, 6)
        self.twice, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, -1)
        x = self.down(F.silu(gate) * up)
        x = self.twice(F.relu(self.twice(x)))
        return self.head(self.norm(x))


class Windows(nn.Module):
    """Attention inside shifted windows with a table of relative positions, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 12, 2, 2), nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.merge, self.head = nn.Linear(48, 16, bias=False), nn.Linear(16, 5)
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(len(y), 4, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        shares = (q @ k.transpose(-2, -1) / 2 + bias[None]).softmax(-1)
        y = self.proj((shares @ v).transpose(1, 2).reshape(len(y), 4, -1))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        x = x + self.down(F.gelu(self.up(x)))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(torch.cat(parts, -1)).mean((1, 2)))


IMAGE = {"input_shape": [1, 8, 8], "classes": 5}
LLAMA = {
    "model_type": "llama", "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "tie_word_embeddings": True, "max_position_embeddings": 32,
}  # fmt: skip
OWN = {
    "mlp": {"model_type": "stemma-mlp", **IMAGE, "hidden": [12, 9]},
    "cnn": {"model_type": "stemma-cnn", **IMAGE, "stem": 6, "widths": [6, 8, 8], "strides": [1, 2, 1]},
    "vit": {"model_type": "stemma-vit", **IMAGE, "patch": 2, "width": 12, "depth": 2, "heads": 3, "inner": 20},
    "fused": {"model_type": "stemma-vit", **IMAGE, "patch": 2, "width": 12, "depth": 2, "heads": 3, "inner": 20,
              "fused": True},
    "llama": LLAMA,
}  # fmt: skip


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), nn.Linear(12, 5))


MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "resnet": (Residual, (3, 8, 8), {"stem.0", "body.0.0", "body.0.3", "body.0.6", "body.1.0", "body.1.3"}),
    "vgg": (Vgg, (3, 8, 8), {"features.0", "features.3", "classifier.0"}),
    "mobilenet": (Mobile, (3, 8, 8), {"stem", "expand", "squeeze"}),
    "densenet": (Dense, (3, 8, 8), {"a", "b", "c"}),
    "split": (Split, (7, 10), {"both"}),
    "swin": (Windows, (3, 8, 8), {"qkv", "up", "merge"}),
    "encoder": (encoder, (7, 8), {"1.linear1"}),
    "mlp": (lambda: networks.build(OWN["mlp"]), (1, 8, 8), {"layers.0", "layers.1"}),
    "cnn": (lambda: networks.build(OWN["cnn"]), (1, 8, 8),
            {"stem.conv", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2", "blocks.2.conv1"}),
    "vit": (lambda: networks.build(OWN["vit"]), (1, 8, 8),
            {f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.q", "mlp.fc1")}),
    "fused": (lambda: networks.build(OWN["fused"]), (1, 8, 8),
              {f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.fc1")}),
    "llama": (lambda: networks.build(OWN["llama"]), (9,),
              {f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.gate_proj")}),
}  # fmt: skip


def built(kind: str) -> tuple[Model, np.ndarray]:
    make, shape, _ = MAKERS[kind]
    torch.manual_seed(3)
    module = make().eval()
    for m in module.modules():  # norms of their own, so that a wrong cut is seen
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(m.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    tokens = len(shape) == 1
    spec = InputSpec("tokens" if tokens else "tensor", shape, 0, 30 if tokens else 1)
    rng = np.random.default_rng(4)
    inputs = rng.integers(0, 31, (3, *shape)) if tokens else rng.random((3, *shape)).astype(np.float32)
    return from_module(module, kind, spec), inputs


def outputs(model: Model, inputs: np.ndarray, change: Callable[[nn.Module], None]) -> torch.Tensor:
    asked = editable_copy(model)
    change(asked.module)
    return asked.outputs(inputs)


def some(net: DependencyGraph, name: str, seed: int = 0) -> np.ndarray:
    size = net.sizes[name]
    return np.sort(np.random.default_rng([seed, size]).permutation(size)[: max(1, size // 2)])


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.first(3)
def test_cutting_is_silencing_group_by_group_and_all_together(kind: str) -> None:
    model, inputs = built(kind)
    net = checked_dependency_graph(model, inputs)
    assert set(net.sizes) == MAKERS[kind][2], net.refused
    whole = outputs(model, inputs, lambda module: None)
    for names in (*([g] for g in net.sizes), list(net.sizes)):
        kept = {n: some(net, n) for n in names}
        rows = slicing.kept_rows(net, kept)
        cut = outputs(model, inputs, lambda m, r=rows: slicing.slice_units(m, r, head_weights(net)))
        silent = outputs(model, inputs, lambda m, k=kept: slicing.mask_units(m, net, k))
        torch.testing.assert_close(cut, silent, atol=1e-5, rtol=1e-4)
        assert float((silent - whole).abs().max()) > 1e-4  # the control: these units do something
        other = {n: np.setdiff1d(np.arange(net.sizes[n]), k) for n, k in kept.items() if net.sizes[n] > 1}
        if all(len(k) for k in other.values()):
            wrong = outputs(model, inputs, lambda m, k=other: slicing.mask_units(m, net, k))
            assert float((wrong - cut).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_operations_and_parameters_are_those_of_the_smaller_network(kind: str) -> None:
    model, inputs = built(kind)
    net = checked_dependency_graph(model, inputs)
    kept = {n: some(net, n) for n in net.sizes}
    asked = editable_copy(model)
    assert net.parameters() == sum(p.numel() for p in asked.module.parameters())
    assert net.macs() == pytest.approx(counted(asked.module, inputs[:1]), rel=1e-6)
    slicing.slice_units(asked.module, slicing.kept_rows(net, kept), head_weights(net))
    counts = {n: len(k) for n, k in kept.items()}
    assert net.parameters(counts) == sum(p.numel() for p in asked.module.parameters())
    assert net.macs(counts) == pytest.approx(counted(asked.module, inputs[:1]), rel=1e-6)


def counted(module: nn.Module, inputs: np.ndarray) -> float:
    """Multiply-accumulate operations as torch's own counter sees them."""
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    ):
        module(torch.from_numpy(inputs))
    torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("kind", sorted(OWN))
def test_the_same_groups_as_the_architecture_family_says(kind: str) -> None:
    module = networks.build(OWN[kind])
    from stemma.networks.load import from_arrays

    model = from_arrays(module.state_dict(), kind, OWN[kind])
    inputs = built(kind)[1]
    net = checked_dependency_graph(from_module(module.eval(), kind), inputs)
    family = {frozenset((m.tensor, m.axis) for m in g.members): g.size for g in unit_groups(model)}
    assert len(family) >= len(net.groups)
    for g in net.groups:
        places = frozenset((r.tensor, r.axis) for r in g.rows)
        if g.name in net.heads:  # families divide heads further: keys and values apart from queries, sizes inside
            assert any(places & f for f in family)
            continue
        assert family[places] == g.size


def test_rows_of_fused_and_gated_layers_are_the_right_ones() -> None:
    model, inputs = built("fused")
    group = checked_dependency_graph(model, inputs).group("blocks.0.attn.qkv")
    rows = next(r for r in group.rows if r.tensor == "blocks.0.attn.qkv.weight")
    np.testing.assert_array_equal(rows.index[1], [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31])
    model, inputs = built("llama")
    group = checked_dependency_graph(model, inputs).group("model.layers.0.self_attn.q_proj")
    sizes = {r.tensor.split(".")[-2]: r.index.shape for r in group.rows}
    assert sizes == {"q_proj": (2, 8), "k_proj": (2, 4), "v_proj": (2, 4), "o_proj": (2, 8)}
    model, inputs = built("split")
    rows = checked_dependency_graph(model, inputs).group("both").rows[0]
    np.testing.assert_array_equal(rows.index[:2], [[0, 8], [1, 9]])


def test_what_cannot_be_cut_is_said_with_the_reason() -> None:
    model, inputs = built("split")
    refused = checked_dependency_graph(model, inputs).refused
    assert "twice" in refused
    assert "output of the network" in refused["head"]
    model, inputs = built("vit")
    assert "statistic over all units" in checked_dependency_graph(model, inputs).refused["patch_embed.proj"]


class Shuffled(nn.Module):
    """A grouped convolution and channels that are exchanged by a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(self.b(x).mean((2, 3)))


class Fixed(nn.Module):
    """Code that assumes a size: found only by trying."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)).reshape(-1, 8))))


def test_groups_that_code_fixes_stay_whole() -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).random((3, 3, 6, 6)).astype(np.float32)
    with pytest.raises(MisuseError, match="no unit of s can be removed"):
        checked_dependency_graph(from_module(Shuffled().eval(), "s"), inputs)
    net = checked_dependency_graph(
        from_module(Fixed().eval(), "f"), np.random.default_rng(0).random((3, 6)).astype(np.float32)
    )
    assert set(net.sizes) == {"b"}
    assert "assumes this size" in net.refused["a"]


def test_quantised_modules_and_black_boxes_are_refused() -> None:
    class QuantLinear(nn.Linear):
        pass

    inputs = np.zeros((2, 4), np.float32)
    with pytest.raises(MisuseError, match="quantised module"):
        checked_dependency_graph(from_module(nn.Sequential(QuantLinear(4, 4), nn.Linear(4, 3)).eval(), "q"), inputs)
    with pytest.raises(MisuseError, match="is a black box"):
        checked_dependency_graph(from_module(lambda x: x, "b"), inputs)


def test_a_table_that_is_also_the_head_is_not_cut_at_one_end() -> None:
    model, inputs = built("llama")
    net = checked_dependency_graph(model, inputs)
    assert not any(r.tensor == "model.embed_tokens.weight" for g in net.groups for r in g.rows)


def hugging_face(kind: str) -> tuple[Any, np.ndarray]:
    T = pytest.importorskip("transformers")
    torch.manual_seed(1)
    c = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 31}
    makers = {
        "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**c, intermediate_size=24, num_key_value_heads=2)),
        "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**c, intermediate_size=24, num_key_value_heads=2)),
        "qwen3": lambda: T.Qwen3ForCausalLM(
            T.Qwen3Config(**c, intermediate_size=24, num_key_value_heads=2, head_dim=6)),
        "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=31, n_positions=32)),
        "vit": lambda: T.ViTForImageClassification(T.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8,
            patch_size=4, num_labels=5)),
        "swin": lambda: T.SwinForImageClassification(T.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5)),
        "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(
            **c, intermediate_size=24, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)),
        "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(
            **c, intermediate_size=24, num_key_value_heads=2, pad_token_id=0)),
        "resnet": lambda: T.ResNetForImageClassification(T.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 24], depths=[2, 2], layer_type="bottleneck", num_labels=5)),
    }  # fmt: skip
    module = makers[kind]().eval()
    rng = np.random.default_rng(2)
    image = (2, 3, 16, 16) if kind in ("swin", "resnet") else (2, 3, 8, 8)
    tokens = kind in ("llama", "qwen2", "qwen3", "gpt2", "mixtral", "phi3")
    return module, rng.integers(0, 31, (2, 7)) if tokens else rng.random(image).astype(np.float32)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "least"),
    [("llama", 4), ("gpt2", 2), ("mixtral", 2), ("phi3", 2), *(pytest.param(k, n, marks=SLOW) for k, n in
     (("qwen2", 4), ("qwen3", 4), ("vit", 4), ("swin", 4), ("resnet", 8)))],
)  # fmt: skip
@pytest.mark.first(1)
def test_networks_of_transformers_are_cut_consistently(kind: str, least: int) -> None:
    module, inputs = hugging_face(kind)
    model = from_module(module, kind)
    net = checked_dependency_graph(model, inputs)
    assert len(net.groups) >= least, net.refused
    kept = {n: some(net, n) for n in net.sizes}
    cut = outputs(model, inputs, lambda m: slicing.slice_units(m, slicing.kept_rows(net, kept), head_weights(net)))
    silent = outputs(model, inputs, lambda m: slicing.mask_units(m, net, kept))
    torch.testing.assert_close(cut, silent, atol=1e-5, rtol=1e-4)
