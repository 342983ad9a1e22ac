"""Recurrent layers in blocks: LSTM and GRU of n hidden units beside k layers of n / k hidden units, in turn, in three runtimes.

A layer reads n inputs. Its weights are zero outside k blocks of inputs and hidden units ("divided"), or outside k blocks of hidden units alone
("whole": each of the k layers reads all inputs). ``pivot{method=zeros}`` writes the k layers; that they compute the same is checked. The last form, "narrow", is a
single dense layer of as many weights as the divided one: what the same number of weights could cost at best. Each form is timed in turn with the dense
layer in one process; ratios are those of the same round::

    OMP_NUM_THREADS=1 python benchmarks/recurrent.py [--hidden 256,512,1024] [--blocks 2,4] [--steps 32] [--batch 1] [--rounds 31]
        [--kinds lstm,gru] [--runtimes onnxruntime,litert,torch] [--markdown benchmarks/results/recurrent.md]

The exit code is 1 if a form computes other numbers than the dense layer with its zeros.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from graphshrink import shrink, to_torch
from graphshrink.planning.latency.timing import in_turn

GATES = {"lstm": 4, "gru": 3}
ATTRIBUTES: dict[str, dict[str, Any]] = {"lstm": {}, "gru": {"linear_before_reset": 1}}
RUNTIMES = ("onnxruntime", "litert", "torch")
MOST_ERROR = 1e-4
"""The largest difference, relative to the largest output."""

Run = Callable[[], Any]


@dataclass(frozen=True)
class Line:
    """What was found of one form in one runtime.

    Attributes:
        runtime: The runtime.
        kind: The kind of the layer.
        hidden: The number of hidden units.
        form: The form and its number of blocks.
        dense: Milliseconds of the dense layer, the median.
        own: Milliseconds of the form, the median.
        ratios: How many times faster it is in each round.
        error: The largest difference to the dense layer with the same zeros; ``None`` for another layer.
    """

    runtime: str
    kind: str
    hidden: int
    form: str
    dense: float
    own: float
    ratios: list[float]
    error: float | None

    @property
    def wrong(self) -> bool:
        """Whether it computes other numbers."""
        return self.error is not None and not self.error <= MOST_ERROR


def model_of(
    kind: str,
    hidden: int,
    inputs: int,
    steps: int,
    batch: int,
    blocks: int = 1,
    *,
    divided: bool = True,
) -> onnx.ModelProto:
    """A model of one layer, whose weights are zero outside blocks."""
    rng = np.random.default_rng(0)
    rows = GATES[kind] * hidden
    w = rng.normal(size=(1, rows, inputs)) / np.sqrt(inputs)
    r = rng.normal(size=(1, rows, hidden)) / np.sqrt(hidden)
    b = rng.normal(size=(1, 2 * rows)) * 0.1
    unit = np.arange(hidden) * blocks // hidden
    of_row = np.tile(unit, GATES[kind])[:, None]
    r *= of_row == unit
    if divided:
        w *= of_row == np.arange(inputs) * blocks // inputs
    constants = {"w": w, "r": r, "b": b}
    node = helper.make_node(
        kind.upper(),
        ["x", "w", "r", "b"],
        ["y"],
        name="layer",
        hidden_size=hidden,
        **ATTRIBUTES[kind],
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, inputs])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, hidden])
    made = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()]
    graph = helper.make_graph([node], kind, [x], [y], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_blocks(model: onnx.ModelProto, count: int, divided: bool) -> onnx.ModelProto:
    """The model with its layer written in blocks.

    Raises:
        RuntimeError: If the blocks are not written in the expected form.
    """
    result = shrink(model, f"pivot{{blocks={count},method=zeros,force=true}}")
    whats = [r.what for r in result.report.passes[0].rewrites]
    end = "side by side" if divided else "read all inputs"
    if not whats or not whats[-1].endswith(end):
        reasons = [r.reason for r in result.report.passes[0].refusals]
        raise RuntimeError(f"not in {count} blocks: {whats or reasons}")
    return result.model


def runner(runtime: str, model: onnx.ModelProto, x: Any, folder: Path) -> Run:
    """A call that runs a model once and returns its output."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"x": x})[0]
    if runtime == "torch":
        module, given = to_torch(model).eval(), torch.from_numpy(x)

        def call() -> Any:
            with torch.inference_mode():
                return module(given)

        return call
    from ai_edge_litert.interpreter import Interpreter

    path = folder / "model.tflite"
    done = shrink(model, (), target="tflite").save(path)
    order = done.data["inputs"]["x"]
    back = np.argsort(next(iter(done.data["outputs"].values())))
    loaded = Interpreter(model_path=str(path), num_threads=1)
    loaded.allocate_tensors()
    source, result = loaded.get_input_details()[0], loaded.get_output_details()[0]
    stored = np.ascontiguousarray(x.transpose(order))

    def invoke() -> Any:
        loaded.set_tensor(source["index"], stored)
        loaded.invoke()
        return loaded.get_tensor(result["index"]).transpose(back)

    return invoke


