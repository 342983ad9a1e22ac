"""More networks, small: those whose channels are coupled in ways that plain convolutional networks do not show."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .models import conv_norm


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channel shuffle."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNet v2: half of the channels pass, or, with stride 2, two branches."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        half = fan_out // 2
        self.stride, self.half = stride, half
        inner = fan_in if stride > 1 else half
        self.main = nn.Sequential(
            conv_norm(inner, half, 1),
            conv_norm(half, half, 3, stride, half, act=None),
            conv_norm(half, half, 1),
        )
        self.side = nn.Sequential(
            conv_norm(fan_in, fan_in, 3, stride, fan_in, act=None), conv_norm(fan_in, half, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            kept, moved = torch.split(x, [self.half, self.half], 1)
            return shuffle(torch.cat([kept, self.main(moved)], 1), 2)
        return shuffle(torch.cat([self.side(x), self.main(x)], 1), 2)


def shufflenet_v2() -> nn.Module:
    """ShuffleNet v2 (Ma et al. 2018)."""
    return nn.Sequential(
        conv_norm(3, 8, 3, 2), ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 16, 1),
        ShuffleUnit(16, 32, 2), ShuffleUnit(32, 32, 1), conv_norm(32, 48, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(48, 10),
    )  # fmt: skip


class GroupedUnit(nn.Module):
    """A unit of ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        inner = channels // 2
        self.groups = groups
        self.squeeze = conv_norm(channels, inner, 1, groups=groups)
        self.depthwise = conv_norm(inner, inner, 3, groups=inner, act=None)
        self.expand = conv_norm(inner, channels, 1, groups=groups, act=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = shuffle(self.squeeze(x), self.groups)
        return torch.relu(x + self.expand(self.depthwise(y)))


def shufflenet_v1() -> nn.Module:
    """ShuffleNet v1 (Zhang et al. 2017)."""
    return nn.Sequential(
        conv_norm(3, 36, 3, 2), GroupedUnit(36, 3), GroupedUnit(36, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1), nn.Linear(36, 10),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, 1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    """Layer norm over axis 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SpatialMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def convnext() -> nn.Module:
    """ConvNeXt (Liu et al. 2022)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ChannelsFirstNorm(8), ConvNeXtBlock(8), ConvNeXtBlock(8),
        ChannelsFirstNorm(8), nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16), ConvNeXtBlock(16),
        SpatialMean(), nn.LayerNorm(16), nn.Linear(16, 10),
    )  # fmt: skip


class SelfAttention(nn.Module):
    """Attention as it is written by hand: separate projections, (batch, heads, tokens, dimensions)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, self.size)
        q, k, v = (p(x).reshape(shape).permute(0, 2, 1, 3) for p in (self.q, self.k, self.v))
        scores = torch.softmax(q @ k.transpose(-1, -2) / self.size**0.5, -1)
        return self.out((scores @ v).permute(0, 2, 1, 3).reshape(batch, tokens, width))


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT (Devlin et al. 2019): embeddings, post-norm layers, a pooler on the first token."""

    def __init__(self, width: int = 24, heads: int = 3, depth: int = 2, words: int = 50) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(16, width)
        # Not "ids": torch.onnx gives a buffer the name of an input that is called like it.
        self.register_buffer("order", torch.arange(7).reshape(1, 7))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(BertLayer(width, heads) for _ in range(depth)))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.norm(self.words(ids) + self.places(self.order)))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class CausalAttention(nn.Module):
    """Fused projection and the built-in attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        parts = torch.split(self.qkv(x), self.width, 2)
        q, k, v = (p.reshape(shape).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class Gpt2(nn.Module):
    """GPT-2 (Radford et al. 2019): pre-norm, tanh GELU, the output layer tied to the embedding."""

    def __init__(self, width: int = 24, heads: int = 3, depth: int = 2, words: int = 40) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(1, 6, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.attention = nn.ModuleList(CausalAttention(width, heads) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.place
        for i, attention in enumerate(self.attention):
            x = x + attention(self.norms[2 * i](x))
            y = F.gelu(self.up[i](self.norms[2 * i + 1](x)), approximate="tanh")
            x = x + self.down[i](y)
        return self.head(self.norms[-1](x))


class GatedMlp(nn.Module):
    """SwiGLU behind an RMS norm, with grouped queries in front, as in LLaMA."""

    def __init__(self, width: int = 24, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.embed = nn.Linear(6, width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, shared * self.size, bias=False)
        self.v = nn.Linear(width, shared * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 40, bias=False) for _ in range(2))
        self.down = nn.Linear(40, width, bias=False)
        self.norm = nn.Parameter(torch.rand(width) + 0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        share = (batch, tokens, self.shared, self.heads // self.shared, self.size)
        q = self.q(x).reshape(share).permute(0, 2, 3, 1, 4)
        k = self.k(x).reshape(batch, tokens, self.shared, 1, self.size).permute(0, 2, 3, 4, 1)
        v = self.v(x).reshape(batch, tokens, self.shared, 1, self.size).permute(0, 2, 3, 1, 4)
        y = torch.softmax(q @ k, -1) @ v
        x = x + self.out(y.permute(0, 3, 1, 2, 4).reshape(batch, tokens, width))
        y = x / ((x * x).mean(-1, keepdim=True) + 1e-6) * self.norm
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x)


class Lstm(nn.Module):
    """Two built-in LSTM layers between dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.first = nn.LSTM(12, 10, batch_first=True)
        self.second = nn.LSTM(10, 8, batch_first=True)
        self.up, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.embed(x))
        x, _ = self.first(x)
        x, _ = self.second(x)
        return self.head(torch.relu(self.up(x)))


class LstmCell(nn.Module):
    """An LSTM written by hand and unrolled: the same two dense layers at every step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.x, self.h = nn.Linear(12, 4 * width), nn.Linear(width, 4 * width)
        self.start = nn.Linear(12, width)
        self.width, self.head = width, nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.embed(x))
        h = torch.tanh(self.start(x[:, 0]))
        c = h
        for step in range(3):
            i, f, g, o = torch.split(self.x(x[:, step]) + self.h(h), self.width, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


MORE: dict[str, Callable[[], nn.Module]] = {
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "convnext": convnext,
    "bert": Bert,
    "gpt2": Gpt2,
    "llama": GatedMlp,
    "lstm": Lstm,
    "lstm_cell": LstmCell,
}


def more_inputs(name: str, dtype: torch.dtype) -> torch.Tensor:
    """An example input."""
    seeded = torch.Generator().manual_seed(2)
    if name in ("bert", "gpt2"):
        return torch.randint(0, 40, (2, 7 if name == "bert" else 6), generator=seeded)
    shape = {"llama": (2, 7, 6), "lstm": (2, 6, 5), "lstm_cell": (2, 3, 5)}.get(
        name, (2, 3, 32, 32)
    )
    return torch.randn(shape, dtype=dtype, generator=seeded)


def make_more(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of :data:`MORE` in evaluation mode, with batch norms as training leaves them."""
    torch.manual_seed(0)
    model = MORE[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 1.0)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval().to(dtype)
