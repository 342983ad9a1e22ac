"""Accuracy of a network with a pivoted layer, beside other ways to give the layer a k-th of its weights.

An MLP with a 512 x 512 layer in the middle (scikit-learn's digits), or a small convolutional network whose 128 x 128 x
3 x 3 convolutions are cut (CIFAR-10, ``--data PATH`` of a NumPy file with JPEG images). Everything else stays as it
is. For k = 4, 8, 16:

- one-shot: the blocks of the present order (identity) or of the best order, weights as they are;
- refit: the same with ridge regression on the training inputs, which is what ``pivot`` does by default;
- fine-tuned: after the refit, a few epochs;
- mask-trained: trained from the start with blocks drawn at random, then pivoted exactly;
- low-rank: singular vectors at the same number of weights; channels: the channels of least norm removed, on both sides
  of the layer, down to the same number of its weights. Both are fine-tuned as long for the last columns.

Run from a checkout::

    OMP_NUM_THREADS=1 python benchmarks/pivot_accuracy.py [--data PATH] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from graphshrink import insert_blocks, shrink

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def digits() -> Data:
    """Training and test images of scikit-learn's digits; every third image is a test image."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.data).float() / 16
    y = torch.from_numpy(found.target)
    test = torch.arange(len(y)) % 3 == 0
    return x[~test], y[~test], x[test], y[test]


