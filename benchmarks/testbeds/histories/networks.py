"""Networks of eleven kinds, of plain torch and of transformers, in sizes drawn at random."""

from typing import Any

import numpy as np
import torch
from torch import nn

KINDS = ("mlp", "cnn", "cnn-norm", "resnet", "separable", "lstm", "unet", "vit", "bert", "gpt2", "llama")
TEXTS = ("bert", "gpt2", "llama")
SIDE, LENGTH, VOCABULARY = 16, 32, 256

Shape = dict[str, Any]


def drawn(kind: str, rng: np.random.Generator) -> Shape:
    """A size for one network of a kind."""

    def width(low: int, high: int, step: int = 1) -> int:
        return max(step, round(float(np.exp(rng.uniform(np.log(low), np.log(high)))) / step) * step)

    act = str(rng.choice(["relu", "gelu", "tanh" if kind == "mlp" else "relu"]))
    if kind == "mlp":
        return {"widths": [width(64, 320) for _ in range(int(rng.integers(2, 4)))], "act": act}
    if kind in ("cnn", "cnn-norm"):
        return {"widths": [width(16, 72) for _ in range(int(rng.integers(2, 5)))], "act": act, "dense": width(48, 160)}
    if kind in ("resnet", "separable"):
        first = width(12, 28, 4)
        return {"widths": [first, 2 * first, 4 * first][: int(rng.integers(2, 4))], "blocks": int(rng.integers(1, 3))}
    if kind == "lstm":
        return {"hidden": width(48, 128), "layers": int(rng.integers(1, 3))}
    if kind == "unet":
        return {"base": width(12, 28, 4)}
    heads = int(rng.choice([2, 4, 6]))
    d = width(48, 144, 4 * heads)
    out = {"d": d, "heads": heads, "layers": int(rng.integers(2, 5)), "inner": width(2 * d, 4 * d, 4)}
    return out | ({"kv": int(rng.choice([1, 2, heads]))} if kind == "llama" else {})


def built(kind: str, shape: Shape) -> nn.Module:
    """A network at its own random start (torch's generator has been seeded by the caller)."""
    if kind in ("mlp", "cnn", "cnn-norm"):
        return _chain(kind, shape)
    if kind in ("resnet", "separable"):
        return _Residual(shape, separable=kind == "separable")
    if kind == "lstm":
        return _Recurrent(**shape)
    if kind == "unet":
        return _Denoiser(shape["base"])
    return _transformer(kind, shape)


def head(kind: str) -> str:
    """Prefix of the tensors of the head; empty where a network has none of its own."""
    return {"lstm": "head.", "vit": "classifier.", "resnet": "head.", "separable": "head.", "unet": "last."}.get(
        kind, "" if kind in TEXTS else "head."
    )


def _act(name: str) -> nn.Module:
    return {"relu": nn.ReLU(), "gelu": nn.GELU(), "tanh": nn.Tanh()}[name]


def _chain(kind: str, shape: Shape) -> nn.Module:
    parts: dict[str, nn.Module] = {}
    if kind == "mlp":
        before = SIDE * SIDE
        parts["flat"] = nn.Flatten()
        for i, w in enumerate(shape["widths"]):
            parts |= {f"dense{i}": nn.Linear(before, w), f"act{i}": _act(shape["act"])}
            before = w
    else:
        before, side = 1, SIDE
        for i, w in enumerate(shape["widths"]):
            parts[f"conv{i}"] = nn.Conv2d(before, w, 3, padding=1, bias=kind == "cnn")
            if kind == "cnn-norm":
                parts[f"norm{i}"] = nn.BatchNorm2d(w)
            parts[f"act{i}"] = _act(shape["act"])
            if i < 3:
                parts[f"pool{i}"], side = nn.MaxPool2d(2), side // 2
            before = w
        parts |= {"flat": nn.Flatten(), "dense": nn.Linear(before * side * side, shape["dense"])}
        parts["last_act"], before = _act(shape["act"]), shape["dense"]
    parts["head"] = nn.Linear(before, 10)
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int, *, separable: bool) -> None:
        super().__init__()
        if separable:
            self.conv1 = nn.Sequential(
                nn.Conv2d(into, 2 * into, 1, bias=False), nn.BatchNorm2d(2 * into), nn.ReLU6(),
                nn.Conv2d(2 * into, 2 * into, 3, stride, 1, groups=2 * into, bias=False),
            )  # fmt: skip
            self.norm1, self.conv2 = nn.BatchNorm2d(2 * into), nn.Conv2d(2 * into, out, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
            self.norm1, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        same = into == out and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(into, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.short(x))


class _Residual(nn.Module):
    def __init__(self, shape: Shape, *, separable: bool) -> None:
        super().__init__()
        before = shape["widths"][0]
        self.stem, self.norm = nn.Conv2d(1, before, 3, padding=1, bias=False), nn.BatchNorm2d(before)
        blocks = []
        for i, w in enumerate(shape["widths"]):
            for j in range(shape["blocks"]):
                blocks.append(_Block(before, w, 2 if i and not j else 1, separable=separable))
                before = w
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class _Recurrent(nn.Module):
    """Reads a picture row by row."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(SIDE, hidden, layers, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x[:, 0])[0][:, -1])


class _Denoiser(nn.Module):
    """Tells the noise in a picture: group norms, one way down and one up, as diffusion models have."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.first, self.time = nn.Conv2d(1, base, 3, padding=1), nn.Linear(1, base)
        self.down1, self.norm1 = nn.Conv2d(base, base, 3, padding=1), nn.GroupNorm(4, base)
        self.down2, self.norm2 = nn.Conv2d(base, 2 * base, 3, 2, 1), nn.GroupNorm(4, 2 * base)
        self.middle, self.norm3 = nn.Conv2d(2 * base, 2 * base, 3, padding=1), nn.GroupNorm(4, 2 * base)
        self.up, self.norm4 = nn.ConvTranspose2d(2 * base, base, 2, 2), nn.GroupNorm(4, 2 * base)
        self.join, self.last = nn.Conv2d(2 * base, base, 3, padding=1), nn.Conv2d(base, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + self.time(strength[:, None])[:, :, None, None]
        h = h + torch.nn.functional.silu(self.norm1(self.down1(h)))
        low = torch.nn.functional.silu(self.norm2(self.down2(h)))
        low = low + torch.nn.functional.silu(self.norm3(self.middle(low)))
        both = self.norm4(torch.cat([h, self.up(low)], 1))
        return self.last(torch.nn.functional.silu(self.join(both)))


def _transformer(kind: str, s: Shape) -> nn.Module:
    import transformers as t

    same = {"hidden_size": s["d"], "num_hidden_layers": s["layers"], "num_attention_heads": s["heads"],
            "intermediate_size": s["inner"]}  # fmt: skip
    if kind == "vit":
        return t.ViTForImageClassification(
            t.ViTConfig(**same, image_size=SIDE, patch_size=4, num_channels=1, num_labels=10)
        )
    if kind == "bert":
        return t.BertForMaskedLM(t.BertConfig(**same, vocab_size=VOCABULARY, max_position_embeddings=LENGTH))
    if kind == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=s["d"], n_layer=s["layers"],
                         n_head=s["heads"], n_inner=s["inner"])
        )  # fmt: skip
    return t.LlamaForCausalLM(
        t.LlamaConfig(**same, vocab_size=VOCABULARY, num_key_value_heads=s["kv"], max_position_embeddings=LENGTH)
    )
