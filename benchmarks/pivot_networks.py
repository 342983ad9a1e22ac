"""Whole networks in blocks, at equal accuracy: a network in the style of AlexNet and a transformer encoder, on CIFAR-10.

For each of the two networks:

- ``dense`` is trained, and ``dense, trained on`` continues for the extra epochs: it is the teacher of the others;
- ``k = 2, 4, 8``: ``pivot`` puts all layers but the first and the last (of the encoder: all MLPs) into blocks, with refit
  on calibration data, and the result is recovered for the extra epochs;
- ``dense, recovered`` is recovered in the same way without blocks: the accuracy that networks in blocks must reach;
- ``mixed``: blocks of several sizes, two ``pivot`` passes in one pipeline: few blocks in layers where they cost accuracy, many in the others.

A trained network is kept as an ONNX file in which dense layers in blocks are one weight with zeros. Measuring fixes its batch
size and runs the exact pipeline and ``pivot{method=zeros}``, which lowers them to the fastest form for that size. Accuracy on
all test images, latency and sizes are those of the resulting file, in onnxruntime on one thread. An interrupted run
continues; with ``--measure-only`` nothing is trained::

    python benchmarks/pivot_networks.py --data cifar10.npz --out local/pivot_networks [--measure-only]
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from graphshrink import DEFAULT_PIPELINE, recover, shrink
from graphshrink.cli.terminal import write_json
from graphshrink.datasets import Batches, LabelledImages, read_images
from graphshrink.running.latency import paired_latency_for
from graphshrink.running.sessions import session

SEED = 0
TRAINED_ON = "dense, trained on"
"""The teacher."""

RECOVERED = "dense, recovered"
"""The variant whose accuracy those in blocks must reach."""

FORM = "tflite"
"""The target whose form of dense layers, one layer for each block, is the easiest to join again."""

BATCHES = (1, 32)
"""The batch sizes of the ONNX files."""

RESULT = Path(__file__).parent / "results" / "pivot_networks.json"


# The networks.


def alexnet(classes: int) -> nn.Sequential:
    """Five convolutions and three dense layers, as in AlexNet (Krizhevsky et al. 2012); for 32 x 32 images, with batch norms."""
    layers: dict[str, nn.Module] = {}
    channels, strides, pooled = (3, 64, 192, 384, 256, 256), (2, 1, 1, 1, 1), (1, 2, 5)
    for i, stride in enumerate(strides, 1):
        layers[f"conv{i}"] = nn.Conv2d(channels[i - 1], channels[i], 3, stride, 1)
        layers[f"norm{i}"], layers[f"relu{i}"] = nn.BatchNorm2d(channels[i]), nn.ReLU()
        if i in pooled:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten(1)
    for i in (1, 2):
        layers[f"fc{i}"], layers[f"act{i}"] = nn.Linear(1024, 1024), nn.ReLU()
    layers["head"] = nn.Linear(1024, classes)
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


class EncoderLayer(nn.Module):
    """Self-attention and an MLP, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One layer."""
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1) @ v
        x = x + self.out(y.permute(0, 2, 1, 3).reshape(batch, tokens, width))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """A transformer encoder for 32 x 32 images: 16 tokens behind a small convolutional stem."""

    def __init__(self, classes: int, width: int = 256, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, width, 4, 4), nn.Flatten(2)
        )
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of classes."""
        x = self.layers(self.stem(x).transpose(1, 2) + self.places)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Task:
    """A network and its training.

    Attributes:
        make: Makes it, for a number of classes.
        merge: Passes before ``pivot``.
        layers: The layers in blocks.
        mixed: The blocks of each of them in the mixed configurations.
        base_epochs: Epochs of the dense network.
        extra_epochs: Epochs of all other variants.
        lr: The largest learning rate; the dense network is trained on with half of it.
    """

    make: Callable[[int], nn.Module]
    merge: str
    layers: tuple[str, ...]
    mixed: dict[str, dict[str, int]]
    base_epochs: float
    extra_epochs: float
    lr: float

    def blocks(self, name: str) -> dict[str, int]:
        """The number of blocks of each layer of a variant."""
        if name.startswith("dense"):
            return {}
        return self.mixed.get(name) or dict.fromkeys(self.layers, int(name.split()[-1]))


