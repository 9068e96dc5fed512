"""Networks as people write them, small: what the dependency graph has to cut without a configuration.

All take images `[n, 1, 8, 8]` with values in [0, 1] and give ten scores, but for `unet` and `pixel_shuffle`, which give
a map of scores.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def conv(a: int, b: int, kernel: int = 3, **more: int) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False, **more), nn.BatchNorm2d(b), nn.ReLU())


class Mean(nn.Module):
    """The mean over all axes behind the channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(2)


class Residual(nn.Module):
    """Basic blocks, one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 12)
        self.inner = nn.ModuleList([self.block(12, 10, 12), self.block(12, 14, 20)])
        self.projection = nn.Sequential(nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20))
        self.head = nn.Linear(20, 10)

    @staticmethod
    def block(a: int, inner: int, b: int) -> nn.Sequential:
        return nn.Sequential(conv(a, inner), nn.Conv2d(inner, b, 3, padding=1, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.inner[0](x))
        x = F.relu(self.projection(x) + self.inner[1](x))
        return self.head(x.mean((2, 3)))


def vgg() -> nn.Module:
    """Convolutions and pooling, then a flattened map into linear layers."""
    return nn.Sequential(
        conv(1, 12), conv(12, 14), nn.MaxPool2d(2), conv(14, 16), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    """Channels weighted by a small network of their means."""

    def __init__(self, n: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(n, inner, 1), nn.Conv2d(inner, n, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self, n: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(n, inner, 1), conv(inner, inner, groups=inner), SqueezeExcite(inner, 6),
            nn.Conv2d(inner, n, 1, bias=False), nn.BatchNorm2d(n),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def mobile() -> nn.Module:
    """As MobileNet."""
    return nn.Sequential(conv(1, 12), Inverted(12, 24), Inverted(12, 24), conv(12, 20, 1), Mean(), nn.Linear(20, 10))


class Dense(nn.Module):
    """Every layer reads all that came before it, side by side; a transition halves the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 10, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(10 + 8 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(10 + 8 * i, 8, 3, padding=1, bias=False) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(34), nn.ReLU(), nn.Conv2d(34, 17, 1, bias=False))
        self.norm, self.head = nn.BatchNorm2d(17), nn.Linear(17, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class UNet(nn.Module):
    """Two scales, transposed convolutions on the way up, skip connections side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(1, 10), conv(10, 14), conv(14, 18)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(18, 12, 2, stride=2), nn.ConvTranspose2d(12, 9, 4, 2, padding=1)])
        self.mix = nn.ModuleList([conv(26, 12), conv(19, 10)])
        self.head = nn.Conv2d(10, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        x = self.down[2](F.max_pool2d(b, 2))
        x = self.mix[0](torch.cat([self.up[0](x), b], 1))
        return self.head(self.mix[1](torch.cat([self.up[1](x), a], 1)))


class Attention(nn.Module):
    """Attention with one projection for queries, keys and values, under a name of its own."""

    def __init__(self, n: int, heads: int, *, fast: bool = True) -> None:
        super().__init__()
        self.n_heads, self.fast = heads, fast
        self.mixer_in, self.mixer_out = nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.mixer_in(x).reshape(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        if self.fast:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.mixer_out(y.transpose(1, 2).reshape(n, length, -1))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm."""

    def __init__(self, n: int, heads: int, inner: int, *, fast: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.attention = Attention(n, heads, fast=fast)
        self.fc1, self.fc2 = nn.Linear(n, inner), nn.Linear(inner, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """As ViT: patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.positions = nn.Parameter(torch.randn(1, 17, 24) * 0.1)
        self.blocks = nn.Sequential(Block(24, 4, 40), Block(24, 4, 40))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Swin(nn.Module):
    """Attention in windows, then in shifted windows; patches are merged between."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 1)
        self.blocks = nn.ModuleList([Block(16, 4, 28, fast=False) for _ in range(2)])
        self.merge_norm, self.merge = nn.LayerNorm(64), nn.Linear(64, 24, bias=False)
        self.last = Block(24, 4, 40, fast=False)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        for shift, block in enumerate(self.blocks):
            y = torch.roll(x, (-shift, -shift), (1, 2)).view(n, h // 4, 4, w // 4, 4, c)
            y = block(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c))
            y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
            x = torch.roll(y, (shift, shift), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        x = self.merge(self.merge_norm(x)).flatten(1, 2)
        return self.head(self.norm(self.last(x)).mean(1))


class RMSNorm(nn.Module):
    """As in Llama."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class GroupedQueries(nn.Module):
    """Attention in which two queries share one key, with rotary positions, then SwiGLU."""

    def __init__(self, n: int, heads: int, keys: int, inner: int) -> None:
        super().__init__()
        self.size = n // heads
        self.norm1, self.norm2 = RMSNorm(n), RMSNorm(n)
        self.wq, self.wo = nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False)
        self.wk, self.wv = (nn.Linear(n, keys * self.size, bias=False) for _ in range(2))
        self.w1, self.w3 = nn.Linear(n, inner, bias=False), nn.Linear(n, inner, bias=False)
        self.w2 = nn.Linear(inner, n, bias=False)

    def heads(self, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return layer(x).view(*x.shape[:2], -1, self.size).transpose(1, 2)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(x.shape[2])[:, None] / 10.0 ** (torch.arange(0, self.size, 2) / self.size)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = self.rotated(self.heads(y, self.wq)), self.rotated(self.heads(y, self.wk)), self.heads(y, self.wv)
        k, v = (z.repeat_interleave(q.shape[1] // k.shape[1], 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Tokens(nn.Module):
    """Pixels as tokens, and positions, by a table."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(17, n), nn.Embedding(16, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (F.avg_pool2d(x, 2) * 16).long().flatten(1)
        return self.words(x) + self.positions(torch.arange(x.shape[1]))


class Llama(nn.Module):
    """As Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(24)
        self.layers = nn.Sequential(GroupedQueries(24, 6, 3, 40), GroupedQueries(24, 6, 3, 40))
        self.norm, self.output = RMSNorm(24), nn.Linear(24, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(self.layers(self.tokens(x)))[:, -1])


class Bert(nn.Module):
    """As BERT: norms behind the sums, a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = Tokens(24), nn.LayerNorm(24)
        layer = nn.TransformerEncoderLayer(24, 4, 40, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(24, 18), nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.pooler(self.encoder(self.norm(self.tokens(x))).mean(1))))


def grouped() -> nn.Module:
    """As ResNeXt: convolutions in groups between convolutions of one pixel."""
    return nn.Sequential(
        conv(1, 24), conv(24, 24, 3, groups=6), conv(24, 16, 1), conv(16, 32, 3, groups=16), conv(32, 16, 1), Mean(),
        nn.Linear(16, 10),
    )  # fmt: skip


def prelu() -> nn.Module:
    """A slope for each channel."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 14, 3, padding=1), nn.PReLU(14), Mean(),
        nn.Linear(14, 16), nn.PReLU(16), nn.Linear(16, 10),
    )  # fmt: skip


class Lengths(nn.Module):
    """Convolutions along one axis, one of them with holes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(8, 16, 3, padding=1), nn.Conv1d(16, 20, 3, padding=2, dilation=2)
        self.up, self.norm = nn.ConvTranspose1d(20, 14, 3, 2, padding=1, output_padding=1), nn.BatchNorm1d(14)
        self.head = nn.Linear(14, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(F.relu(self.a(x.flatten(1, 2)))))
        return self.head(F.relu(self.norm(self.up(x))).mean(2))


class Volumes(nn.Module):
    """Convolutions in three dimensions, plain and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv3d(1, 10, 3, padding=1),
            nn.Conv3d(10, 14, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        self.norm, self.up = nn.BatchNorm3d(14), nn.ConvTranspose3d(14, 12, 2, 2)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x.reshape(len(x), 1, 4, 4, 4)))
        x = F.relu(self.up(F.relu(self.norm(self.b(x)))))
        return self.head(F.max_pool3d(x, 2).mean((2, 3, 4)))


class PixelShuffle(nn.Module):
    """As super resolution: four channels become four pixels of one; on the way in the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(1, 10), nn.Conv2d(40, 14, 3, padding=1)
        self.up, self.last = nn.Conv2d(14, 32, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1)
        self.fold, self.unfold = nn.PixelUnshuffle(2), nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(self.fold(self.a(x))))
        return self.last(F.relu(self.unfold(self.up(x))))


class Recurrent(nn.Module):
    """A recurrent network over the rows of the image, behind a linear layer."""

    def __init__(self, kind: type[nn.RNNBase], **more: bool | int) -> None:
        super().__init__()
        self.read = nn.Linear(8, 14)
        self.cells = kind(14, 16, batch_first=True, **more)  # type: ignore[arg-type]
        self.between = nn.Linear(32 if self.cells.bidirectional else 16, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.cells(F.relu(self.read(x.flatten(1, 2))))
        return self.head(F.relu(self.between(x.mean(1))))


class Gated(nn.Module):
    """Gated linear units, one with both halves in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.gate, self.up = nn.Linear(64, 40), nn.Linear(20, 24), nn.Linear(20, 24)
        self.down, self.head = nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.glu(self.both(x.flatten(1)))
        return self.head(F.relu(self.down(F.silu(self.gate(x)) * self.up(x))))


def norms() -> nn.Module:
    """Group norm and instance norm between convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 14, 3, padding=1),
        nn.InstanceNorm2d(14, affine=True), nn.ReLU(), nn.Conv2d(14, 12, 3, padding=1), nn.InstanceNorm2d(12),
        nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip


class ConvNext(nn.Module):
    """As ConvNeXt: a large depthwise kernel, a norm over channels, an inverted bottleneck, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.gamma = nn.Parameter(torch.full((16,), 0.5))
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((2, 3))))


class ShuffleNet(nn.Module):
    """As ShuffleNet v2: half of the channels go through a branch, then both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unit = conv(1, 16), nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8), conv(8, 8, 1))
        self.last, self.head = conv(16, 18, 1), nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, self.unit(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))


