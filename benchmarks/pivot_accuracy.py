"""Accuracy of a network with pivoted layers, compared with other ways to make the layers smaller or faster.

An MLP with a 512 x 512 layer in the middle (scikit-learn's digits), or a small convolutional network whose 128 x 128 x
3 x 3 convolutions are compressed (CIFAR-10, ``--data PATH``, in any format of ``graphshrink.datasets``). All other layers
stay unchanged. For k = 4, 8, 16:

- one-shot: the blocks of the present order (identity) or of the best order, with unchanged weights;
- refit: the same with ridge regression on training inputs, which is the default of ``pivot``;
- mask-trained: random blocks, trained from random weights for as many epochs as the dense network. The network is pivoted
  before it is trained, which is faster: the masked network has the same outputs and gradients;
- low-rank: a truncated singular value decomposition with the same number of weights;
- channels: the channels of smallest norm are removed on both sides of the layers, down to the latency of the pivoted network
  or to its number of weights.

*Fine-tuned* means further training for a quarter of the dense network's epochs (at least one). Latency is measured on the whole
network, emitted as ONNX, in onnxruntime on one thread, with ``--batch`` images per call: 1 for the convolutional network, because
images often come one by one; 128 for the MLP, because one row takes little longer than the call itself.

An interrupted run with ``--out`` continues where it stopped::

    OMP_NUM_THREADS=1 python benchmarks/pivot_accuracy.py [--data PATH] [--out FOLDER] [--json FILE]
    OMP_NUM_THREADS=1 python benchmarks/pivot_accuracy.py --data PATH --out FOLDER --latency   # latencies only
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pivot_rivals import Call, equal_widths, in_onnxruntime, low_rank, narrower, timed
from torch import nn

from graphshrink import insert_blocks, shrink
from graphshrink.api import ShrinkResult
from graphshrink.cli.terminal import write_json
from graphshrink.running.latency import PairedLatency

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
    """``size`` training images, drawn at random, and all test images."""
    from graphshrink.datasets import read_images

    found = read_images(path)
    chosen = np.random.default_rng(0).permutation(len(found.train))[:size]

    def tensors(images: Any, labels: Any, places: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(images.take(places)).permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1, torch.from_numpy(labels[places])

    test = tensors(found.test, found.test_labels, np.arange(len(found.test)))
    return (*tensors(found.train, found.train_labels, chosen), *test)


def mlp() -> nn.Sequential:
    """The network for digits; its layer is ``2``."""
    return nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def convnet() -> nn.Sequential:
    """The network for CIFAR-10; its layers are ``6`` and ``9``."""

    def block(fan_in: int, fan_out: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]

    return nn.Sequential(
        *block(3, 32, 2), *block(32, 128, 2), *block(128, 128, 1), *block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(128, 10),
    )  # fmt: skip


def as_trained(x: Any) -> Any:
    """A model or images in channels-last layout, in which convolutions train fastest on a CPU."""
    if isinstance(x, torch.Tensor) and x.dim() != 4:
        return x
    return x.to(memory_format=torch.channels_last)


def train(model: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """Train in place, and leave the network in evaluation mode."""
    x, y = data[:2]
    batch = 64
    model = as_trained(model)
    torch.manual_seed(seed)
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
    """The share of the test images that are classified correctly."""
    model = as_trained(model)
    right = [
        (model(x).argmax(1) == y).float()
        for x, y in zip(data[2].split(500), data[3].split(500), strict=True)
    ]
    return float(torch.cat(right).mean())


@dataclass
class Task:
    """A network, its data, and the layers that are compressed.

    Attributes:
        data: Images and classes to train and to test on.
        make: Makes the network.
        layers: Names of the layers.
        width: The channels on both sides of each layer.
        samples: The number of training images that are calibration data.
        epochs: Epochs of training.
        folder: The folder where results are stored, or ``None``.
    """

    data: Data
    make: Callable[[], nn.Sequential]
    layers: list[str]
    width: int
    samples: int
    epochs: int
    folder: Path | None

    def __post_init__(self) -> None:
        self.data = (as_trained(self.data[0]), self.data[1], as_trained(self.data[2]), self.data[3])

    def kept(self, name: str) -> dict[str, Any]:
        """The results that an earlier run stored under this name; empty if there are none."""
        path = self.folder and self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path and path.exists() else {}

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Store results under a name."""
        if self.folder:
            write_json(str(self.folder / f"{name}.json"), found)

    def dense(self, seed: int) -> nn.Sequential:
        """The trained dense network."""
        torch.manual_seed(seed)
        made = self.make()
        path = self.folder and self.folder / f"dense-{seed}.pt"
        if path and path.exists():
            made.load_state_dict(torch.load(path, weights_only=True))
            return made.eval()
        train(made, self.data, self.epochs, 2e-3, seed)
        if path:
            torch.save(made.state_dict(), path)
        return made

    def masked(self, k: int, seed: int) -> nn.Module:
        """A new network with masks of random blocks."""
        torch.manual_seed(seed)
        return insert_blocks(
            self.make().eval(), blocks=k, layers=self.layers, example_inputs=(self.data[2][:2],), seed=seed
        )  # fmt: skip

    def pivot(self, model: nn.Module, k: int, options: str, **how: Any) -> ShrinkResult:
        """The result of ``pivot``; exits if a layer was refused."""
        names = ",".join(self.layers)
        result = shrink(
            model, f"pivot{{blocks={k},layers=[{names}],force=true,{options}}}",
            calibration=self.data[0][: self.samples].split(256), **{"example_inputs": (self.data[2][:2],)} | how,
        )  # fmt: skip
        refused = [f"{r.node}: {r.reason}" for p in result.report.passes for r in p.refusals]
        if refused:
            sys.exit("\n".join(refused))
        return result

    def pivoted(self, model: nn.Module, k: int, options: str) -> nn.Module:
        """The module after ``pivot``."""
        made: nn.Module = self.pivot(model, k, options).model
        return made

    def same_weights(self, k: int) -> list[int]:
        """The number of channels at each border of the layers that leaves 1 / k of a layer's weights."""
        return [round(self.width / k**0.5)] * (len(self.layers) + 1)

    def tuned(self, model: nn.Module, seed: int) -> nn.Module:
        """The network after fine-tuning."""
        return train(model, self.data, max(1, self.epochs // 4), 1e-3, seed)


def measure(task: Task, ks: list[int], seed: int, widths: dict[str, list[int]]) -> dict[str, Any]:
    """All accuracies for one seed, by method and k."""
    found = task.kept(f"seed-{seed}")

    def note(way: str, k: int, make: Callable[[], nn.Module], tune: bool = False) -> None:
        tuned = f"{way}, fine-tuned"
        names = [way, tuned] if tune else [way]
        for name in names:
            found.setdefault(name, {})
        if all(str(k) in found[name] for name in names):
            return
        model = make()
        found[way][str(k)] = accuracy(model, task.data)
        if tune:
            found[tuned][str(k)] = accuracy(task.tuned(model, seed), task.data)
        task.keep(f"seed-{seed}", found)

    dense = task.dense(seed)
    note("dense", 1, lambda: dense)
    for k in ks:
        for method in ("identity", "search"):
            for way, options, tune in (("one-shot", ",refit=false", False), ("refit", "", True)):
                how = f"method={method}{options}"
                note(f"{way}, {method}", k, partial(task.pivoted, dense, k, how), tune)
        note("mask-trained", k, partial(trained_in_blocks, task, k, seed))
        note("low-rank", k, partial(low_rank, dense, task.layers, k), True)
        for way, keep in (("latency", widths[str(k)]), ("weights", task.same_weights(k))):
            note(f"channels, equal {way}", k, partial(narrower, dense, task.layers, keep), True)
    return found


def trained_in_blocks(task: Task, k: int, seed: int) -> nn.Module:
    """Mask, pivot, train; exits if the pivoted network computes something else than the masked one."""
    masked = task.masked(k, seed)
    made = task.pivoted(masked, k, "method=zeros")
    some = task.data[2][:100]
    with torch.no_grad():
        if not torch.allclose(made(some), masked(some), atol=1e-5):
            sys.exit("the pivoted network has other outputs than the masked one")
    return train(made, task.data, task.epochs, 2e-3, seed)


def latencies(task: Task, ks: list[int], batch: int, seconds: float) -> dict[str, Any]:
    """The speed-up of each method over dense, and the widths of equal latency; the weights are those of the first seed."""
    found = task.kept(f"latency-{batch}")
    if found:
        return found
    x = task.data[2][:batch].contiguous()
    dense = task.dense(0)

    def call(made: nn.Module) -> Call:
        return in_onnxruntime(shrink(made, "", example_inputs=(x,), target="onnx"), x)

    def pivoted(model: nn.Module, k: int, options: str) -> Call:
        made = task.pivot(model, k, options, example_inputs=(x,), target="onnx")
        return in_onnxruntime(made, x)

    found = {"batch": batch, "widths": {}, "equal": {}, "faster": {}}
    first = call(dense)
    for k in ks:
        ways = {
            "refit, identity": pivoted(dense, k, "method=identity"),
            "refit, search": pivoted(dense, k, "method=search"),
            "mask-trained": pivoted(task.masked(k, 0), k, "method=zeros"),
            "low-rank": call(low_rank(dense, task.layers, k)),
            "channels, equal weights": call(narrower(dense, task.layers, task.same_weights(k))),
        }
        widths = equal_widths(
            task.width, len(task.layers) + 1, lambda n: call(narrower(dense, task.layers, n)),
            ways["refit, search"], seconds,
        )  # fmt: skip
        narrow = call(narrower(dense, task.layers, widths))
        ways["channels, equal latency"] = narrow
        found["widths"][str(k)] = widths
        found["equal"][str(k)] = figures(timed(narrow, ways["refit, search"], 2 * seconds))
        for way, other in ways.items():
            found["faster"].setdefault(way, {})[str(k)] = figures(timed(first, other, seconds))
    task.keep(f"latency-{batch}", found)
    return found


def figures(found: PairedLatency) -> dict[str, Any]:
    """A paired latency as a dict for JSON."""
    return {
        "ratio": found.speedup,
        "interval": found.interval,
        "milliseconds": found.milliseconds,
    }


def show(table: dict[str, dict[str, Any]], ks: list[int]) -> None:
    """Print a Markdown table of methods by k."""
    print("\n| way | " + " | ".join(f"k = {k}" for k in ks) + " |")
    print("| --- |" + " --- |" * len(ks))
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(row[str(k)] for k in ks) + " |")


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="images of CIFAR-10; digits without it")
    parser.add_argument("--images", type=int, default=10_000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="training epochs")
    parser.add_argument("--blocks", default="4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="images per call, for latencies")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each pair is timed")
    parser.add_argument("--latency", action="store_true", help="measure latencies only")
    parser.add_argument("--out", type=Path, help="store results in this folder, to continue later")
    parser.add_argument("--json", help="write all figures to this file")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    ks = [int(k) for k in given.blocks.split(",")]
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    if given.data:
        data = cifar(given.data, given.images)
        task = Task(data, convnet, ["6", "9"], 128, 1024, given.epochs or 6, given.out)
    else:
        task = Task(digits(), mlp, ["2"], 512, 2048, given.epochs or 20, given.out)
    speed = latencies(task, ks, given.batch or (1 if given.data else 128), given.seconds)
    runs = []
    if not given.latency:
        runs = [measure(task, ks, seed, speed["widths"]) for seed in range(given.seeds)]
        dense = [run["dense"]["1"] for run in runs]
        print(f"test accuracy, means of {given.seeds} seeds; dense {statistics.mean(dense):.1%}")
        ways = [way for way in runs[0] if way != "dense"]
        mean = {w: {k: statistics.mean(r[w][k] for r in runs) for k in runs[0][w]} for w in ways}
        show({w: {k: f"{v:.1%}" for k, v in row.items()} for w, row in mean.items()}, ks)
    print(
        f"\nlatency: how many times faster than the dense network, {speed['batch']} images per call"
    )
    rows = {
        w: {k: f"{v['ratio']:.2f}" for k, v in row.items()} for w, row in speed["faster"].items()
    }
    rows["channels kept at equal latency"] = {
        k: ", ".join(map(str, v)) for k, v in speed["widths"].items()
    }
    rows["their latency over that of refit, search"] = {
        k: "{:.3f} ({:.3f} to {:.3f})".format(v["ratio"], *v["interval"]) for k, v in speed["equal"].items()
    }  # fmt: skip
    show(rows, ks)
    if given.json:
        settings = {
            "training images": len(task.data[0]), "test images": len(task.data[2]), "epochs": task.epochs,
        }  # fmt: skip
        write_json(given.json, {"settings": settings, "latency": speed, "seeds": runs})


if __name__ == "__main__":
    main()