CONVS, DENSE = ("conv2", "conv3", "conv4", "conv5"), ("fc1", "fc2")
MLPS = tuple(f"layers.{i}.{side}" for i in range(3) for side in ("up", "down"))

TASKS = {
    "alexnet": Task(
        alexnet, DEFAULT_PIPELINE, (*CONVS, *DENSE),
        {
            "mixed: fc 8, conv 2": dict.fromkeys(DENSE, 8) | dict.fromkeys(CONVS, 2),
            "late: conv4, conv5, fc1 2, fc2 4": dict.fromkeys(("conv4", "conv5", "fc1"), 2) | {"fc2": 4},
        },
        2, 1.25, 1.5e-3,
    ),
    "encoder": Task(
        Encoder, "", MLPS,
        {},
        2, 1, 1e-3,
    ),
}  # fmt: skip


def passes(blocks: dict[str, int]) -> str:
    """One ``pivot`` pass for each number of blocks, the largest first."""
    texts = []
    for k in sorted(set(blocks.values()), reverse=True):
        names = ",".join(name for name, count in blocks.items() if count == k)
        texts.append(f"pivot{{blocks={k},layers=[{names}],method=search,force=true}}")
    return ",".join(texts)


# Training.


class Endless:
    """The batches of all epochs in order."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.batches


def joined(small: Any, layers: Iterable[str]) -> Any:
    """A network in blocks, with each dense layer as one weight with zeros again; convolutions stay as they are.

    Args:
        small: The result of ``pivot`` for torch: Split, a layer for each block, Concat.
        layers: The layers in blocks.
    """
    small = copy.deepcopy(small).eval()
    graph = small.graph
    for name in layers:
        blocks = [n for n in graph.nodes if str(n.target).startswith(f"{name}.block")]
        if not blocks:
            continue
        parts = [small.get_submodule(n.target) for n in blocks]
        weight = torch.block_diag(*(p.weight for p in parts)).detach()
        whole = nn.Linear(*weight.T.shape)
        whole.weight = nn.Parameter(weight)
        whole.bias = nn.Parameter(torch.cat([p.bias for p in parts]))
        (join,) = blocks[0].users
        split = blocks[0].args[0].args[0]
        with graph.inserting_before(join):
            join.replace_all_uses_with(graph.call_module(name, (split.args[0],)))
        graph.eliminate_dead_code()
        small.set_submodule(name, whole)
    small.recompile()
    return small


@torch.no_grad()
def with_norms(net: nn.Module, samples: Sequence[torch.Tensor]) -> nn.Module:
    """A batch norm behind each convolution, in place, that changes nothing at first: it makes training easier.

    Args:
        net: A network whose batch norms were merged.
        samples: The samples for its statistics.
    """
    moments: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            found = moments.setdefault(name, [])
            hooks.append(
                conv.register_forward_hook(
                    lambda _, x, y, found=found: found.append(
                        torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])
                    )
                )
            )
    for x in samples:
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    for name, found in moments.items():
        mean, square = torch.stack(found).mean(0)
        norm = nn.BatchNorm2d(len(mean))
        norm.running_mean, norm.running_var = mean.clone(), square - mean.square()
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(mean)
        net.set_submodule(name, nn.Sequential(net.get_submodule(name), norm))
    return net.eval()


@dataclass
class Bench:
    """One network, the data and the folder of results."""

    name: str
    data: LabelledImages
    folder: Path
    images: int
    batch: int = 64

    @property
    def task(self) -> Task:
        """The training of the network."""
        return TASKS[self.name]

    @cached_property
    def train(self) -> Batches:
        """Training batches: shifted by up to 4 pixels and mirrored."""
        return Batches(self.data, self.batch, train=True, shift=4, mirror=True)

    @cached_property
    def samples(self) -> list[torch.Tensor]:
        """Training images for calibration, unchanged."""
        plain = Batches(self.data, 256, train=True)
        torch.manual_seed(SEED)
        return [x for (x, _), _ in zip(plain, range(8), strict=False)]

    @property
    def variants(self) -> list[str]:
        """The variants to train, the most important first."""
        sizes = [f"k = {k}" for k in (4, 2, 8)]
        return ["dense", TRAINED_ON, RECOVERED, *sizes, *self.task.mixed]

    def path(self, variant: str, suffix: str) -> Path:
        """The file for the results of a variant."""
        words = "-".join("".join(c if c.isalnum() else " " for c in variant).split())
        return self.folder / f"{self.name}-{words}{suffix}"

    def fresh(self) -> nn.Module:
        """The network, with random weights."""
        torch.manual_seed(SEED)
        return self.task.make(len(self.data.classes)).eval()

    def dense(self, variant: str = "dense") -> nn.Module:
        """The dense network after its first training, or after the second one."""
        from safetensors.torch import load_file

        net = self.fresh()
        net.load_state_dict(load_file(self.path(variant, ".safetensors")))
        return net

    def start(self, variant: str) -> nn.Module:
        """The network from which a variant is trained."""
        blocks = self.task.blocks(variant)
        if variant == "dense":
            return self.fresh()
        net: Any = self.dense()
        if variant == TRAINED_ON:
            return net
        # Batch norms that are merged are not in the way of shuffles.
        text = ",".join(filter(None, (self.task.merge, passes(blocks))))
        result = shrink(
            net, text, example_inputs=(self.samples[0][:2],), calibration=self.samples, target=FORM
        )
        refused = [f"{r.node}: {r.reason}" for p in result.report.passes for r in p.refusals]
        if missed := [text for text in refused if "not pivoted" in text]:
            sys.exit("\n".join(missed))
        for rewrite in (r for p in result.report.passes for r in p.rewrites):
            if rewrite.what.startswith("pivot"):
                print(f"  {', '.join(rewrite.nodes)}: {rewrite.what}", flush=True)
        return with_norms(result.model, self.samples) if self.name == "alexnet" else result.model

    def learn(self, variant: str) -> None:
        """Train a variant, unless its file exists."""
        from safetensors.torch import save_file

        path, task = self.path(variant, ".onnx"), self.task
        if path.exists():
            return
        print(f"{self.name}, {variant}", flush=True)
        blocks = task.blocks(variant)
        epochs = task.base_epochs if variant == "dense" else task.extra_epochs
        options: dict[str, Any] = {}
        taught = variant not in ("dense", TRAINED_ON)
        if taught:
            # Convolutions that are not trained run faster with channels last.
            teacher = self.dense(TRAINED_ON).to(memory_format=torch.channels_last)
            options = {"teacher": teacher, "distill_weight": 0.5}
        checkpoint = self.path(variant, ".checkpoint")
        # One long epoch can have any number of steps.
        result = recover(
            self.start(variant), Endless(self.train), steps_per_epoch=int(epochs * self.images) // self.batch,
            lr=task.lr * (0.5 if variant == TRAINED_ON else 1), clip=2.0, warmup=0.15, seed=SEED,
            checkpoint=checkpoint, checkpoint_every=200, progress=False, **options,
        )  # fmt: skip
        net = result.model
        if blocks:
            net = joined(net, blocks)
            x = self.samples[0][:32]
            with torch.no_grad():
                want, got = result.model(x), net(x)
            if not torch.allclose(got, want, rtol=0, atol=1e-5 * float(want.abs().max())):
                sys.exit(f"{variant}: with zeros the network gives other outputs")
        if not taught:
            partial = path.with_suffix(".tmp")
            save_file(net.state_dict(), partial)
            partial.replace(self.path(variant, ".safetensors"))
        last = result.history[-1]
        write_json(str(self.path(variant, ".json")), {**last, "epochs": epochs})
        # The file that marks it as finished is written last.
        export(net, path)
        shutil.rmtree(checkpoint)
        print(f"  {last['seconds']:.0f} s, loss {last['loss']:.3f}", flush=True)


def export(net: nn.Module, path: Path) -> None:
    """Write a network as ONNX for any batch size."""
    partial = path.with_suffix(".tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.zeros(2, 3, 32, 32),), partial, dynamo=False, input_names=["x"],
            output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip
    partial.replace(path)


# Measuring.


def node(layer: str) -> str:
    """A pattern for the ONNX nodes of a layer."""
    *above, own = layer.split(".")
    number = f"_{above[-1]}" if above and above[-1] != "0" else ""
    return f"/{own}{number}/*"


@dataclass
class Measured:
    """The file of one variant for one batch size.

    Attributes:
        run: Runs it.
        parameters: Its numbers.
        macs: Multiply-accumulates for one image.
        layers: The forms of the layers in blocks.
    """

    run: Callable[[Any], Any]
    parameters: int
    macs: int
    layers: list[str]


def lowered(bench: Bench, variant: str, batch: int) -> Measured:
    """Make the file for a batch size, and load it."""
    text = DEFAULT_PIPELINE
    for name, k in bench.task.blocks(variant).items():
        if name not in CONVS:
            # A pass for each: none shall reorder channels for another, all blocks lie as they should.
            text += f",pivot{{blocks={k},layers={node(name)},method=zeros}}"
    path = bench.path(variant, ".onnx")
    result = shrink(path, text, fixed_shapes={"x": (batch, 3, 32, 32)})
    small = bench.path(f"{variant}, batch {batch}", ".onnx")
    result.save(small)
    done = [r for p in result.report.passes for r in p.rewrites if r.what.startswith("pivot")]
    skipped = [r for p in result.report.passes if p.text.startswith("pivot") for r in p.refusals]
    said = [f"{', '.join(r.nodes)}: {r.what}" for r in done] + [
        f"{r.node}: {r.reason}" for r in skipped
    ]
    loaded = session(small, threads=1)
    size = result.report.after
    return Measured(
        lambda x: loaded.run(None, {"x": x})[0], size.parameters, size.macs // batch, said
    )


def scores(run: Callable[[Any], Any], data: LabelledImages, batch: int, count: int) -> Any:
    """The outputs for the first test images, of shape (count, classes)."""
    found = []
    for x, _ in islice(Batches(data, batch, train=False), -(-count // batch)):
        full = torch.zeros(batch, *x.shape[1:])
        full[: len(x)] = x
        found.append(run(full.numpy())[: len(x)])
    return np.concatenate(found)[:count]


def timed(dense: Measured, made: Measured, batch: int, seconds: float) -> dict[str, Any]:
    """The latency of a file beside that of the dense network."""
    x = np.random.default_rng(SEED).standard_normal((batch, 3, 32, 32)).astype(np.float32)
    found = paired_latency_for(
        seconds, lambda: dense.run(x), lambda: made.run(x), least=21, most=1001
    )
    return {
        "dense ms": found.milliseconds[0], "ms": found.milliseconds[1],
        "speedup": found.speedup, "interval": found.interval, "lowered": made.layers,
    }  # fmt: skip


def measure(bench: Bench, seconds: float) -> list[dict[str, Any]]:
    """All finished variants, compared with the dense network."""
    labels = np.asarray(bench.data.test_labels)
    there = [v for v in bench.variants if bench.path(v, ".onnx").exists()]
    one, many = BATCHES
    dense = {batch: lowered(bench, "dense", batch) for batch in BATCHES} if there else {}
    correct: dict[str, Any] = {}
    records = []
    for variant in there:
        files = {batch: lowered(bench, variant, batch) for batch in BATCHES}
        found = scores(files[many].run, bench.data, many, len(labels))
        # The two files compute the same.
        some = scores(files[one].run, bench.data, one, 200)
        if not np.allclose(some, found[:200], rtol=0, atol=1e-3):
            sys.exit(f"{bench.name}, {variant}: the files for {one} and {many} images differ")
        right = correct[variant] = (found.argmax(1) == labels).astype(float)
        accuracy, count = float(right.mean()), len(labels)
        record: dict[str, Any] = {
            "network": bench.name, "variant": variant, "accuracy": accuracy,
            "standard error": (accuracy * (1 - accuracy) / count) ** 0.5,
            "parameters left": files[many].parameters / dense[many].parameters,
            "MACs left": files[many].macs / dense[many].macs,
        }  # fmt: skip
        if RECOVERED in correct:
            # On the same images, so that what both find hard cancels.
            apart = right - correct[RECOVERED]
            error = float(apart.std() / count**0.5)
            record |= {"difference": float(apart.mean()), "its standard error": error}
            record["equal"] = bool(apart.mean() >= -2 * error)
        for batch in BATCHES:
            record[f"batch {batch}"] = timed(dense[batch], files[batch], batch, seconds)
        records.append(record)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| network | | accuracy, % | difference to dense, recovered | parameters left | MACs left | faster, batch 1 | batch 32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        apart = ""
        if "difference" in r and r["variant"] != RECOVERED:
            apart = f"{100 * r['difference']:+.2f} ± {100 * r['its standard error']:.2f}, "
            apart += "equal" if r["equal"] else "worse"
        speeds = []
        for batch in BATCHES:
            found = r[f"batch {batch}"]
            low, high = found["interval"]
            speeds.append(f"{found['speedup']:.2f} ({low:.2f} to {high:.2f})")
        lines.append(
            f"| {r['network']} | {r['variant']} | {100 * r['accuracy']:.2f} ± {100 * r['standard error']:.2f} | {apart} | "
            f"{r['parameters left']:.1%} | {r['MACs left']:.1%} | {' | '.join(speeds)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train the missing variants, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder or .npz file")
    parser.add_argument("--out", required=True, type=Path, help="where trained networks are kept")
    parser.add_argument("--networks", default=",".join(TASKS))
    parser.add_argument("--images", type=int, default=50_000, help="training images in an epoch")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="about how long each pair is timed"
    )
    parser.add_argument("--measure-only", action="store_true", help="train nothing")
    parser.add_argument("--train-only", action="store_true", help="measure nothing")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON file")
    given = parser.parse_args()
    names = given.networks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        parser.error(f"--networks: {unknown[0]!r} is none of {', '.join(TASKS)}")
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    given.out.mkdir(parents=True, exist_ok=True)
    data = read_images(given.data)
    benches = [Bench(name, data, given.out, given.images) for name in names]
    wanted = zip_longest(*(bench.variants for bench in benches))
    for variants in () if given.measure_only else wanted:
        for bench, variant in zip(benches, variants, strict=True):
            if variant is not None:
                bench.learn(variant)
    if given.train_only:
        return
    records = [record for bench in benches for record in measure(bench, given.seconds)]
    print(table(records))
    tasks = {n: {"base": t.base_epochs, "extra": t.extra_epochs} for n, t in TASKS.items()}
    write_json(
        str(given.result),
        {"records": records, "epochs": tasks, "images": given.images, "seed": SEED, "machine": machine()},
    )  # fmt: skip


def machine() -> dict[str, Any]:
    """A general description of the machine."""
    return {
        "processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnxruntime", "graphshrink")},
    }  # fmt: skip


if __name__ == "__main__":
    main()
