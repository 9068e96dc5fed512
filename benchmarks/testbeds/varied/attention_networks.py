"""Small transformers under the names of the files that people publish: ViT (transformers, timm), Llama, GPT-2, BERT.

One forward function serves all of them; a design says which norm, which positions and which feed-forward layer.
`configuration` is the dictionary that transformers would save. `matches_transformers` holds the functions against it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from testbeds.varied.structure import Attention, Axis, Linear, Norm, Structure, Units

Design = dict[str, Any]
Parameters = dict[str, torch.Tensor]

EPS = {"vit": 1e-12, "timm": 1e-6, "gpt2": 1e-5, "bert": 1e-12, "llama": 1e-6}
LANGUAGE = ("llama", "gpt2", "bert")


@dataclass(frozen=True)
class Names:
    """Names of one kind of file; `{i}` is the number of the layer. Maps are prefixes, others whole tensors."""

    layer: str
    norm1: str
    norm2: str
    q: str
    k: str
    v: str
    o: str
    up: str
    down: str
    last: str
    table: str
    head: str
    positions: str | None = None
    first: str | None = None
    gate: str | None = None


FORMS = {
    "vit": Names(
        "vit.encoder.layer.{i}", "layernorm_before", "layernorm_after", "attention.attention.query",
        "attention.attention.key", "attention.attention.value", "attention.output.dense", "intermediate.dense",
        "output.dense", "vit.layernorm", "vit.embeddings.patch_embeddings.projection", "classifier",
        "vit.embeddings.position_embeddings", "vit.embeddings.cls_token",
    ),
    "timm": Names(
        "blocks.{i}", "norm1", "norm2", "attn.qkv", "attn.qkv", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm",
        "patch_embed.proj", "head", "pos_embed", "cls_token",
    ),
    "gpt2": Names(
        "transformer.h.{i}", "ln_1", "ln_2", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", "mlp.c_fc",
        "mlp.c_proj", "transformer.ln_f", "transformer.wte", "lm_head", "transformer.wpe.weight",
    ),
    "llama": Names(
        "model.layers.{i}", "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "model.norm", "model.embed_tokens",
        "lm_head", gate="mlp.gate_proj",
    ),
    "bert": Names(
        "bert.encoder.layer.{i}", "attention.output.LayerNorm", "output.LayerNorm", "attention.self.query",
        "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense",
        "bert.embeddings.LayerNorm", "bert.embeddings.word_embeddings", "cls.predictions.decoder",
        "bert.embeddings.position_embeddings.weight",
    ),
}  # fmt: skip
FUSED = ("timm", "gpt2")


@dataclass(frozen=True)
class Layer:
    """Where the parts of one layer lie."""

    attention: Attention
    up: Linear
    down: Linear
    gate: Linear | None
    norm1: str
    norm2: str


def layer(design: Design, i: int) -> Layer:
    form, d, heads = design["form"], design["width"], design["heads"]
    n, kv = FORMS[form], design.get("kv_heads", heads)
    flip, bare = form == "gpt2", form == "llama"

    def linear(part: str, rows: tuple[int, int] | None = None) -> Linear:
        name = f"{n.layer.format(i=i)}.{part}"
        return Linear(f"{name}.weight", None if bare else f"{name}.bias", rows, flip)

    cuts = [(0, d), (d, 2 * d), (2 * d, 3 * d)] if form in FUSED else [None] * 3
    q, k, v = (linear(part, cut) for part, cut in zip((n.q, n.k, n.v), cuts, strict=True))
    prefix = n.layer.format(i=i)
    attention = Attention(q, k, v, linear(n.o), heads, kv, form == "llama")
    gate = linear(n.gate) if n.gate else None
    return Layer(attention, linear(n.up), linear(n.down), gate, f"{prefix}.{n.norm1}", f"{prefix}.{n.norm2}")


def start(design: Design, rng: torch.Generator) -> Parameters:
    """Normal weights of deviation .02, gains of 1, offsets of 0; the tables first."""
    form, d, inner = design["form"], design["width"], design["inner"]
    n, out = FORMS[form], {}
    kv = d // design["heads"] * design.get("kv_heads", design["heads"])

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * design.get("deviation", 0.02)

    def linear(prefix: str, rows: int, columns: int) -> None:
        out[f"{prefix}.weight"] = normal(columns, rows) if form == "gpt2" else normal(rows, columns)
        if form != "llama":
            out[f"{prefix}.bias"] = torch.zeros(rows)

    def norm(prefix: str) -> None:
        out[f"{prefix}.weight"] = torch.ones(d)
        if form != "llama":
            out[f"{prefix}.bias"] = torch.zeros(d)

    if form in LANGUAGE:
        out[f"{n.table}.weight"] = normal(design["vocabulary"], d)
        if n.positions:
            out[n.positions] = normal(design["positions"], d)
    else:
        side, patch, channels = design["input"]["side"], design["patch"], design["input"]["channels"]
        out[f"{n.table}.weight"], out[f"{n.table}.bias"] = normal(d, channels, patch, patch), torch.zeros(d)
        out[n.first], out[n.positions] = normal(1, 1, d), normal(1, (side // patch) ** 2 + 1, d)
    if form == "bert":
        out["bert.embeddings.token_type_embeddings.weight"] = normal(2, d)
    for i in range(design["layers"]):
        prefix = n.layer.format(i=i)
        norm(f"{prefix}.{n.norm1}")
        norm(f"{prefix}.{n.norm2}")
        maps = [(n.q, 3 * d, d)] if form in FUSED else [(n.q, d, d), (n.k, kv, d), (n.v, kv, d)]
        maps += [(n.o, d, d), (n.up, inner, d), (n.down, d, inner)] + ([(n.gate, inner, d)] if n.gate else [])
        for part, rows, columns in maps:
            linear(f"{prefix}.{part}", rows, columns)
    norm(n.last)
    if form == "bert":
        linear("cls.predictions.transform.dense", d, d)
        norm("cls.predictions.transform.LayerNorm")
        out["cls.predictions.bias"] = torch.zeros(design["vocabulary"])
    elif form not in LANGUAGE:
        out[f"{n.head}.weight"], out[f"{n.head}.bias"] = normal(design["input"]["classes"], d), torch.zeros(
            design["input"]["classes"])  # fmt: skip
    elif not design["tied"]:
        out[f"{n.head}.weight"] = normal(design["vocabulary"], d)
    return out


def forward(design: Design, p: Parameters, x: torch.Tensor, learning: bool = False) -> torch.Tensor:
    """Logits: `[n, classes]` of pictures, `[n, length, vocabulary]` of numbers of tokens `[n, length]`."""
    form = design["form"]
    n = FORMS[form]
    post = form == "bert"
    h = _embedded(design, p, x)
    h = _norm(form, p, n.last, h) if post else h
    for i in range(design["layers"]):
        one = layer(design, i)
        read = h if post else _norm(form, p, one.norm1, h)
        h = h + _attended(one.attention, p, read, form in ("llama", "gpt2"))
        h = _norm(form, p, one.norm1, h) if post else h
        read = h if post else _norm(form, p, one.norm2, h)
        h = h + _forward(form, p, one, read)
        h = _norm(form, p, one.norm2, h) if post else h
    table = p.get(f"{n.head}.weight", p.get(f"{n.table}.weight"))
    if post:
        last = "cls.predictions.transform"
        h = F.gelu(_apply(p, Linear(f"{last}.dense.weight", f"{last}.dense.bias"), h))
        return F.linear(_norm(form, p, f"{last}.LayerNorm", h), table, p["cls.predictions.bias"])
    h = _norm(form, p, n.last, h)
    return F.linear(h, table) if form in LANGUAGE else F.linear(h[:, 0], table, p[f"{n.head}.bias"])


def _embedded(design: Design, p: Parameters, x: torch.Tensor) -> torch.Tensor:
    n = FORMS[design["form"]]
    if design["form"] in LANGUAGE:
        h = F.embedding(x, p[f"{n.table}.weight"])
        if n.positions:
            h = h + p[n.positions][: x.shape[1]]
        return h + p["bert.embeddings.token_type_embeddings.weight"][0] if design["form"] == "bert" else h
    h = F.conv2d(x, p[f"{n.table}.weight"], p[f"{n.table}.bias"], design["patch"]).flatten(2).transpose(1, 2)
    return torch.cat([p[n.first].expand(len(x), -1, -1), h], 1) + p[n.positions]


def _norm(form: str, p: Parameters, name: str, h: torch.Tensor) -> torch.Tensor:
    if form == "llama":
        return F.rms_norm(h, h.shape[-1:], p[f"{name}.weight"], EPS[form])
    return F.layer_norm(h, h.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], EPS[form])


def _apply(p: Parameters, map_: Linear, h: torch.Tensor) -> torch.Tensor:
    return F.linear(h, map_.get(p), map_.offset(p))


def _attended(a: Attention, p: Parameters, h: torch.Tensor, causal: bool) -> torch.Tensor:
    n, length = h.shape[:2]
    q, k, v = (
        _apply(p, m, h).view(n, length, c, -1).transpose(1, 2)
        for m, c in ((a.q, a.heads), (a.k, a.kv_heads), (a.v, a.kv_heads))
    )
    if a.rotary:
        q, k = rotated(q), rotated(k)
    k, v = (t.repeat_interleave(a.heads // a.kv_heads, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return _apply(p, a.o, out.transpose(1, 2).flatten(2))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Llama's rotary positions: planes of number i and i + half."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] / 10000.0 ** (torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _forward(form: str, p: Parameters, one: Layer, h: torch.Tensor) -> torch.Tensor:
    up = _apply(p, one.up, h)
    if one.gate is not None:
        return _apply(p, one.down, F.silu(_apply(p, one.gate, h)) * up)
    return _apply(p, one.down, F.gelu(up, approximate="tanh" if form == "gpt2" else "none"))


def structure(design: Design) -> Structure:
    """Hidden units, heads, stream and norms."""
    form = design["form"]
    n, every = FORMS[form], [layer(design, i) for i in range(design["layers"])]
    units = [_hidden(one, i, form) for i, one in enumerate(every)]
    maps = [m for one in every for m in (one.attention.q, one.attention.k, one.attention.v, one.up, one.gate) if m]
    back = [m for one in every for m in (one.attention.o, one.down)]
    read = [Axis(m.weight, "read", 0 if m.transposed else 1) for m in maps]
    write = [Axis(m.weight, "write", 1 if m.transposed else 0) for m in back]
    write += [Axis(m.bias, "write") for m in back if m.bias]
    write.append(Axis(f"{n.table}.weight", "write", 1 if form in LANGUAGE else 0))
    if n.positions:
        write.append(Axis(n.positions, "write", 1 if form in LANGUAGE else 2))
    if n.first:
        write += [Axis(n.first, "write", 2), Axis(f"{n.table}.bias", "write")]
    if form == "bert":
        write.append(Axis("bert.embeddings.token_type_embeddings.weight", "write", 1))
        last = "cls.predictions.transform"
        read += [Axis(f"{last}.dense.weight", "read", 1), Axis(f"{last}.dense.weight", "write")]
        read += [Axis(f"{last}.{x}", "write") for x in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")]
    else:
        read.append(Axis(f"{n.head}.weight", "read", 1))
    names = [x for one in every for x in (one.norm1, one.norm2)] + [n.last]
    gains = [Axis(f"{x}.weight", "free") for x in names]
    gains += [Axis(f"{x}.bias", "write") for x in names if form != "llama"]
    unique = tuple(dict.fromkeys((*write, *read, *gains)))
    stream = Units("stream", unique, "linear", stream=True)
    return Structure(
        (*units, stream),
        stream={"llama": "rms", "bert": "post"}.get(form, "layer"),
        attentions=tuple(one.attention for one in every),
        norms=() if form == "bert" else tuple(_norms(design, every)),
        gated=tuple((one.up, one.down, one.gate) for one in every if one.gate),
        blocks=tuple(n.layer.format(i=i) for i in range(design["layers"])),
        vocabulary=_vocabulary(form),
        tied=(f"{n.head}.weight", f"{n.table}.weight") if design.get("tied") else None,
    )


def _hidden(one: Layer, i: int, form: str) -> Units:
    out = [m for m in (one.gate, one.up) if m]
    axes = [Axis(m.weight, "write" if m is one.up else "free", 1 if m.transposed else 0) for m in out]
    axes += [Axis(m.bias, "write") for m in out if m.bias]
    axes.append(Axis(one.down.weight, "read", 0 if one.down.transposed else 1))
    return Units(f"feed-forward {i}", tuple(axes), "linear" if one.gate else "gelu", layer=i)


def _norms(design: Design, every: list[Layer]) -> list[Norm]:
    bias, n, out = design["form"] != "llama", FORMS[design["form"]], []
    for one in every:
        a = one.attention
        out.append(Norm(f"{one.norm1}.weight", f"{one.norm1}.bias" if bias else None, (a.q, a.k, a.v)))
        up = (one.up, one.gate) if one.gate else (one.up,)
        out.append(Norm(f"{one.norm2}.weight", f"{one.norm2}.bias" if bias else None, up))
    head = Linear(f"{n.head}.weight", f"{n.head}.bias" if design["form"] not in LANGUAGE else None)
    out.append(Norm(f"{n.last}.weight", f"{n.last}.bias" if bias else None, (head,)))
    return out


def _vocabulary(form: str) -> tuple[Axis, ...]:
    if form not in LANGUAGE:
        return ()
    n = FORMS[form]
    extra = (Axis("cls.predictions.bias", "free"),) if form == "bert" else ()
    return (Axis(f"{n.table}.weight", "free"), Axis(f"{n.head}.weight", "free"), *extra)


def configuration(design: Design) -> dict[str, Any] | None:
    """What transformers saves beside the weights; timm's has no architecture of transformers."""
    import transformers

    form, d = design["form"], design["width"]
    same = {"num_hidden_layers": design["layers"], "num_attention_heads": design["heads"], "hidden_size": d,
            "intermediate_size": design["inner"]}  # fmt: skip
    if form == "timm":
        return None
    if form == "vit":
        i = design["input"]
        made = transformers.ViTConfig(**same, image_size=i["side"], patch_size=design["patch"],
                                      num_channels=i["channels"], num_labels=i["classes"])  # fmt: skip
    elif form == "llama":
        made = transformers.LlamaConfig(
            **same, vocab_size=design["vocabulary"], num_key_value_heads=design["kv_heads"],
            tie_word_embeddings=design["tied"], max_position_embeddings=256,
        )  # fmt: skip
    elif form == "gpt2":
        made = transformers.GPT2Config(
            vocab_size=design["vocabulary"], n_embd=d, n_layer=design["layers"], n_head=design["heads"],
            n_inner=design["inner"], n_positions=design["positions"], tie_word_embeddings=design["tied"],
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    else:
        made = transformers.BertConfig(**same, vocab_size=design["vocabulary"],
                                       max_position_embeddings=design["positions"])  # fmt: skip
    word = {"vit": "ViTForImageClassification", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel",
            "bert": "BertForMaskedLM"}[form]  # fmt: skip
    return {**made.to_dict(), "architectures": [word]}


def matches_transformers(design: Design, p: Parameters, x: torch.Tensor) -> float:
    """Largest difference to what transformers computes from the same tensors, by the largest output."""
    import tempfile

    import transformers
    from safetensors.torch import save_file

    found = configuration(design)
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, type_config(found)).from_dict(found).save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in p.items()}, f"{folder}/model.safetensors", {"format": "pt"})
        module = getattr(transformers, found["architectures"][0]).from_pretrained(folder).eval()
    with torch.no_grad():
        theirs, ours = module(x).logits, forward(design, p, x)
    return float((theirs - ours).abs().max() / theirs.abs().max()) if math.prod(ours.shape) else 0.0


def type_config(found: dict[str, Any]) -> str:
    return {"vit": "ViTConfig", "llama": "LlamaConfig", "gpt2": "GPT2Config", "bert": "BertConfig"}[found["model_type"]]