def lines_of(
    kind: str, hidden: int, options: argparse.Namespace, runtime: str, folder: Path
) -> list[Line]:
    """The lines of one layer in one runtime."""
    steps, batch = options.steps, options.batch
    x = np.random.default_rng(1).normal(size=(steps, batch, hidden)).astype(np.float32)
    forms: dict[str, tuple[Run, float | None]] = {}
    for count in options.blocks:
        for form, divided in (("divided", True), ("whole", False)):
            zeros = model_of(kind, hidden, hidden, steps, batch, count, divided=divided)
            run = runner(runtime, in_blocks(zeros, count, divided), x, folder)
            want, got = (np.asarray(f()) for f in (runner(runtime, zeros, x, folder), run))
            error = float(np.abs(got - want).max() / np.abs(want).max())
            forms[f"k = {count}, {form}"] = run, error
        width = max(1, round(hidden / count**0.5))
        narrow = model_of(kind, width, width, steps, batch)
        forms[f"narrow, n = {width}"] = (
            runner(runtime, narrow, np.ascontiguousarray(x[:, :, :width]), folder), None,
        )  # fmt: skip
    dense = runner(runtime, model_of(kind, hidden, hidden, steps, batch), x, folder)
    times = in_turn([dense, *(run for run, _ in forms.values())], options.rounds)
    found = []
    for (form, (_, error)), own in zip(forms.items(), times[1:], strict=True):
        ratios = [d / o for d, o in zip(times[0], own, strict=True)]
        middle = statistics.median
        found.append(
            Line(runtime, kind, hidden, form, middle(times[0]), middle(own), ratios, error)
        )
    return found


def markdown(lines: Sequence[Line], command: str, options: argparse.Namespace) -> str:
    """The report."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("onnxruntime", "ai-edge-litert", "torch"))
    text = [
        "# Recurrent layers in blocks",
        "",
        f"`{command}`: {options.steps} steps, batch {options.batch}, as many inputs as hidden units, one thread, float32; {packages}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores. Medians of {options.rounds} rounds in turn; in brackets, the quartiles of the ratio.",
        "",
        "- divided: k layers of n / k hidden units that read a part of the inputs each; whole: k layers that read all inputs.",
        "- narrow: one dense layer with as many weights as the divided form, for comparison; it is another network.",
        "- error: the largest difference to the dense layer with the same zeros, relative to the largest output.",
        "",
        "| runtime | layer | n | form | dense ms | ms | times faster | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        low, middle, high = statistics.quantiles(line.ratios, n=4)
        error = "" if line.error is None else f"{line.error:.0e}"
        text.append(
            f"| {line.runtime} | {line.kind.upper()} | {line.hidden} | {line.form} | {line.dense:.3f} | {line.own:.3f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) | {error} |"
        )
    return "\n".join(text) + "\n"


def numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description="Time recurrent layers in blocks.")
    parser.add_argument("--hidden", type=numbers, default=[256, 512, 1024])
    parser.add_argument("--blocks", type=numbers, default=[2, 4])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--kinds", default="lstm,gru")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for runtime in options.runtimes.split(","):
            for kind in options.kinds.split(","):
                for hidden in options.hidden:
                    found = lines_of(kind, hidden, options, runtime, Path(folder))
                    lines += found
                    for line in found:
                        ratio = statistics.median(line.ratios)
                        print(
                            f"{runtime} {kind} {hidden} {line.form}: {ratio:.2f}",
                            file=sys.stderr,
                            flush=True,
                        )
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = " ".join(["python benchmarks/recurrent.py", *given])
    text = markdown(lines, command, options)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    return int(any(line.wrong for line in lines))


if __name__ == "__main__":
    sys.exit(main())
