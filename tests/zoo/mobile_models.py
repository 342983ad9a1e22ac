"""Small networks of the kind that runs on phones, beside those of the other files."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .models import conv_norm


def mobilenet_v1(width: int = 8) -> nn.Module:
    """MobileNet v1 (Howard et al. 2017): depthwise and pointwise convolutions, one behind the other."""
    layers: list[nn.Module] = [conv_norm(3, width, 3, 2)]
    for times, out, stride in ((1, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2)):
        layers += [
            conv_norm(width * times, width * times, 3, stride, width * times),
            conv_norm(width * times, width * out, 1),
        ]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(1), nn.Linear(8 * width, 10))


class Fire(nn.Module):
    def __init__(self, fan_in: int, squeezed: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(fan_in, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, wide, 1), nn.Conv2d(squeezed, wide, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016), pools with ceil_mode."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(16, 4, 12), Fire(24, 4, 12), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(24, 8, 16),
        nn.Dropout(0.5), nn.Conv2d(32, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
    )  # fmt: skip


class Excite(nn.Module):
    """Squeeze and excitation, pooled by a mean over axes and computed by dense layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


def efficientnet_means() -> nn.Module:
    """EfficientNet's block with the other form of pooling: means over axes instead of pools."""
    return nn.Sequential(
        conv_norm(3, 8, 3, 2, act=nn.SiLU),
        conv_norm(8, 8, 3, 1, 8, act=nn.SiLU), Excite(8), conv_norm(8, 12, 1, act=None),
        conv_norm(12, 48, 1, act=nn.SiLU), conv_norm(48, 48, 5, 2, 48, act=nn.SiLU), Excite(48),
        conv_norm(48, 16, 1, act=None), MeanHead(16, 10),
    )  # fmt: skip


class MeanHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean([2, 3]))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015), going up by a transposed convolution and by a resize."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = conv_norm(3, width), conv_norm(width, 2 * width)
        self.bottom = conv_norm(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.joined = conv_norm(4 * width, 2 * width)
        self.last = conv_norm(3 * width, width)
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.second(F.max_pool2d(a, 2))
        c = self.up(self.bottom(F.max_pool2d(b, 2)))
        c = self.joined(torch.cat([c, b], 1))
        c = F.interpolate(c, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.last(torch.cat([c, a], 1)))


class Decoder(nn.Module):
    """Transposed convolutions of several shapes: output padding, groups, dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, 2, 1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2), nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(6, 4, 3, 1, 2, dilation=2), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Audio(nn.Module):
    """1-D convolutions over a signal, flattened into a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8, padding=1),
            nn.ReLU6(), nn.MaxPool1d(2), nn.Conv1d(8, 12, 3, dilation=2), nn.Hardswish(),
        )  # fmt: skip
        self.head = nn.Linear(12 * 11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x).flatten(1)))


class LeNet(nn.Module):
    """LeNet (LeCun et al. 1998): a flattened image into dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 5), nn.ReLU(), nn.MaxPool2d(2)
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(), nn.Linear(200, 20), nn.ReLU(), nn.Linear(20, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


MOBILE: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "squeezenet": squeezenet,
    "efficientnet_means": efficientnet_means,
    "unet": UNet,
    "decoder": Decoder,
    "audio": Audio,
    "lenet": LeNet,
}


def make_mobile(name: str) -> nn.Module:
    """A network of :data:`MOBILE` in evaluation mode, with batch norms as training leaves them."""
    torch.manual_seed(0)
    model = MOBILE[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 1.0)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
    return model.eval()


def mobile_input(name: str) -> torch.Tensor:
    """An example input."""
    shape = {"audio": (2, 3, 60), "decoder": (2, 3, 7, 5)}.get(name, (1, 3, 32, 32))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))
