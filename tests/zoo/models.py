"""Well-known networks, written here, with batch-norm statistics that are not trivial.

Each takes options for its width and depth, and stands in ``MODELS`` at full size and in ``SMALL`` with
every kind of block it has, a few times over.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def conv_norm(fan_in: int, fan_out: int, kernel: int = 3, stride: int = 1, groups: int = 1,
              act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:  # fmt: skip
    """Convolution, batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(fan_out),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class InvertedResidual(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = fan_in * expand
        self.skip = stride == 1 and fan_in == fan_out
        self.body = nn.Sequential(
            *([conv_norm(fan_in, wide, 1, act=nn.ReLU6)] if expand > 1 else []),
            conv_norm(wide, wide, 3, stride, wide, act=nn.ReLU6),
            conv_norm(wide, fan_out, 1, act=None),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2(width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018)."""

    def size(channels: int) -> int:
        return int(channels * width)

    last = size(32)
    layers: list[nn.Module] = [conv_norm(3, last, 3, 2, act=nn.ReLU6)]
    for expand, channels, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(math.ceil(count * depth)):
            layers.append(InvertedResidual(last, size(channels), stride if i == 0 else 1, expand))
            last = size(channels)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(0.2), nn.Linear(size(1280), 100)]
    return nn.Sequential(*layers, conv_norm(last, size(1280), 1, act=nn.ReLU6), *head)


class Residual(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int, deep: bool) -> None:
        super().__init__()
        out = width * 4 if deep else width
        if deep:
            self.body = nn.Sequential(
                conv_norm(fan_in, width, 1), conv_norm(width, width, 3, stride),
                conv_norm(width, out, 1, act=None),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                conv_norm(fan_in, width, 3, stride), conv_norm(width, out, 3, act=None)
            )
        plain = stride == 1 and fan_in == out
        self.down = nn.Identity() if plain else conv_norm(fan_in, out, 1, stride, act=None)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.body(x) + self.down(x))


def resnet(blocks: tuple[int, ...], deep: bool, width: int = 64) -> nn.Module:
    """ResNet-18 is (2, 2, 2, 2), ResNet-50 is (3, 4, 6, 3) and deep (He et al. 2015)."""
    layers: list[nn.Module] = [conv_norm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    last = width
    for stage, count in enumerate(blocks):
        for i in range(count):
            inner = width * 2**stage
            layers.append(Residual(last, inner, 2 if stage and not i else 1, deep))
            last = inner * (4 if deep else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(last, 100))


class RepBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_norm(fan_in, fan_out, 3, stride, act=None)
        self.point = conv_norm(fan_in, fan_out, 1, stride, act=None)
        self.identity = nn.BatchNorm2d(fan_in) if stride == 1 and fan_in == fan_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(x) + self.point(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))


def repvgg(
    widths: tuple[int, ...] = (48, 48, 96, 192, 1280), blocks: tuple[int, ...] = (1, 2, 4, 14, 1)
) -> nn.Module:
    """RepVGG-A0 in its training form (Ding et al. 2021)."""
    layers: list[nn.Module] = []
    last = 3
    for width, count in zip(widths, blocks, strict=True):
        for i in range(count):
            layers.append(RepBlock(last, width, 2 if i == 0 else 1))
            last = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(last, 100))


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(scale)


class MBConv(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = fan_in * expand
        self.skip = stride == 1 and fan_in == fan_out
        self.body = nn.Sequential(
            *([conv_norm(fan_in, wide, 1, act=nn.SiLU)] if expand > 1 else []),
            conv_norm(wide, wide, kernel, stride, wide, act=nn.SiLU),
            Excite(wide, max(1, fan_in // 4)),
            conv_norm(wide, fan_out, 1, act=None),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def efficientnet_b0(width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019)."""

    def size(channels: int) -> int:
        return int(channels * width)

    last = size(32)
    layers: list[nn.Module] = [conv_norm(3, last, 3, 2, act=nn.SiLU)]
    for expand, channels, count, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for i in range(math.ceil(count * depth)):
            layers.append(MBConv(last, size(channels), kernel, stride if i == 0 else 1, expand))
            last = size(channels)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(0.2), nn.Linear(size(1280), 100)]
    return nn.Sequential(*layers, conv_norm(last, size(1280), 1, act=nn.SiLU), *head)


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2020) for 64x64 images, patches of 8."""

    def __init__(self, width: int = 96, depth: int = 3, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 65, width))
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.layers(x))[:, 0])


class Dense(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet(blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32) -> nn.Module:
    """DenseNet-121 (Huang et al. 2016)."""
    last = 2 * growth
    layers: list[nn.Module] = [conv_norm(3, last, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(blocks):
        for _ in range(count):
            layers.append(Dense(last, growth))
            last += growth
        if stage < len(blocks) - 1:
            layers += [nn.BatchNorm2d(last), nn.ReLU(), nn.Conv2d(last, last // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            last //= 2
    head = [nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    return nn.Sequential(*layers, *head, nn.Linear(last, 100))


def vgg11(width: int = 64) -> nn.Module:
    """VGG-11 with batch norm (Simonyan and Zisserman 2014), a pool instead of its dense layers."""
    layers: list[nn.Module] = []
    last = 3
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for times in stage:
            layers.append(conv_norm(last, times * width))
            last = times * width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(last, 100))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": lambda: resnet((2, 2, 2, 2), False),
    "resnet50": lambda: resnet((3, 4, 6, 3), True),
    "repvgg": repvgg,
    "efficientnet_b0": efficientnet_b0,
    "vit": VisionTransformer,
    "densenet121": densenet,
}


SMALL: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: mobilenet_v2(0.25, 0.5),
    "resnet18": lambda: resnet((2, 1, 1, 1), False, 8),
    "resnet50": lambda: resnet((2, 1, 1, 1), True, 8),
    "repvgg": lambda: repvgg((8, 8, 12, 16), (1, 2, 1, 1)),
    "efficientnet_b0": lambda: efficientnet_b0(0.25, 0.4),
    "vit": lambda: VisionTransformer(48, 2, 3),
    "densenet121": lambda: densenet((2, 1, 2, 1), 8),
}

MORE: dict[str, Callable[[], nn.Module]] = {"vgg11": lambda: vgg11(8)}
"""Small networks that only some tests use."""


def image_size(name: str) -> int:
    """The side of the images that tests use; the last stage must keep a few positions."""
    return 64 if name == "vit" else 96


def make(name: str, dtype: torch.dtype = torch.float32, *, small: bool = False) -> nn.Module:
    """A network in evaluation mode with batch norms as training leaves them, from a fixed seed."""
    torch.manual_seed(0)
    model = ({**SMALL, **MORE} if small else MODELS)[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
    # Trained residual branches are small beside their skips; at full size, random deep networks amplify
    # the rounding of float32 itself beyond what is tested here.
    for module in model.modules():
        if isinstance(module, (Residual, InvertedResidual, MBConv)):
            module.body[-1][1].weight.data.mul_(0.3)
    # Statistics from a pass over noise keep activations in a sane range at any depth.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.randn(8 if small else 3, 3, image_size(name), image_size(name)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # A channel that happens to be constant on noise would blow rounding up.
            assert module.running_var is not None
            module.running_var.clamp_(min=0.1)
    return model.eval().to(dtype)
