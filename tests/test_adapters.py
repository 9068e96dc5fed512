"""Adapters against PEFT itself: what it merges when it loads the same folder is the truth."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stemma.checkpoints import load
from stemma.checkpoints.adapters.adapter import Adapter
from stemma.errors import NotAModelError, UnreadableModelError

pytestmark = pytest.mark.filterwarnings("ignore")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
LORA: dict[str, Any] = {
    "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM",
}  # fmt: skip
CONV1D = {**LORA, "target_modules": ["c_attn", "c_proj"]}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def make(kind: str) -> Path:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        if not (root / kind).exists():
            torch.manual_seed(1)
            ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": "tied" in kind}
            if kind.startswith("gpt2"):
                net = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, **ends))
            else:
                net = LlamaForCausalLM(
                    LlamaConfig(
                        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, attention_bias=True,
                        num_attention_heads=2, num_key_value_heads=1, **ends,
                    )
                ).to(torch.bfloat16 if kind == "bf16" else torch.float32)  # fmt: skip
            net.save_pretrained(root / kind)
        return root / kind

    return make


def _adapt(of: Path, config: Any, to: Path, converted: bool = False) -> Any:
    """An adapter folder as PEFT writes it, and the base with it as PEFT loads it."""
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(of), config)
    more = {}
    if converted:
        tuned.save_pretrained(str(to / "start"))
        more = {"path_initial_model_for_weight_conversion": str(to / "start")}
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    tuned.save_pretrained(str(to / "adapter"), **more)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(of), str(to / "adapter")).eval()


def _logits(net: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return net(torch.arange(20)[None]).logits.float().numpy()


READ = {
    "LoRA": ("plain", "LoraConfig", LORA),
    "rank-stabilised": ("plain", "LoraConfig", {**LORA, "use_rslora": True}),
    "patterns": (
        "plain", "LoraConfig",
        {**LORA, "rank_pattern": {"down_proj": 2, r"^model.layers.0.self_attn.q_proj": 6, r".*1\.self_attn\.q_proj": 3},
         "alpha_pattern": {"q_proj": 3, r"layers\.[0-9]+\.(self_attn|x)\.v_proj": 7}},
    ),
    "DoRA": ("plain", "LoraConfig", {**LORA, "use_dora": True}),
    "DoRA of an embedding": ("plain", "LoraConfig", {**LORA, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "DoRA of transposed": ("gpt2", "LoraConfig", {**CONV1D, "use_dora": True}),
    "transposed beside straight": ("gpt2", "LoraConfig", {**CONV1D, "target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "every bias": ("plain", "LoraConfig", {**LORA, "bias": "all"}),
    "a bias of its own": ("plain", "LoraConfig", {**LORA, "lora_bias": True, "target_modules": ["q_proj"]}),
    "some layers": ("plain", "LoraConfig", {**LORA, "layers_to_transform": [1]}),
    "a trained head": ("plain", "LoraConfig", {**LORA, "modules_to_save": ["lm_head", "norm"]}),
    "a trained tied embedding": ("tied", "LoraConfig", {**LORA, "modules_to_save": ["embed_tokens"]}),
    "a trained tied head": ("tied", "LoraConfig", {**LORA, "modules_to_save": ["lm_head"]}),
    "both, untied": ("tied", "LoraConfig", {**LORA, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "both, kept tied": (
        "tied", "LoraConfig", {**LORA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tokens": ("plain", "LoraConfig", {**LORA, "trainable_token_indices": [1, 5, 7]}),
    "tokens of both": (
        "plain", "LoraConfig", {**LORA, "trainable_token_indices": {"embed_tokens": [9, 1], "lm_head": [2]}},
    ),
    "tokens of a tied embedding": ("gpt2_tied", "LoraConfig", {**CONV1D, "trainable_token_indices": {"wte": [1, 4]}}),
    "tokens alone": ("plain", "TrainableTokensConfig", {"token_indices": [1, 5, 7]}),
    "tokens alone, tied": ("tied", "TrainableTokensConfig", {"token_indices": [1, 5, 7]}),
    "PiSSA": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "pissa"}),
    "PiSSA in half precision": ("bf16", "LoraConfig", {**LORA, "init_lora_weights": "pissa"}),
    "PiSSA of transposed": ("gpt2", "LoraConfig", {**CONV1D, "init_lora_weights": "pissa"}),
    "PiSSA and DoRA": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "pissa", "use_dora": True}),
    "OLoRA": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "olora"}),
    "EVA": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "eva"}),
    "AdaLoRA": (
        "plain", "AdaLoraConfig",
        {"init_r": 4, "target_r": 2, "total_step": 9, "tinit": 1, "tfinal": 2, "target_modules": ["q_proj"]},
    ),
    "VeRA": ("plain", "VeraConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "LoHa": ("plain", "LoHaConfig", {"r": 2, "alpha": 3, "target_modules": ["q_proj", "down_proj"]}),
    "LoKr": ("plain", "LoKrConfig", {"r": 2, "alpha": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "IA3": ("plain", "IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "IA3 of transposed": ("gpt2", "IA3Config", {"target_modules": ["attn.c_proj"], "feedforward_modules": []}),
    "LN tuning": ("plain", "LNTuningConfig", {}),
}  # fmt: skip


@needs_peft
@pytest.mark.parametrize("kind", READ)
def test_an_adapter_is_read_as_peft_merges_it(kind: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    of, config, options = READ[kind]
    running = _adapt(base(of), getattr(peft, config)(**{"task_type": "CAUSAL_LM", **options}), tmp_path)
    before = _logits(running)
    running.merge_and_unload().save_pretrained(tmp_path / "merged")
    found, merged = load.load(tmp_path / "adapter"), load.load(tmp_path / "merged")
    assert set(found.tensors) == set(merged.tensors)
    assert found.config is not None
    assert merged.config is not None
    assert bool(found.config["tie_word_embeddings"]) == bool(merged.config["tie_word_embeddings"])
    for name, t in merged.tensors.items():
        assert found.tensors[name].dtype == t.dtype
        np.testing.assert_allclose(found.tensors[name].array(), t.array(), atol=2e-6, rtol=1e-5, err_msg=name)
    # the control: it is not the base that is read, and what is read answers as the running adapter does
    assert found.digest != load.load(base(of)).digest
    if of not in ("bf16", "gpt2"):
        assert np.abs(_logits(_with(base(of), found)) - before).max() < 1e-4


def _with(of: Path, found: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(of, tie_word_embeddings=found.config["tie_word_embeddings"])
    net = AutoModelForCausalLM.from_config(config).eval()
    state = {n: torch.from_numpy(t.array().copy()) for n, t in found.tensors.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [n for n in missing if not (config.tie_word_embeddings and n == "lm_head.weight")]
    return net


@needs_peft
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_converted_adapter_is_plain(start: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import LoraConfig

    running = _adapt(base("plain"), LoraConfig(**LORA, init_lora_weights=start), tmp_path, converted=True)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 2 * LORA["r"]
    found = load.load(tmp_path / "adapter")
    for name, values in running.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(found.tensors[name].array(), values.numpy(), atol=1e-6, err_msg=name)


REFUSED = {
    "a tied head": (
        "tied", "LoraConfig", {**LORA, "target_modules": ["q_proj", "lm_head"]}, "low-rank update is on the head",
    ),
    "a tied embedding": (
        "tied", "LoraConfig", {**LORA, "target_modules": ["embed_tokens"]}, "low-rank update is on the embedding",
    ),
    "both of a tie": (
        "tied", "LoraConfig", {**LORA, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "load the base with tie_word_embeddings=False",
    ),
    "a random split": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "bare parameters": (
        "plain", "LoraConfig", {**LORA, "target_parameters": ["mlp.up_proj.weight"]}, "target_parameters",
    ),
    "OFT": ("plain", "OFTConfig", {"oft_block_size": 8, "target_modules": ["q_proj"]}, "type 'OFT' are not supported"),
    "HRA": ("plain", "HRAConfig", {"r": 4, "target_modules": ["q_proj"]}, "merge_and_unload"),
    "prompt tuning": ("plain", "PromptTuningConfig", {"num_virtual_tokens": 4}, "use the base model instead"),
    "prefix tuning": ("plain", "PrefixTuningConfig", {"num_virtual_tokens": 4}, "changes no weights of its base"),
    "VeRA without its random matrices": (
        "plain", "VeraConfig", {"r": 4, "target_modules": ["q_proj"], "save_projection": False}, "save_projection",
    ),
}  # fmt: skip


@needs_peft
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_by_name(kind: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    of, config, options, sentence = REFUSED[kind]
    running = _adapt(base(of), getattr(peft, config)(**{"task_type": "CAUSAL_LM", **options}), tmp_path)
    with pytest.raises(UnreadableModelError, match=sentence):
        load.load(tmp_path / "adapter")
    if of == "tied":  # why: merged, PEFT's own model answers otherwise than the adapter that it merged
        assert np.abs(_logits(running) - _logits(running.merge_and_unload())).max() > 0.01


@needs_peft
@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("alora_invocation_tokens", [3, 4], "cannot be merged"),
        ("init_lora_weights", "corda", "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", "loftq", "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", "lora_ga", "path_initial_model_for_weight_conversion"),
        ("alpha_pattern", {r"(.*)+q_proj": 3}, "not a safe regular expression"),
        ("alpha_pattern", {r"(q_proj": 3}, "is not a valid regular expression"),
        ("r", 5, "has rank 4, but its config says rank 5"),
        ("trainable_token_indices", [99], "largest token id 99"),
        ("trainable_token_indices", [1, 2], "does not list the 1 trained token ids"),
        ("base_model_name_or_path", "far/away", "put it next to the adapter's folder as 'away'"),
        ("base_model_name_or_path", None, "it names none"),
        ("peft_type", "NEW", "type 'NEW' are not supported"),
    ],
)
def test_a_config_that_cannot_be_followed(
    option: str, value: Any, sentence: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import LoraConfig

    _adapt(base("plain"), LoraConfig(**LORA, trainable_token_indices=[1]), tmp_path)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(UnreadableModelError, match=sentence):
        load.load(tmp_path / "adapter")


@needs_peft
def test_several_adapters_of_one_folder(base: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base("plain")), LoraConfig(**LORA))
    tuned.add_adapter("other", LoraConfig(**{**LORA, "r": 2, "init_lora_weights": False}))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    # PEFT loads the one that lies in the folder itself; the other is a checkpoint of its own
    first, other = load.load(tmp_path / "adapter"), load.load(tmp_path / "adapter/other")
    assert first.digest == load.load(base("plain")).digest != other.digest
    assert load.load(tmp_path / "adapter/adapter_model.safetensors").digest == first.digest


def test_a_convolution_is_changed_as_the_adapter_changes_it(tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1))
    save_file({n: t.numpy().copy() for n, t in net.state_dict().items()}, tmp_path / "base.safetensors")
    tuned = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "1"], use_dora=True))
    for p in tuned.parameters():
        if p.requires_grad:
            p.data += torch.randn_like(p) * 0.1
    tuned.save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "base"}))
    found = load.load(tmp_path / "adapter")
    for name, values in tuned.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(found.tensors[name].array(), values.numpy(), atol=1e-6, err_msg=name)


BARE = {
    "kohya": ["lora_unet_down_0.lora_down.weight", "lora_unet_down_0.lora_up.weight", "lora_unet_down_0.alpha"],
    "kohya, text encoder": ["lora_te_layers_0_q_proj.lora_down.weight", "lora_te_layers_0_q_proj.lora_up.weight"],
    "LyCORIS": [f"lora_unet_mid.hada_{w}" for w in ("w1_a", "w1_b", "w2_a", "w2_b")],
    "PEFT": ["base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"],
    "diffusers": ["unet.to_q.lora.down.weight", "unet.to_q.lora.up.weight"],
    "llama.cpp": ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"],
    "with a trained head": ["q.lora_A.weight", "q.lora_B.weight", "score.weight"],
}  # fmt: skip


@pytest.mark.parametrize("kind", BARE)
def test_a_bare_adapter_is_no_model(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(size=(4, 4)).astype(np.float32) for n in BARE[kind]}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UnreadableModelError, match=r"is an adapter .* without its base model.*Use the base"):
        load.load(tmp_path / "a.safetensors")
    # the control: the same parts beside the weights that they change are a model
    modules = {n.split(".lora")[0].split(".hada")[0].removesuffix(".weight") for n in BARE[kind]}
    whole = {f"{m}.weight": rng.normal(size=(4, 4)).astype(np.float32) for m in modules}
    save_file({**tensors, **whole}, tmp_path / "b.safetensors")
    assert load.load(tmp_path / "b.safetensors").tensors


PARTS = {
    "LORA": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LOKR": ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    "IA3": ("ia3_l",),
    "TRAINABLE_TOKENS": ("trainable_tokens_delta",),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("seed", [pytest.param(i, marks=() if i < 8 else pytest.mark.slow) for i in range(25)])
def test_whatever_an_adapter_holds_it_is_read_or_one_sentence(kind: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    base = {"q.weight": rng.normal(size=(4, 4)), "q.bias": rng.normal(size=4)}
    save_file({n: a.astype(np.float32) for n, a in base.items()}, tmp_path / "base.safetensors")
    names = [f"base_model.model.q.{p}" for p in PARTS[kind]] + ["base_model.vera_A", "base_model.vera_B"] * (
        kind == "VERA"
    )
    tensors = {}
    for n in names:
        shape = rng.choice([0, 1, 2, 4], size=rng.integers(0, 4), p=[0.05, 0.2, 0.25, 0.5])
        tensors[n] = np.asarray(rng.normal(size=shape), rng.choice([np.float32, np.float32, np.float16, np.int32]))
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    odd = [4, 1, 2, 0, -1, None, "x", True, 1e400, [], {}]
    config = {k: odd[int(rng.integers(len(odd)))] if rng.random() < 0.2 else 4 for k in ("r", "lora_alpha", "alpha")}
    config |= {"peft_type": kind, "base_model_name_or_path": "base", "token_indices": [0, int(rng.integers(6))]}
    if rng.random() < 0.3:
        config |= {"init_lora_weights": "pissa", "fan_in_fan_out": True, "alpha_pattern": {"q": 3}, "rank_pattern": [1]}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    try:
        found = load.load(tmp_path / "a")
    except (UnreadableModelError, NotAModelError):
        return
    assert found.tensors["q.weight"].array().shape == (4, 4)
    assert found.digest


def test_no_pattern_can_take_for_ever() -> None:
    adapter = Adapter(Path("a"), {}, {"alpha_pattern": {"(a|b)*c": 1}})
    with pytest.raises(UnreadableModelError):
        adapter.option_for("alpha_pattern", "a" * 40, 0)
    plain = Adapter(Path("a"), {}, {"alpha_pattern": {r"x\.\d+\.q": 1, "q": 2}})
    assert [plain.option_for("alpha_pattern", n, 0) for n in ("y.x.12.q", "y.z.q", "yq")] == [1, 2, 0]
