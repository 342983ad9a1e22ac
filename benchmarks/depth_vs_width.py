"""Depth compared with width: the accuracy of a shallower and of a narrower network at equal latency, on CIFAR-10.

A MobileNetV2 for 32x32 images is trained once. Then these variants are trained, each for the same number of extra epochs:

- ``depth``: gates find the blocks that need their activations least (epochs of this search count as extra epochs). The
  activations of these blocks are removed, their padding is hoisted, the network is recovered from labels, and each block
  merges to one convolution;
- ``depth-kd``: the same, recovered with the base network as teacher;
- ``fade``: the same blocks, with the teacher, but their activations fade during the training, and relu6 behind them fades in;
- ``depth+``: the merged convolutions are expanded again with gated activations and fresh batch norms, and merged back (DepthShrinker+), with
  the teacher;
- ``uniform``, ``importance``: channels pruned by Torch-Pruning (group magnitude; the same share of every layer, or of
  all channels), to the measured latency of ``depth``; ``importance-kd`` is recovered with the teacher;
- ``scratch``: the merged network, from random weights, for the epochs of the base network plus the extra epochs.

Everything is merged and folded by graphshrink's exact pipeline before it is exported; accuracy (on all test images) and
latency are measured on that ONNX file. An interrupted run continues where it stopped::

    python benchmarks/depth_vs_width.py --data cifar10.npz --results local/depth_vs_width [--config small]
    python benchmarks/depth_vs_width.py --data ... --results ... --measure   # latencies, table, plot and JSON

Needs torch-pruning and matplotlib: ``pip install -c constraints.txt -e ".[benchmark]"``.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graphshrink import (
    GateSchedule,
    gate_penalty,
    gates,
    insert_gates,
    keep_top,
    recover,
    removal_savings,
    shrink_graph,
)
from graphshrink.api import load
from graphshrink.cli.terminal import write_json
from graphshrink.datasets import Batches, LabelledImages, read_images
from graphshrink.report import Size
from graphshrink.running.latency import median_interval, paired_latency
from graphshrink.running.sessions import session
from graphshrink.training.gating import switches

SEED = 0

MATCHED_BATCH = 64
"""Pruned networks are made as fast as shallow ones at this batch size, in onnxruntime on one thread."""

ROUND = 8
"""Pruned layers keep a multiple of this many channels: onnxruntime is several times slower on odd numbers."""

MATCH = 0.97
"""A pruned network is fast enough if its speed is at least this share of the shallow network's."""

RESULT = Path(__file__).parent / "results" / "depth_vs_width"

GOAL = (3.06, 1.53)
"""The goal: (points of accuracy above channel pruning, speed relative to it)."""


@dataclass(frozen=True)
class Config:
    """Sizes of the networks and lengths of the training.

    Attributes:
        stem: Channels of the first convolution, and its stride.
        blocks: Expansion, channels, number and stride of the inverted residuals.
        head: Channels of the last convolution.
        images: Training images per epoch.
        batch: Images in a batch.
        base_epochs: Epochs of the base network.
        search_epochs: Epochs of the training with gates; they count as extra epochs.
        extra_epochs: Extra epochs of each variant.
        fading: The part of the training in which activations fade.
        budgets: Numbers of blocks whose activations are removed, in the order in which they are run.
        lr: The largest learning rate of the base network; everything else uses half of it.
    """

    stem: tuple[int, int]
    blocks: tuple[tuple[int, int, int, int], ...]
    head: int
    images: int
    batch: int
    base_epochs: int
    search_epochs: int
    extra_epochs: int
    budgets: tuple[int, ...]
    lr: float = 3e-3
    fading: float = 0.5


CONFIGS = {
    # For two shared CPU cores and an hour.
    "small": Config(
        (16, 2), ((1, 16, 1, 1), (6, 16, 2, 1), (6, 24, 3, 2), (6, 40, 2, 2)), 160,
        10_000, 64, 20, 1, 4, (7, 3, 5),
    ),
    # MobileNetV2 at its original width, for a GPU.
    "full": Config(
        (32, 1), ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        1280, 50_000, 128, 200, 20, 100, (16, 10, 6),
    ),
    # A quick test that everything runs.
    "smoke": Config(
        (8, 2), ((1, 8, 1, 1), (6, 8, 2, 1), (6, 12, 2, 2)), 32, 512, 64, 1, 1, 2, (4, 2),
    ),
}  # fmt: skip


