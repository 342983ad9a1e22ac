"""DepthShrinker from end to end: train, find activations that can be removed, remove them, recover, merge, export, measure.

``python examples/depthshrinker.py`` uses scikit-learn's digits; ``--data`` is a folder of images in torchvision's layout (with
``--size 64``, say), CIFAR-10 in its usual formats, or an ``.npz`` file (see ``graphshrink.datasets``). Started by
``torchrun --nproc-per-node N``, N processes share the training.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import time
import warnings
from pathlib import Path

import digits
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from graphshrink import (
    GateSchedule,
    gate_penalty,
    gates,
    insert_gates,
    recover,
    removal_savings,
    shrink,
    shrink_graph,
)
from graphshrink.accuracy import onnx_accuracy
from graphshrink.datasets import ArrayImages, Batches, LabelledImages, read_images
from graphshrink.processes import from_rank_0, join
from graphshrink.report import Size
from graphshrink.running.compare import compare_models
from graphshrink.running.sessions import session

BATCH = 32


def conv_norm(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:  # fmt: skip
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(fan_out)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; beside a skip where shapes allow (MobileNetV2, Sandler et al. 2018)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, expand: int = 6) -> None:
        super().__init__()
        wide = fan_in * expand
        self.skip = stride == 1 and fan_in == fan_out
        first = [*conv_norm(fan_in, wide, 1), nn.ReLU6()]
        middle = [*conv_norm(wide, wide, 3, stride, wide), nn.ReLU6()]
        self.body = nn.Sequential(*first, *middle, *conv_norm(wide, fan_out, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        return x + self.body(x) if self.skip else self.body(x)


def network(channels: int, classes: int, side: int) -> nn.Sequential:
    """Six blocks; the larger the images, the larger the first stride."""
    torch.manual_seed(0)
    layers = [*conv_norm(channels, 16, 3, max(1, side // 16)), nn.ReLU6()]
    shapes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 32, 1)]
    blocks = [InvertedResidual(*shape) for shape in shapes]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)]
    return nn.Sequential(*layers, *blocks, *head).eval()


def images_of(given: argparse.Namespace) -> LabelledImages:
    if given.data:
        return read_images(given.data, size=given.size, pickles=given.pickles)
    x, y, test_x, test_y = (t.numpy() for t in digits.images())
    pixels = [ArrayImages((np.clip(a[:, 0], 0, 1) * 255).astype(np.uint8)) for a in (x, test_x)]
    return LabelledImages(pixels[0], y, pixels[1], test_y, tuple("0123456789"))


def shallow(base: nn.Module, example: tuple[torch.Tensor], train: Batches, given: argparse.Namespace) -> nn.Module:  # fmt: skip
    """The network without the activations of some blocks, trained; not merged yet."""
    # Search: a gate for each block that would merge, a penalty by the time that its removal saves.
    # Gated networks share their weights with the network that they are made of: the teacher stays as it is.
    gated = insert_gates(
        copy.deepcopy(base), example_inputs=example, mode="top-k", tie="block", max_mac_growth=1
    )
    saved = from_rank_0(
        lambda: removal_savings(base, gated, example_inputs=example, ending="relu6")
    )
    blocks = len({gate.switch for gate in gates(gated).values()})
    schedule = GateSchedule(
        gated, keep=round(given.keep * blocks), steps=given.search * len(train) // join().world
    )
    recover(
        gated, train, epochs=given.search, lr=2e-3, callbacks=[schedule],
        penalty=lambda m: 0.1 * gate_penalty(m, saved),
    )  # fmt: skip
    closed = [name for name, gate in gates(gated).items() if not gate.kept]
    if not closed:
        return copy.deepcopy(base)
    # Fit and fade: in the first half of the training the activations of these blocks go to the straight lines that fit them best, and
    # relu6 behind the blocks comes in. Padding is hoisted as if they were gone already, so that the network that is trained is the one
    # that is deployed.
    samples = torch.cat([images for images, _ in itertools.islice(train, 8)])
    fading = insert_gates(
        copy.deepcopy(base), example_inputs=example, sites=closed, by="affine", calibration=samples, ending="relu6", max_mac_growth=1,
    )  # fmt: skip
    hoist = f"fold-constants,hoist-padding{{through=[{','.join(closed)}]}}"
    fading = shrink_graph(fading, hoist, example_inputs=example)
    half = given.epochs * len(train) // join().world // 2
    schedules = [
        GateSchedule(fading, steps=half, kind="fade", sites=closed),
        GateSchedule(fading, steps=half, kind="fade", sites="*ending", to=1),
    ]
    recover(fading, train, epochs=given.epochs, lr=2e-3, teacher=base, callbacks=schedules)
    return shrink_graph(fading, "remove-activations,prune-dead", example_inputs=example)


def report(base: nn.Module, small: nn.Module, example: tuple[torch.Tensor], test: Batches, given: argparse.Namespace) -> None:  # fmt: skip
    """Merge, export, and measure the exported files."""
    files = [Path(given.output).with_suffix(s) for s in (".base.onnx", ".onnx")]
    table = Table("", "convolutions", "MACs an image", "accuracy", f"ms, batch of {BATCH}")
    rows = []
    for model, file in zip((base, small), files, strict=True):
        result = shrink(model, example_inputs=example, check=True, on_failure="raise")
        result.save(file)
        size = Size.of(result.graph)
        rows.append(
            [
                file.name,
                f"{size.ops['Conv']}",
                f"{size.macs // len(example[0]):,}",
                f"{onnx_accuracy(file, test):.2%}",
            ]
        )
    shapes = {session(files[0]).get_inputs()[0].name: (BATCH, *example[0].shape[1:])}
    latency = compare_models(
        *files, shapes=shapes, runs=60, threads=1, tolerance=float("inf")
    ).latency
    for row, milliseconds in zip(rows, latency.milliseconds, strict=True):
        table.add_row(*row, f"{milliseconds:.2f}")
    Console(width=100).print(table, f"speed, onnxruntime on one thread: {latency}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", help="a folder or .npz file; scikit-learn's digits when not given"
    )
    parser.add_argument("--size", type=int, help="for folders of images: the side to scale them to")
    parser.add_argument("--pickles", action="store_true", help="load CIFAR-10's Python version")
    parser.add_argument("--keep", type=float, default=0.35, help="share of the blocks that stay")
    parser.add_argument("--base", type=int, default=6, help="epochs of the network itself")
    parser.add_argument("--search", type=int, default=2, help="epochs of the search")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the recovery")
    parser.add_argument("--output", default="shallow.onnx", help="the file that is written")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    start, processes, images = time.perf_counter(), join(), images_of(given)
    mirror = bool(given.data)
    train = Batches(images, BATCH, train=True, shift=1 + mirror, mirror=mirror)
    x, _ = next(iter(train))
    base = network(x.shape[1], len(images.classes), x.shape[2])
    recover(base, train, epochs=given.base, lr=5e-3)
    small = shallow(base, (x,), train, given)
    if processes.rank == 0:
        report(base.cpu(), small.cpu(), (x,), Batches(images, BATCH, train=False), given)
        print(f"{time.perf_counter() - start:.0f} s in all")
    processes.wait()


if __name__ == "__main__":
    main()
