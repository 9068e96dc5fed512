"""Groups of hidden units: symmetries shown by running networks, and nothing visible ever called hidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.architectures.unit_groups import permute, structure, structure_of
from stemma.networks.load import load
from symmetry import assert_groups_are_symmetries, assert_nothing_visible_is_hidden, noisy, permuted_by_hand, rows

OURS = {
    "mlp": (
        {"model_type": "stemma-mlp", "input_shape": [1, 4, 4], "hidden": [12, 9], "classes": 5},
        {"unit@0": 12, "unit@1": 9},
    ),
    "cnn": (
        {"model_type": "stemma-cnn", "input_shape": [1, 8, 8], "stem": 6, "widths": [6, 10], "inner": [5, 7],
         "strides": [1, 2], "classes": 4},
        {"stream@-1": 6, "mid@0": 5, "stream@1": 10, "mid@1": 7},
    ),
    "vit": (
        {"model_type": "stemma-vit", "input_shape": [1, 8, 8], "patch": 4, "width": 16, "depth": 2, "heads": 4,
         "inner": 20, "classes": 5},
        {"stream": 16, "heads@0": 4, "mlp@0": 20, "heads@1": 4, "mlp@1": 20},
    ),
    "vit-fused": (
        {"model_type": "stemma-vit", "input_shape": [1, 8, 8], "patch": 4, "width": 16, "depth": 1, "heads": 2,
         "inner": 20, "classes": 5, "fused": True},
        {"stream": 16, "heads@0": 2, "mlp@0": 20},
    ),
    "llama": (
        {"model_type": "llama", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 20, "rope_theta": 10000.0,
         "rms_norm_eps": 1e-6, "max_position_embeddings": 16, "tie_word_embeddings": False},
        {"stream": 16, "kv@0": 2, "mlp@0": 20, "kv@1": 2, "mlp@1": 20},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_groups_of_our_networks_are_symmetries(kind):
    torch = pytest.importorskip("torch")
    from stemma import networks

    config, sizes = OURS[kind]
    module = networks.build(config).eval()
    kept = {n: t for n, t in module.state_dict().items() if "num_batches" not in n}
    arrays = noisy({n: tuple(t.shape) for n, t in kept.items()})
    known = structure_of({n: a.shape for n, a in arrays.items()}, config)
    assert known.certain
    assert {g.name: g.size for g in known.groups} == sizes
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 30, (3, 9)) if kind == "llama" else rng.random((3, 1, 8, 8), np.float32)
    if kind == "mlp":
        inputs = rng.random((3, 1, 4, 4), np.float32)

    def network(weights, x):
        state = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in weights.items()}
        module.load_state_dict(state, strict=False)
        with torch.no_grad():
            return module(torch.from_numpy(x)).double().numpy()

    assert_groups_are_symmetries(arrays, known, lambda w: network(w, inputs))


def tiny(kind):
    """A tiny random network of a published architecture, with inputs; built here, nothing is downloaded."""
    import torch
    import transformers as T

    T.logging.set_verbosity_error()
    ids = torch.randint(3, 59, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 60  # the token at which CLIP reads its text
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    c = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 61}
    kv = {**c, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    v = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    image = {**v, "image_size": 32, "patch_size": 8, "num_labels": 7}
    text = {"input_ids": ids}
    makers = {
        "llama": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**kv)), text),
        "mistral": (lambda: T.MistralForCausalLM(T.MistralConfig(**kv)), text),
        "qwen2": (lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**kv)), text),
        "qwen3": (lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**kv, head_dim=16)), text),
        "gemma": (lambda: T.GemmaForCausalLM(T.GemmaConfig(**kv, head_dim=8)), text),
        "gemma2": (lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**kv, head_dim=8)), text),
        "gemma3": (lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**kv, head_dim=8)), text),
        "phi3": (lambda: T.Phi3ForCausalLM(T.Phi3Config(**kv)), text),
        "mixtral": (lambda: T.MixtralForCausalLM(T.MixtralConfig(**kv, num_local_experts=4)), text),
        "qwen3-moe": (lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(
            **kv, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8)), text),
        "gpt2": (lambda: T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=33,
                                                        bos_token_id=1, eos_token_id=2)), text),
        "gpt-neox": (lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**c)), text),
        "opt": (lambda: T.OPTForCausalLM(T.OPTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=61,
            max_position_embeddings=33, word_embed_proj_dim=32)), text),
        "bert": (lambda: T.BertForMaskedLM(T.BertConfig(**c, max_position_embeddings=33)), text),
        "bert-classifier": (lambda: T.BertForSequenceClassification(T.BertConfig(**c)), text),
        "roberta": (lambda: T.RobertaForMaskedLM(T.RobertaConfig(**c, max_position_embeddings=35)), text),
        "distilbert": (lambda: T.DistilBertForMaskedLM(T.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=61, max_position_embeddings=33)), text),
        "vit": (lambda: T.ViTForImageClassification(T.ViTConfig(**image)), {"pixel_values": pixels}),
        "deit": (lambda: T.DeiTForImageClassification(T.DeiTConfig(**image)), {"pixel_values": pixels}),
        "swin": (lambda: T.SwinForImageClassification(T.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=7)),
            {"pixel_values": pixels}),
        "resnet": (lambda: T.ResNetForImageClassification(T.ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="bottleneck", num_labels=7)),
            {"pixel_values": pixels}),
        "resnet-basic": (lambda: T.ResNetForImageClassification(T.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 24], depths=[2, 2], layer_type="basic", num_labels=7)),
            {"pixel_values": pixels}),
        "convnext": (lambda: T.ConvNextForImageClassification(T.ConvNextConfig(
            hidden_sizes=[16, 24], depths=[2, 2], num_stages=2, num_labels=7)), {"pixel_values": pixels}),
        "mobilenet-v1": (lambda: T.MobileNetV1ForImageClassification(T.MobileNetV1Config(
            depth_multiplier=0.25, num_labels=7)), {"pixel_values": pixels}),
        "mobilenet-v2": (lambda: T.MobileNetV2ForImageClassification(T.MobileNetV2Config(
            depth_multiplier=0.25, num_labels=7)), {"pixel_values": pixels}),
        "t5": (lambda: T.T5ForConditionalGeneration(T.T5Config(
            d_model=40, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=61, decoder_start_token_id=0)),
            {"input_ids": ids, "decoder_input_ids": ids[:, :5]}),
        "t5-gated": (lambda: T.T5ForConditionalGeneration(T.T5Config(
            d_model=40, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=61, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, decoder_start_token_id=0)), {"input_ids": ids, "decoder_input_ids": ids[:, :5]}),
        "whisper": (lambda: T.WhisperForConditionalGeneration(T.WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=61, num_mel_bins=20, max_source_positions=15,
            max_target_positions=17, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)),
            {"input_features": torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(1)),
             "decoder_input_ids": ids[:, :5]}),
        "clip": (lambda: T.CLIPModel(T.CLIPConfig(
            text_config={**c, "max_position_embeddings": 33, "eos_token_id": 60, "bos_token_id": 1, "pad_token_id": 0},
            vision_config={**image, "hidden_size": 48, "intermediate_size": 56}, projection_dim=24)),
            {**text, "pixel_values": pixels}),
    }  # fmt: skip
    make, inputs = makers[kind]
    torch.manual_seed(0)
    return make().eval(), inputs


FAMILY = {
    "llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "llama", "gemma": "llama", "gemma2": "llama",
    "gemma3": "llama", "phi3": "phi3", "mixtral": "moe_stacked", "qwen3-moe": "moe_stacked", "gpt2": "gpt2",
    "gpt-neox": "gpt_neox", "opt": "opt", "bert": "bert", "bert-classifier": "bert", "roberta": "bert",
    "distilbert": "distilbert", "vit": "vit", "deit": "vit", "swin": "swin", "resnet": "resnet_hf_bottleneck",
    "resnet-basic": "resnet_hf_basic", "convnext": "convnext", "mobilenet-v2": "mobilenet_v2", "t5": "t5",
    "t5-gated": "t5", "whisper": "whisper", "clip": "clip",
}  # fmt: skip
FAST = ("llama", "gpt2")


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in
                                  [*FAMILY, "mobilenet-v1"]])  # fmt: skip
def test_groups_of_published_architectures_are_symmetries(kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    module, inputs = tiny(kind)
    state = module.state_dict()
    tied = {}
    arrays = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            first = tied.setdefault(tensor.data_ptr(), name)
            arrays[name] = arrays[first] if first in arrays else noisy({name: tuple(tensor.shape)}, len(arrays))[name]
    known = structure_of({n: a.shape for n, a in arrays.items()}, module.config.to_dict())
    assert known.source == (f"family:{FAMILY[kind]}" if kind in FAMILY else "inferred:names")
    assert known.certain == (kind in FAMILY)

    def run(weights):
        module.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in weights.items()}, strict=False)
        with torch.no_grad():
            out = module(**inputs)
        flat = [out.text_embeds, out.image_embeds] if kind == "clip" else [out.logits]
        return np.concatenate([t.double().numpy().ravel() for t in flat])

    assert_groups_are_symmetries(arrays, known, run)
    assert_nothing_visible_is_hidden({n: a.shape for n, a in arrays.items()}, known)


def test_heads_are_blocks_and_fused_projections_are_segments():
    shapes = {f"model.layers.0.self_attn.{n}_proj.weight": (r, 64) for n, r in (("q", 64), ("k", 16), ("v", 16))}
    shapes |= {"model.layers.0.self_attn.o_proj.weight": (64, 64), "model.layers.0.mlp.down_proj.weight": (64, 40)}
    shapes |= {f"model.layers.0.mlp.{n}_proj.weight": (40, 64) for n in ("gate", "up")}
    known = structure_of(shapes, {"num_attention_heads": 8, "num_key_value_heads": 2})
    kv = known.group("kv@0")
    assert kv.size == 2
    blocks = {(m.tensor.split(".")[-2][0], m.axis): m.block for m in kv.members}
    assert blocks == {("q", 0): 32, ("k", 0): 8, ("v", 0): 8, ("o", 1): 32}
    fused = structure_of({
        "h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_proj.weight": (64, 64), "h.0.mlp.c_fc.weight": (64, 256),
        "h.0.mlp.c_proj.weight": (256, 64), "wte.weight": (99, 64),
    }, {"n_head": 4})  # fmt: skip
    label = fused.axes["h.0.attn.c_attn.weight"][1]
    assert [(s.group, s.offset, s.rows, s.block) for s in label.segments] == [
        ("heads@0", 0, 64, 16), ("heads@0", 64, 64, 16), ("heads@0", 128, 64, 16),
    ]  # fmt: skip


def test_a_false_config_does_not_make_heads_that_do_not_fit():
    shapes = {f"layers.0.self_attn.{n}_proj.weight": (64, 64) for n in "qkvo"}
    shapes |= {"layers.0.mlp.down_proj.weight": (64, 40), "layers.0.mlp.up_proj.weight": (40, 64)}
    known = structure_of(shapes, {"num_attention_heads": 7, "num_key_value_heads": 7, "model_type": "bert"})
    assert known.source == "family:llama"
    assert known.group("kv@0").size == 1


def test_permute_is_its_slow_twin_also_for_interleaved_units():
    shapes = {"conv2d/kernel:0": (3, 3, 1, 4), "dense/kernel:0": (36, 5), "dense_1/kernel:0": (5, 3)}
    known = structure_of(shapes)
    assert known.source == "inferred:names"
    flat = known.axes["dense/kernel:0"][0].segments[0]
    assert (flat.block, flat.stride) == (9, 4)
    arrays, order = noisy(shapes), np.array([2, 0, 3, 1])
    group = known.groups[0]
    by_hand = permuted_by_hand(arrays, group.members, order)
    fast = permute(arrays, known, {group.name: order})
    assert all(np.array_equal(by_hand[n], fast[n]) for n in shapes)
    assert not np.array_equal(fast["dense/kernel:0"], arrays["dense/kernel:0"])


def test_padded_shortcuts_pin_channels_of_later_stages(shared):
    model = load(shared / "zoo/cifar_resnet/akamaster_resnet20.safetensors")
    known = structure(model)
    later = known.axes["layer3.0.conv2.weight"][0]
    assert [(s.group, s.offset, s.rows) for s in later.segments] == [
        ("stage@3.low", 0, 16), ("stage@2.low", 16, 8), ("stage@0", 24, 16), ("stage@2.high", 40, 8),
        ("stage@3.high", 48, 16),
    ]  # fmt: skip
    torch = pytest.importorskip("torch")
    arrays = {n: t.array() for n, t in model.weights.items()}
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32))).float()

    def run(weights):
        return resnet20(torch, weights, image).double().numpy()

    assert_groups_are_symmetries(arrays, known, run)


def resnet20(torch, arrays, x):
    """The network of the file, written from its published description: option A shortcuts, 16-32-64 channels."""
    import torch.nn.functional as F

    w = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}

    def norm(h, p):
        return F.batch_norm(h, w[p + ".running_mean"], w[p + ".running_var"], w[p + ".weight"], w[p + ".bias"])

    with torch.no_grad():
        x = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1").relu()
        for stage in (1, 2, 3):
            for block in range(3):
                p, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                h = norm(F.conv2d(x, w[p + ".conv1.weight"], stride=stride, padding=1), p + ".bn1").relu()
                h = norm(F.conv2d(h, w[p + ".conv2.weight"], padding=1), p + ".bn2")
                pad = (h.shape[1] - x.shape[1]) // 2
                x = (h + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, pad, pad))).relu()
        return F.linear(x.mean((2, 3)), w["linear.weight"], w["linear.bias"])


def test_towers_of_a_composed_model_are_found_beside_what_is_unknown():
    tower = {"embeddings.position_embedding.weight": (17, 64), "encoder.layers.0.layer_norm1.weight": (64,)}
    tower |= {f"encoder.layers.0.self_attn.{n}_proj.weight": (64, 64) for n in ("q", "k", "v", "out")}
    tower |= {"encoder.layers.0.mlp.fc1.weight": (96, 64), "encoder.layers.0.mlp.fc2.weight": (64, 96)}
    shapes = {f"vision_tower.vision_model.{n}": s for n, s in tower.items()} | {"projector.weight": (32, 64)}
    known = structure_of(shapes)
    assert known.source == "family:clip"
    assert all(label.kind == "fixed" for label in known.axes["projector.weight"])
    assert {g.size for g in known.groups} == {64, 96, 1}


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.one_of(
            st.text(max_size=20),
            st.from_regex(r"(layers|conv|blocks|bn)?\.?[0-9]{0,3}\.(weight|bias|kernel:0)", fullmatch=True),
            st.sampled_from(["layers.0.self_attn.q_proj.weight", "layers.0.mlp.down_proj.weight", "conv1.weight",
                             "layer1.0.conv2.weight", "wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"]),
        ),
        st.lists(st.integers(0, 9), max_size=5).map(tuple),
        max_size=8,
    ),
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["n_head", "num_attention_heads", "head_dim", "text_config"]),
                                         st.one_of(st.integers(-3, 9), st.none(), st.text(max_size=3)))),
)  # fmt: skip
@pytest.mark.slow
def test_any_names_and_shapes_get_a_structure_that_covers_every_axis(shapes, config):
    known = structure_of(shapes, config)
    assert known.axes.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert [sum(s.rows for s in label.segments) for label in known.axes[name]] == list(shape)
    for group in known.groups:
        for m in group.members:
            found = sorted(i for u in range(group.size) for i in rows(m, u))
            assert len(set(found)) == len(found)
            assert found[-1] < shapes[m.tensor][m.axis]


SAVED = {
    "vit": {"vit.encoder.layer.{l}.attention.attention.query.weight": (32, 32),
            "vit.encoder.layer.{l}.attention.output.dense.weight": (32, 32),
            "vit.encoder.layer.{l}.intermediate.dense.weight": (48, 32),
            "vit.encoder.layer.{l}.output.dense.weight": (32, 48),
            "vit.encoder.layer.{l}.layernorm_before.weight": (32,),
            "vit.embeddings.patch_embeddings.projection.weight": (32, 3, 4, 4)},
    "vit_timm": {"blocks.{l}.attn.qkv.weight": (96, 32), "blocks.{l}.attn.proj.weight": (32, 32),
                 "blocks.{l}.mlp.fc1.weight": (48, 32), "blocks.{l}.mlp.fc2.weight": (32, 48),
                 "blocks.{l}.norm1.weight": (32,), "patch_embed.proj.weight": (32, 3, 4, 4)},
    "gguf": {"blk.{l}.attn_q.weight": (32, 32), "blk.{l}.attn_k.weight": (16, 32), "blk.{l}.attn_v.weight": (16, 32),
             "blk.{l}.attn_output.weight": (32, 32), "blk.{l}.ffn_up.weight": (48, 32),
             "blk.{l}.ffn_down.weight": (32, 48), "blk.{l}.attn_norm.weight": (32,), "token_embd.weight": (61, 32)},
    "moe": {"model.layers.{l}.self_attn.q_proj.weight": (32, 32), "model.layers.{l}.self_attn.o_proj.weight": (32, 32),
            "model.layers.{l}.block_sparse_moe.gate.weight": (2, 32),
            "model.layers.{l}.block_sparse_moe.experts.0.w1.weight": (48, 32),
            "model.layers.{l}.block_sparse_moe.experts.0.w2.weight": (32, 48)},
}  # fmt: skip


@pytest.mark.parametrize("family", SAVED)
def test_names_as_they_are_saved_elsewhere(family):
    shapes = {n.format(l=i): s for n, s in SAVED[family].items() for i in range(2)}
    known = structure_of(shapes, {"num_attention_heads": 4, "llama.attention.head_count_kv": 4})
    assert known.source == f"family:{family}"
    units = {g.name.split("@")[0]: g.size for g in known.groups}
    assert units["stream"] == 32
    assert units["mlp"] == 48
    assert units.get("heads", units.get("kv")) == 4
    assert all(label.role != "unknown" for labels in known.axes.values() for label in labels)
