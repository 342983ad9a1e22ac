"""A small network for scikit-learn's digits, and how it was trained.

``python examples/digits.py`` trains it again (about half a minute on two cores) and writes ``digits.npz``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

WEIGHTS = Path(__file__).with_name("digits.npz")


class Branches(nn.Module):
    """A RepVGG block: 3x3, 1x1 and identity branches, each with its batch norm, added."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.dense_norm = nn.BatchNorm2d(fan_out)
        self.point = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)
        self.point_norm = nn.BatchNorm2d(fan_out)
        self.skip_norm = nn.BatchNorm2d(fan_in) if stride == 1 and fan_in == fan_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the branches."""
        y = self.dense_norm(self.dense(x)) + self.point_norm(self.point(x))
        if self.skip_norm is not None:
            y = y + self.skip_norm(x)
        return torch.relu(y)


class Linear3(nn.Module):
    """An inverted residual whose inner activations were removed: 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand, self.expand_norm = nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.depthwise_norm = nn.BatchNorm2d(wide)
        self.project, self.project_norm = nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block plus its skip, then one activation."""
        y = self.depthwise_norm(self.depthwise(self.expand_norm(self.expand(x))))
        return torch.relu(x + self.project_norm(self.project(y)))


def network() -> nn.Sequential:
    """The untrained network; it takes ``(N, 1, 16, 16)``."""
    return nn.Sequential(
        Branches(1, 24, 1),
        Branches(24, 24, 1),
        Linear3(24, 6),
        Branches(24, 48, 2),
        Branches(48, 48, 1),
        Linear3(48, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, test images and labels; every fourth image is a test image."""
    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 16
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    y = torch.from_numpy(data.target)
    test = torch.arange(len(y)) % 4 == 0
    return x[~test], y[~test], x[test], y[test]


def trained() -> nn.Sequential:
    """The trained network, in evaluation mode."""
    with np.load(WEIGHTS, allow_pickle=False) as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    model = network()
    model.load_state_dict(state)
    return model.eval()


def main() -> None:
    """Train, and write the weights."""
    torch.manual_seed(0)
    x, y, test_x, test_y = images()
    model, epochs, batch = network(), 12, 64
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))
        for i in range(len(x) // batch):
            rows = order[i * batch : (i + 1) * batch]
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(test_x).argmax(1) == test_y).float().mean()
        print(f"epoch {epoch}: loss {loss.item():.3f}, test accuracy {accuracy:.4f}")
    np.savez_compressed(WEIGHTS, **{k: v.numpy() for k, v in model.state_dict().items()})
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