class AttentionPooling(nn.Module):
    """One query that is a weight looks at all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(1, 12), nn.Conv2d(12, 24, 2, 2))
        self.query = nn.Parameter(torch.randn(1, 1, 24) * 0.2)
        self.pool = nn.MultiheadAttention(24, 4, batch_first=True)
        self.fc1, self.head = nn.Linear(24, 20), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        y, _ = self.pool(self.query.expand(len(x), -1, -1), x, x)
        return self.head(F.relu(self.fc1(y[:, 0])))


def weight_norm() -> nn.Module:
    """Layers whose weight has a direction and a length."""
    normed = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        normed(nn.Conv2d(1, 12, 3, padding=1)), nn.ReLU(), normed(nn.Conv2d(12, 14, 3, padding=1)), nn.ReLU(), Mean(),
        nn.Linear(14, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "vgg": vgg, "mobile": mobile, "dense": Dense, "unet": UNet, "vit": Vit, "swin": Swin,
    "llama": Llama, "bert": Bert, "grouped": grouped, "prelu": prelu, "lengths": Lengths, "volumes": Volumes,
    "pixel_shuffle": PixelShuffle, "lstm": lambda: Recurrent(nn.LSTM), "gru": lambda: Recurrent(nn.GRU),
    "rnn_stack": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), "gated": Gated, "norms": norms,
    "convnext": ConvNext, "shuffle": ShuffleNet, "attention_pooling": AttentionPooling, "weight_norm": weight_norm,
}  # fmt: skip
"""By name: what builds an instance with random weights."""