def conv_norm(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:  # fmt: skip
    """Convolution and batch norm."""
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(fan_out)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a skip if the shapes allow it."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = fan_in * expand
        self.skip = stride == 1 and fan_in == fan_out
        first = [*conv_norm(fan_in, wide, 1), nn.ReLU6()] if expand > 1 else []
        middle = [*conv_norm(wide, wide, 3, stride, wide), nn.ReLU6()]
        self.body = nn.Sequential(*first, *middle, *conv_norm(wide, fan_out, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        return x + self.body(x) if self.skip else self.body(x)


def network(config: Config, classes: int) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018) for 32x32 images."""
    torch.manual_seed(SEED)
    last, stride = config.stem
    layers: list[nn.Module] = [*conv_norm(3, last, 3, stride), nn.ReLU6()]
    for expand, channels, count, stride in config.blocks:
        for i in range(count):
            layers.append(InvertedResidual(last, channels, stride if i == 0 else 1, expand))
            last = channels
    layers += [*conv_norm(last, config.head, 1), nn.ReLU6()]
    made = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(config.head, classes)
    )
    return made.to(memory_format=torch.channels_last).eval()


def channels_last(batch: Any) -> tuple[tuple[torch.Tensor], torch.Tensor]:
    """A batch in channels-last layout, in which convolutions train fastest on CPUs."""
    x, y = batch
    return (x.to(memory_format=torch.channels_last),), y


def with_norms(model: Any) -> nn.Module:
    """The same network with new weights and a batch norm behind each convolution, for training from scratch."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            fresh = nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
                module.dilation, module.groups, bias=False,
            )  # fmt: skip
            model.set_submodule(name, nn.Sequential(fresh, nn.BatchNorm2d(module.out_channels)))
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    return torch.fx.symbolic_trace(model).to(memory_format=torch.channels_last)


def noise(batch: int) -> np.ndarray:
    """Random inputs for timing."""
    return np.random.default_rng(SEED).standard_normal((batch, 3, 32, 32)).astype(np.float32)


@contextmanager
def urgent(niceness: int | None) -> Iterator[None]:
    """Run at another niceness for a while, so that others on the machine disturb timings less."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        if niceness is not None:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


@dataclass
class Bench:
    """One run: its configuration, data and folder of results."""

    config: Config
    images: LabelledImages | None
    folder: Path
    device: str
    urgency: int | None = None

    @cached_property
    def train(self) -> Batches:
        """Training batches: shifted by up to 4 pixels and mirrored."""
        assert self.images is not None
        return Batches(self.images, self.config.batch, train=True, shift=4, mirror=True)

    @cached_property
    def example(self) -> tuple[torch.Tensor]:
        """Two images, for shapes."""
        return (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(SEED)),)

    def trained(self, module: Any, name: str, epochs: int, lr: float, **options: Any) -> Any:
        """Train a module, or continue from the checkpoint of an earlier run."""
        print(f"{name}: {epochs} epochs", flush=True)
        return recover(
            module, self.train, epochs=epochs, lr=lr, unpack=channels_last, clip=2.0, seed=SEED, device=self.device,
            steps_per_epoch=self.config.images // self.config.batch, checkpoint=self.folder / name,
            checkpoint_every=50, **options,
        ).model.cpu()  # fmt: skip

    def base(self) -> nn.Module:
        """A copy of the trained base network."""
        return copy.deepcopy(self._base)

    @cached_property
    def _base(self) -> nn.Module:
        made = network(self.config, len(self.images.classes))
        return self.trained(made, "base", self.config.base_epochs, self.config.lr)

    # Depth.

    @cached_property
    def savings(self) -> dict[str, float]:
        """The measured time that removing each block's activations would save."""
        base = self.base()
        gated = self.gated(base)
        return self.kept(
            "savings",
            lambda: removal_savings(base, gated, example_inputs=self.example, ending="relu6"),
        )

    def gated(self, base: nn.Module) -> Any:
        """One gate for each block that would merge."""
        return insert_gates(
            base, example_inputs=self.example, mode="top-k", tie="block", max_mac_growth=1.0
        )

    def searched(self, budget: int) -> Any:
        """The base network with a gate for each block, of which ``budget`` are closed by the search."""
        gated, c = self.gated(self.base()), self.config
        blocks = len(switches(gated))
        steps = c.search_epochs * (c.images // c.batch)
        if budget < blocks:
            schedule = GateSchedule(gated, keep=blocks - budget, steps=round(0.8 * steps))
            self.trained(
                gated, f"search-{budget}", c.search_epochs, c.lr / 2, callbacks=[schedule],
                penalty=lambda m: 0.3 * gate_penalty(m, self.savings),
            )  # fmt: skip
        else:
            keep_top(gated, 0)
        print("  removed:", [n for n, gate in gates(gated).items() if not gate.kept], flush=True)
        return gated

    def shallow(self, budget: int) -> Any:
        """The base network without the activations of ``budget`` blocks, padding hoisted; not recovered yet."""
        gated = self.searched(budget)
        steps_ = "fold-constants,remove-activations{ending=relu6},prune-dead,hoist-padding"
        return shrink_graph(gated, steps_, example_inputs=self.example)

    def left(self, budget: int) -> int:
        """The number of extra epochs that remain after the search."""
        c = self.config
        searched = budget < len(switches(self.gated(self.base())))
        return c.extra_epochs - (c.search_epochs if searched else 0)

    def depth(self, budget: int, teacher: bool) -> Any:
        """The shallow network, recovered from labels only, or also with the base network as teacher."""
        name = f"depth-{budget}" + ("-kd" if teacher else "")
        return self.recovered(self.shallow(budget), name, self.left(budget), teacher)

    def fade(self, budget: int) -> Any:
        """The blocks of ``depth``, whose activations fade while relu6 behind the blocks fades in; with the teacher."""
        names = [n for n, g in gates(self.searched(budget)).items() if not g.kept]
        gated = insert_gates(
            self.base(),
            example_inputs=self.example,
            sites=names,
            ending="relu6",
            max_mac_growth=1.0,
        )
        hoist = f"fold-constants,hoist-padding{{through=[{','.join(names)}]}}"
        gated = shrink_graph(gated, hoist, example_inputs=self.example)
        epochs = self.left(budget)
        steps = round(self.config.fading * epochs * (self.config.images // self.config.batch))
        closing = GateSchedule(gated, steps=steps, kind="fade", sites=names)
        coming = GateSchedule(gated, steps=steps, kind="fade", sites="*ending", to=1)
        done = self.recovered(gated, f"fade-{budget}", epochs, True, callbacks=[closing, coming])
        return shrink_graph(done, "remove-activations,prune-dead", example_inputs=self.example)

    def depth_plus(self, budget: int) -> Any:
        """The shallow network, merged, expanded with gated activations, trained, shrunk and trained again."""
        merged = shrink_graph(self.shallow(budget), example_inputs=self.example)
        grown = [n for n, m in merged.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
        grown = [n for n in grown if merged.get_submodule(n).kernel_size != (1, 1)]
        names = ",".join(grown[1:])  # Without the stem, which is not a merged block.
        wide = shrink_graph(
            merged,
            f"expand-linear{{names=[{names}],expansion=2,value=0.5}}",
            example_inputs=self.example,
        )
        # Expanded layers have no batch norms, without which they train badly.
        some = torch.cat([images for images, _ in islice(self.train, 10)])
        wide = shrink_graph(
            wide, "fresh-norms", example_inputs=self.example, calibration=some.numpy()
        )
        first = self.left(budget) // 2
        wide = self.recovered(
            wide, f"depth-plus-{budget}-wide", first, True, penalty=lambda m: 0.2 * gate_penalty(m)
        )
        narrow = shrink_graph(
            wide, "remove-activations{keep=0},prune-dead", example_inputs=self.example
        )
        return self.recovered(narrow, f"depth-plus-{budget}", self.left(budget) - first, True)

    def scratch(self, budget: int) -> Any:
        """The merged network, trained from random weights."""
        merged = shrink_graph(self.shallow(budget), example_inputs=self.example)
        torch.manual_seed(SEED)
        fresh = with_norms(merged)
        c = self.config
        return self.trained(fresh, f"scratch-{budget}", c.base_epochs + c.extra_epochs, c.lr)

    # Width.

    def width(self, budget: int, kind: str, teacher: bool) -> Any:
        """The base network, pruned to the latency of ``depth`` and recovered."""
        shape = self.shallow(budget)
        ratios = self.kept(f"ratio-{kind}-{budget}", lambda: self.ratio(shape, budget, kind))
        name = f"{kind}-{budget}" + ("-kd" if teacher else "")
        return self.recovered(
            self.pruned(kind, ratios["ratio"]), name, self.config.extra_epochs, teacher
        )

    def pruned(self, kind: str, ratio: float) -> nn.Module:
        """The base network with channels pruned by Torch-Pruning; not recovered yet."""
        import torch_pruning as tp

        model = self.base().eval()
        head = [m for m in model.modules() if isinstance(m, nn.Linear)]
        tp.pruner.BasePruner(
            model, self.example[0], tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
            global_pruning=kind == "importance", max_pruning_ratio=0.9, ignored_layers=head, round_to=ROUND,
        ).step()  # fmt: skip
        return model.to(memory_format=torch.channels_last)

    def ratio(self, shape: Any, budget: int, kind: str) -> dict[str, float]:
        """The least pruning ratio at which the pruned network is as fast as the shallow one: bisection."""
        wanted = session(self.file(shape, f"shape-depth-{budget}"), threads=1)
        feeds = {wanted.get_inputs()[0].name: noise(MATCHED_BATCH)}
        low, high = 0.0, 0.95
        tried: list[tuple[float, float]] = []
        for _ in range(7):
            ratio = (low + high) / 2
            path = self.file(self.pruned(kind, ratio), f"shape-{kind}-{budget}")
            found = session(path, threads=1)
            inputs = {found.get_inputs()[0].name: noise(MATCHED_BATCH)}
            runs = (lambda: wanted.run(None, feeds), lambda: found.run(None, inputs))  # noqa: B023
            tried.append((ratio, paired_latency(*runs, pairs=25).speedup))
            low, high = (ratio, high) if tried[-1][1] < MATCH else (low, ratio)
        # The smallest ratio that is fast enough.
        ratio, speed = min(pair for pair in tried if pair[1] >= MATCH)
        return {"ratio": ratio, "speed_beside_depth": speed}

    # Helpers of all variants.

    def recovered(self, module: Any, name: str, epochs: int, teacher: bool, **options: Any) -> Any:
        """Train a changed network with half of the base network's learning rate."""
        if teacher:
            options |= {"teacher": self.base(), "distill_weight": 0.7}
        return self.trained(module, name, epochs, self.config.lr / 2, **options)

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """A measurement, read from the folder if an earlier run stored it: later runs must use the same value."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            with urgent(self.urgency):
                write_json(str(path), compute())
        return json.loads(path.read_text())

    def file(self, model: Any, name: str) -> Path:
        """The model merged, folded and exported, for any batch size."""
        path = self.folder / f"{name}.onnx"
        small = shrink_graph(model.eval().cpu(), example_inputs=self.example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                small, self.example, path.with_suffix(".tmp"), dynamo=True, verbose=False, external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", max=1 << 16)},),
            )  # fmt: skip
        path.with_suffix(".tmp").replace(path)
        return path

    def accuracy(self, path: Path) -> float:
        """The accuracy of an ONNX file on all test images, in onnxruntime."""
        run, right = session(path, threads=1), 0
        name = run.get_inputs()[0].name
        for x, y in Batches(self.images, 500, train=False):
            right += int((run.run(None, {name: x.numpy()})[0].argmax(1) == y.numpy()).sum())
        return right / len(self.images.test)

    def variants(self) -> Iterator[tuple[str, str, int, Callable[[], Any]]]:
        """For each variant: name, kind, budget, and a function that trains it."""
        yield "base", "base", 0, self.base
        for i, b in enumerate(self.config.budgets):
            yield f"fade-{b}", "fade", b, lambda b=b: self.fade(b)
            yield f"depth-{b}-kd", "depth-kd", b, lambda b=b: self.depth(b, True)
            for kind in ("importance", "uniform"):
                yield f"{kind}-{b}", kind, b, lambda b=b, k=kind: self.width(b, k, False)
            yield f"depth-{b}", "depth", b, lambda b=b: self.depth(b, False)
            yield f"importance-{b}-kd", "importance-kd", b, lambda b=b: self.width(b, "importance", True)  # fmt: skip
            if i == 0:
                yield f"depth-plus-{b}", "depth+", b, lambda b=b: self.depth_plus(b)
            if i == 1:
                first = self.config.budgets[0]
                yield f"scratch-{first}", "scratch", first, lambda b=first: self.scratch(b)

    def run(self) -> None:
        """Train and export each missing variant, and store its accuracy and size."""
        for name, kind, budget, make in self.variants():
            path = self.folder / f"{name}.json"
            if path.exists():
                continue
            start = time.perf_counter()
            file = self.file(make(), name)
            size = Size.of(load(file)[0])
            record = {
                "name": name, "kind": kind, "budget": budget, "accuracy": self.accuracy(file),
                "parameters": size.parameters, "macs": size.macs, "convolutions": size.ops.get("Conv", 0),
            }  # fmt: skip
            write_json(str(path), record)
            print(
                f"{name}: {record['accuracy']:.2%}, {time.perf_counter() - start:.0f} s", flush=True
            )


# Latencies.


def rounds(calls: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; every round makes all calls, in random order."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng(SEED)
    for turn in range(-3, count):
        for i in rng.permutation(len(names)):
            start = time.perf_counter()
            calls[names[i]]()
            if turn >= 0:
                seconds[names[i]].append(time.perf_counter() - start)
    return seconds


def runtimes(
    folder: Path, names: list[str]
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """For each runtime and batch size: its title, and a call that runs each network once, by name."""
    for batch in (1, 64):
        calls: dict[str, Callable[[], object]] = {}
        for name in names:
            run = session(folder / f"{name}.onnx", threads=1)
            feeds = {run.get_inputs()[0].name: noise(batch)}
            calls[name] = lambda run=run, feeds=feeds: run.run(None, feeds)
        yield f"onnxruntime, 1 thread, batch {batch}", calls
    yield from litert(folder, names)
    if not torch.cuda.is_available():
        print("torch CUDA is left out: there is no GPU")
    elif find_spec("onnx2torch") is None:
        print("torch CUDA is left out: pip install onnx2torch, which converts the files to torch")
    else:
        yield "torch CUDA, batch 128", cuda(folder, names)


def litert(folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """The same files, converted by graphshrink's TFLite target, if LiteRT is installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter

        from graphshrink.targets import tflite
    except ImportError as error:
        print(f"LiteRT is left out: {error}")
        return
    calls: dict[str, Callable[[], object]] = {}
    for name in names:
        path = folder / f"{name}.tflite"
        graph, _ = load(fixed_batch(folder / f"{name}.onnx"))
        tflite.save(graph, path, tflite.Options())
        run = Interpreter(model_path=str(path), num_threads=1)
        run.allocate_tensors()
        slot = run.get_input_details()[0]
        x = noise(1) if slot["shape"][1] == 3 else noise(1).transpose(0, 2, 3, 1)
        run.set_tensor(slot["index"], x)
        calls[name] = run.invoke
    yield "LiteRT, 1 thread, batch 1", calls


def fixed_batch(path: Path) -> Any:
    """An ONNX model whose batch size is 1."""
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def cuda(folder: Path, names: list[str]) -> dict[str, Callable[[], object]]:
    """The same files as torch modules on the GPU, in half precision."""
    from onnx2torch import convert

    calls: dict[str, Callable[[], object]] = {}
    x = torch.from_numpy(noise(128)).cuda().half().to(memory_format=torch.channels_last)
    for name in names:
        model = convert(str(folder / f"{name}.onnx")).cuda().half().eval()

        def call(model: nn.Module = model) -> None:
            with torch.no_grad():
                model(x)
            torch.cuda.synchronize()

        calls[name] = call
    return calls


def measure(folder: Path) -> dict[str, Any]:
    """Latencies of all variants that were trained, each as a paired ratio to the base network."""
    files = sorted(folder.glob("*.json"))
    records = [r for r in (json.loads(f.read_text()) for f in files) if "accuracy" in r]
    names = [record["name"] for record in records]
    for record in records:
        record["latency"] = {}
    for title, calls in runtimes(folder, names):
        seconds = rounds(calls, 60)
        base = np.array(seconds["base"])
        for record in records:
            own = np.array(seconds[record["name"]])
            ratios = base / own
            low, high = median_interval(ratios)
            record["latency"][title] = {
                "milliseconds": float(np.median(own) * 1e3),
                "speedup": float(np.median(ratios)),
                "low": low,
                "high": high,
            }
    return {"records": records, "verdict": verdict(records)}


def verdict(records: list[dict[str, Any]]) -> dict[str, Any]:
    """For each runtime, the pair of a shallow and a pruned network with the largest gain in accuracy, among pairs with the speed of GOAL."""
    found: dict[str, Any] = {}
    for title in records[0]["latency"]:
        pairs = [
            (100 * (d["accuracy"] - w["accuracy"]), d["latency"][title]["speedup"] / w["latency"][title]["speedup"],
             d["name"], w["name"])
            for d in records if d["kind"].startswith("depth")
            for w in records if w["kind"].split("-")[0] in ("uniform", "importance")
        ]  # fmt: skip
        fast = [pair for pair in pairs if pair[1] >= GOAL[1]]
        if fast:
            points, speed, depth, width = max(fast)
            found[title] = {
                "depth": depth, "width": width, "points": points, "speed": speed, "met": points >= GOAL[0],
            }  # fmt: skip
    return found


# Output.


def table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    titles = list(result["records"][0]["latency"])
    lines = [
        "| network | accuracy | MACs | parameters | " + " | ".join(titles) + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(titles),
    ]
    for r in sorted(result["records"], key=lambda r: (r["budget"], r["name"])):
        speeds = (r["latency"][t] for t in titles)
        cells = [f"{s['milliseconds']:.2f} ms, {s['speedup']:.2f}x" for s in speeds]
        lines.append(
            f"| {r['name']} | {r['accuracy']:.2%} | {r['macs'] / 1e6:.2f} M | {r['parameters']:,} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot accuracy over latency, one panel for each runtime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = list(result["records"][0]["latency"])
    figure, axes = pyplot.subplots(1, len(titles), figsize=(6 * len(titles), 4.5), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        for kind in dict.fromkeys(r["kind"] for r in result["records"]):
            rows = [r for r in result["records"] if r["kind"] == kind]
            points = sorted(
                (r["latency"][title]["milliseconds"], 100 * r["accuracy"]) for r in rows
            )
            axis.plot(*zip(*points, strict=True), marker="o", label=kind)
        axis.set(title=title, xlabel="latency, ms", ylabel="test accuracy, %")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def machine() -> dict[str, Any]:
    """The hardware and the versions, for the JSON."""
    packages = ("torch", "onnxruntime", "torch-pruning", "graphshrink")
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(),
        "gpu": gpu, **{name: version(name) for name in packages},
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder or .npz file")
    parser.add_argument(
        "--results", required=True, type=Path, help="folder for checkpoints and results"
    )
    parser.add_argument("--config", choices=[*CONFIGS, "transfer"], default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--measure", action="store_true", help="time the trained variants and report"
    )
    parser.add_argument("--urgency", type=int, help="niceness while latencies are matched")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--weights", type=Path, help="transfer: the folder with the packages")
    parser.add_argument(
        "--network", choices=["lite0", "mobilenetv2"], default="lite0", help="transfer"
    )
    parser.add_argument("--only", default="*", help="transfer: train only rows with such a name")
    parser.add_argument("--rounds", type=int, default=201, help="transfer: rounds of the timing")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.config != "full" else torch.get_num_threads())
    torch.set_flush_denormal(True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    given.results.mkdir(parents=True, exist_ok=True)
    if given.config == "transfer":
        import transfer

        if given.weights is None:
            parser.error("--config transfer needs --weights, the folder with the packages")
        transfer.main(given)
        return
    if not given.measure:
        images = read_images(given.data)
        Bench(CONFIGS[given.config], images, given.results, given.device, given.urgency).run()
        return
    result = measure(given.results)
    command = f"python benchmarks/depth_vs_width.py --data cifar10.npz --results RESULTS --config {given.config}"
    wanted = Bench(CONFIGS[given.config], None, given.results, given.device).variants()
    there = {record["name"] for record in result["records"]}
    result |= {
        "not_trained": [name for name, *_ in wanted if name not in there],
        "commands": [command, f"{command} --measure"], "seed": SEED, "config": asdict(CONFIGS[given.config]),
        "machine": machine(), "goal": {"points": GOAL[0], "speed": GOAL[1]},
    }  # fmt: skip
    write_json(str(given.output.with_suffix(".json")), result)
    plot(result, given.output.with_suffix(".png"))
    print(table(result))
    print(json.dumps(result["verdict"], indent=1))


if __name__ == "__main__":
    main()