def cifar(path: str, size: int) -> Data:
    """The first ``size`` shuffled training images of CIFAR-10, and a fifth as many test images."""
    from PIL import Image

    with np.load(path) as file:

        def part(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            labels, at = file[f"{name}_labels"], file[f"{name}_offsets"]
            chosen = np.random.default_rng(0).permutation(len(labels))[:count]
            data = file[f"{name}_jpeg"]
            images = [
                np.asarray(Image.open(io.BytesIO(data[at[i] : at[i + 1]].tobytes())))
                for i in chosen
            ]
            x = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2) / 127.5 - 1
            return x, torch.from_numpy(labels[chosen].astype(np.int64))

        return (*part("train", size), *part("test", size // 5))


def mlp() -> nn.Module:
    """The network for digits; its layer is ``2``."""
    return nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def convnet() -> nn.Module:
    """The network for CIFAR-10; its layers are ``8`` and ``11``."""

    def block(fan_in: int, fan_out: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]

    return nn.Sequential(
        *block(3, 32, 2), *block(32, 128, 2), nn.MaxPool2d(1), nn.Identity(),
        *block(128, 128, 1), *block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(128, 10),
    )  # fmt: skip


def train(model: nn.Module, data: Data, epochs: int, rate: float = 2e-3) -> nn.Module:
    """Train in place, and leave the network in evaluation mode."""
    x, y = data[:2]
    batch = 64
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    order = [
        rows for _ in range(epochs) for rows in torch.randperm(len(x)).split(batch) if len(rows) > 1
    ]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, len(order))
    model.train()
    for rows in order:
        optimiser.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The part of the test images that are classified rightly."""
    return float((model(data[2]).argmax(1) == data[3]).float().mean())


class Task:
    """A network, its data, and the layers that are cut."""

    def __init__(self, data: Data, make: Callable[[], nn.Module], layers: list[str], epochs: int):
        self.data, self.make, self.layers, self.epochs = data, make, layers, epochs
        self.samples = data[0][:2048]

    def pivoted(self, model: nn.Module, k: int, options: str) -> nn.Module:
        """After ``pivot``; fails if a layer was refused."""
        names = ",".join(self.layers)
        result = shrink(
            model, f"pivot{{blocks={k},layers=[{names}],force=true,{options}}}",
            example_inputs=(self.data[2][:2],), calibration=(self.samples.split(256)),
        )  # fmt: skip
        refused = [f"{r.node}: {r.reason}" for p in result.report.passes for r in p.refusals]
        if refused:
            sys.exit("\n".join(refused))
        made: nn.Module = result.model
        return made

    def low_rank(self, model: nn.Module, k: int) -> nn.Module:
        """Two layers of a k-th of the weights for each one."""
        model = copy.deepcopy(model)
        for name in self.layers:
            layer = model.get_submodule(name)
            weight = layer.weight.detach()
            flat = weight.reshape(len(weight), -1)
            rank = max(1, flat.numel() // (k * sum(flat.shape)))
            u, s, v = torch.linalg.svd(flat, full_matrices=False)
            first, last = v[:rank] * s[:rank, None].sqrt(), u[:, :rank] * s[:rank].sqrt()
            bias = layer.bias is not None
            if isinstance(layer, nn.Linear):
                pair = [nn.Linear(flat.shape[1], rank, False), nn.Linear(rank, len(flat), bias)]
            else:
                pair = [
                    nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False),
                    nn.Conv2d(rank, len(flat), 1, bias=bias),
                ]  # fmt: skip
            pair[0].weight.data = first.reshape(pair[0].weight.shape)
            pair[1].weight.data = last.reshape(pair[1].weight.shape)
            if bias:
                pair[1].bias.data = layer.bias.data
            setattr(model, name, nn.Sequential(*pair))
        return model

    def fewer_channels(self, model: nn.Module, k: int) -> nn.Module:
        """Channels on both sides of the layers zeroed but for the 1/sqrt(k) of largest norm, and kept at zero."""
        model = copy.deepcopy(model)
        layer = model.get_submodule(self.layers[0])
        keep = round(layer.weight.shape[0] / k**0.5)
        masks = []
        names = self.layers
        for name in names:
            weight = model.get_submodule(name).weight
            masks.append(_heavy(weight.detach().flatten(2 if weight.dim() > 2 else 1), keep))
        before = _heavy(
            model.get_submodule(names[0]).weight.detach().transpose(0, 1).flatten(1), keep
        )
        for name, out in zip(names, masks, strict=True):
            weight = model.get_submodule(name).weight
            mask = (out[:, None] & before[None, :]).reshape(
                *weight.shape[:2], *[1] * (weight.dim() - 2)
            )
            torch.nn.utils.parametrize.register_parametrization(
                model.get_submodule(name), "weight", Kept(mask)
            )
            before = out
        return model


class Kept(nn.Module):
    """A weight under a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The masked weight."""
        return weight * self.mask


def _heavy(rows: torch.Tensor, keep: int) -> torch.Tensor:
    norms = rows.flatten(1).norm(dim=1)
    mask = torch.zeros(len(norms), dtype=torch.bool)
    mask[norms.topk(keep).indices] = True
    return mask


def measure(task: Task, ks: list[int], seed: int) -> dict[str, Any]:
    """All accuracies for one seed."""
    torch.manual_seed(seed)
    dense = train(task.make(), task.data, task.epochs)
    found: dict[str, Any] = {"dense": {0: accuracy(dense, task.data)}}

    def note(name: str, k: int, model: nn.Module) -> nn.Module:
        found.setdefault(name, {})[k] = accuracy(model, task.data)
        return model

    tune = max(1, task.epochs // 4)

    def tuned(model: nn.Module) -> nn.Module:
        return train(model, task.data, tune, 3e-4)

    for k in ks:
        for method in ("identity", "search"):
            note(f"one-shot {method}", k, task.pivoted(dense, k, f"method={method},refit=false"))
            refit = note(f"refit {method}", k, task.pivoted(dense, k, f"method={method}"))
            note(f"refit {method}, fine-tuned", k, tuned(refit))
        torch.manual_seed(seed)
        masked = insert_blocks(
            task.make().eval(), blocks=k, layers=task.layers, example_inputs=(task.data[2][:2],), seed=seed
        )  # fmt: skip
        train(masked, task.data, task.epochs)
        exact = note("mask-trained", k, task.pivoted(masked, k, "method=zeros"))
        with torch.no_grad():
            worst = float((exact(task.data[2]) - masked(task.data[2])).abs().max())
        if worst > 1e-3:
            sys.exit(f"the pivoted network is {worst} off the one that was trained")
        low = note("low-rank", k, task.low_rank(dense, k))
        note("low-rank, fine-tuned", k, tuned(low))
        few = note("channels", k, task.fewer_channels(dense, k))
        note("channels, fine-tuned", k, tuned(few))
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as a NumPy file of JPEG images; digits without it")
    parser.add_argument("--images", type=int, default=10_000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="training epochs")
    parser.add_argument("--blocks", default="4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    ks = [int(k) for k in given.blocks.split(",")]
    if given.data:
        task = Task(cifar(given.data, given.images), convnet, ["8", "11"], given.epochs or 10)
    else:
        task = Task(digits(), mlp, ["2"], given.epochs or 20)
    runs = [measure(task, ks, seed) for seed in range(given.seeds)]
    table = {
        name: {k: statistics.mean(run[name][k] for run in runs) for k in runs[0][name]}
        for name in runs[0]
    }
    if given.json:
        print(json.dumps(table, indent=1))
        return
    print(f"mean test accuracy of {given.seeds} seeds; dense {table['dense'][0]:.3f}\n")
    print("| way | " + " | ".join(f"k = {k}" for k in ks) + " |")
    print("| --- |" + " --- |" * len(ks))
    for name, row in table.items():
        if name != "dense":
            print(f"| {name} | " + " | ".join(f"{row[k]:.3f}" for k in ks) + " |")


if __name__ == "__main__":
    main()
