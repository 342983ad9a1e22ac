"""Latency of pivoted layers and networks, as paired ratios to the dense ones, and quality of the search for blocks.

A model is one layer, or several in a row (``--depth``), with weights whose zeros form the blocks that ``pivot``
finds; dense and pivoted runs alternate, on one thread. The ratio compares whole calls, with inputs and outputs
bound; the call itself takes about 4 us. Run from a checkout, on an idle machine::

    python benchmarks/pivot.py [--what fc,conv,networks,search] [--runtime onnxruntime,litert] [--depth 1,4] [--json]

``fc``: n x n dense layers; the column ``thin`` is the speed-up of one dense layer of n / k x n weights. ``conv``: 3 x 3
convolutions on 14 x 14 pixels. ``networks``: one in the style of AlexNet, and the MLPs of a transformer encoder.
``search``: the share of the squared weights that orders keep of 1024 x 1024 matrices in 16 blocks, compared with METIS with
assignment and swaps if pymetis is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from graphshrink import shrink
from graphshrink.passes.blocks.assign import assign
from graphshrink.passes.blocks.blocks import Blocks, capacities, contiguous_labels
from graphshrink.passes.blocks.search import Side, kept_mass, search_blocks
from graphshrink.running.latency import PairedLatency, paired_latency_for

BAR = 0.7
"""The goal for the speed-up, as a share of the number of blocks."""


def model(nodes: list[Any], weights: dict[str, Any], x: list[int], y: list[int]) -> onnx.ModelProto:
    """An ONNX model with input x and output y."""
    graph = helper.make_graph(
        nodes, "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def thin(n: int, k: int, batch: int) -> onnx.ModelProto:
    """One dense layer with 1 / k of the outputs: the same number of weights as k blocks, without any reordering."""
    weights = {"w": np.ones((n // k, n), np.float32), "b": np.ones(n // k, np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=1)]
    return model(nodes, weights, [batch, n], [batch, n // k])


def layers(kind: str, n: int, k: int, batch: int, depth: int) -> onnx.ModelProto:
    """Layers in a row with ReLUs between them, in k blocks of the present order; dense for k = 1."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], {}, "x"
    labels = contiguous_labels(capacities(n, k))
    for i in range(depth):
        shape = (n, n) if kind == "fc" else (n, n, 3, 3)
        weight = rng.standard_normal(shape).astype(np.float32) / np.float32(
            np.prod(shape[1:]) ** 0.5
        )
        if k > 1:
            weight[labels[:, None] != labels[None, :]] = 0
        weights |= {f"w{i}": weight, f"b{i}": rng.standard_normal(n).astype(np.float32)}
        made = "y" if i == depth - 1 else f"h{i}"
        if kind == "fc":
            nodes.append(
                helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [made], f"fc{i}", transB=1)
            )
        else:
            nodes.append(
                helper.make_node(
                    "Conv", [value, f"w{i}", f"b{i}"], [made], f"conv{i}", pads=[1] * 4
                )
            )
        value = made
        if i < depth - 1:
            nodes.append(helper.make_node("Relu", [made], [f"a{i}"]))
            value = f"a{i}"
    size = [batch, n] if kind == "fc" else [batch, n, 14, 14]
    return model(nodes, weights, size, size)


class InOnnxruntime:
    """A model in onnxruntime with bound input and output, on one thread."""

    def __init__(self, made: onnx.ModelProto, x: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        shape = self.session.get_outputs()[0].shape
        self.binding = self.session.io_binding()
        self.given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        self.got = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        self.binding.bind_ortvalue_input("x", self.given)
        self.binding.bind_ortvalue_output(self.session.get_outputs()[0].name, self.got)

    def __call__(self) -> None:
        """Run once."""
        self.session.run_with_iobinding(self.binding)

    def output(self) -> Any:
        """What the last call gave."""
        return self.got.numpy()


class InLitert:
    """A model in LiteRT on one thread, written by the target ``tflite``."""

    def __init__(self, made: onnx.ModelProto, x: Any) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.tflite"
            shrink(made, "").save(path)
            self.found = Interpreter(model_content=path.read_bytes(), num_threads=1)
        self.found.allocate_tensors()
        given = self.found.get_input_details()[0]
        self.found.set_tensor(
            given["index"], np.ascontiguousarray(as_layout(x, tuple(given["shape"])))
        )
        self.shape = tuple(d.dim_value for d in made.graph.output[0].type.tensor_type.shape.dim)

    def __call__(self) -> None:
        """Run once."""
        self.found.invoke()

    def output(self) -> Any:
        """What the last call gave."""
        index = self.found.get_output_details()[0]["index"]
        return as_layout(self.found.get_tensor(index), self.shape)


def as_layout(x: Any, shape: tuple[int, ...]) -> Any:
    """An array in the layout, channels first or last, that has this shape."""
    if shape == x.shape or x.ndim != 4:
        return x
    turned = x.transpose(0, 2, 3, 1)
    return turned if shape == turned.shape else x.transpose(0, 3, 1, 2)


Runner = type[InOnnxruntime] | type[InLitert]

RUNTIMES: dict[str, tuple[str, Runner]] = {
    "onnxruntime": ("onnx", InOnnxruntime),
    "litert": ("tflite", InLitert),
}


def missing(runtime: str) -> str:
    """The reason why a runtime cannot be measured here; empty if it can."""
    if runtime == "litert":
        for name in ("ai_edge_litert", "graphshrink.targets.tflite"):
            if importlib.util.find_spec(name) is None:
                return f"litert is left out: there is no {name} (pip install -e '.[tflite]')"
    return ""


def pair(
    dense: onnx.ModelProto,
    pivoted: onnx.ModelProto,
    same: onnx.ModelProto,
    run: Runner,
    budget: float,
) -> PairedLatency:
    """Time dense and pivoted model; exits if the pivoted model has other outputs than ``same``, from which it was made."""
    x = inputs(dense)
    a, b, c = (run(made, x) for made in (dense, pivoted, same))
    b()
    c()
    want, got = c.output(), b.output()
    if not np.allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max()):
        sys.exit("the pivoted model has other outputs")
    return paired_latency_for(budget, a, b)


def inputs(made: onnx.ModelProto) -> Any:
    """Random inputs of a model."""
    shape = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def measure_layers(
    kind: str, runtime: str, depths: list[int], budget: float
) -> Iterator[dict[str, Any]]:
    """Measure all sizes of one kind of layer."""
    target, run = RUNTIMES[runtime]
    sizes = (512, 1024, 2048, 4096) if kind == "fc" else (128, 256)
    for depth in depths:
        for n in sizes:
            for batch in (1, 8, 128) if kind == "fc" else (1, 8):
                if n * n * depth > 2**25:
                    continue
                dense = layers(kind, n, 1, batch, depth)
                for k in (2, 4, 8, 16):
                    planted = layers(kind, n, k, batch, depth)
                    result = shrink(planted, f"pivot{{blocks={k},method=zeros}}", target=target)
                    done = [r.what for p in result.report.passes for r in p.rewrites]
                    found = pair(dense, result.model, planted, run, budget)
                    bound = None
                    if kind == "fc" and depth == 1:
                        x = inputs(dense)
                        slim = thin(n, k, batch)
                        bound = paired_latency_for(budget / 2, run(dense, x), run(slim, x)).speedup
                    yield {
                        "runtime": runtime, "kind": kind, "n": n, "batch": batch, "depth": depth, "k": k,
                        "form": done[0].split("(")[1].rstrip(")") if done else "dense",
                        "dense ms": found.milliseconds[0], "ms": found.milliseconds[1],
                        "speedup": found.speedup, "low": found.interval[0], "high": found.interval[1],
                        "thin": bound,
                        "bar": BAR * k if kind == "fc" and n >= 1024 and k <= 8 and batch in (1, 128) else None,
                    }  # fmt: skip


def networks() -> dict[str, tuple[onnx.ModelProto, str]]:
    """Networks with random weights, and the layers to pivot."""
    import io
    import warnings

    import torch
    from torch import nn

    def exported(net: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net.eval(), (x,), file, dynamo=False, input_names=["x"], output_names=["y"]
            )
        return onnx.load_from_string(file.getvalue())

    class Mlp(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads, self.norm = heads, nn.LayerNorm(width)
            self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, width = x.shape
            y = self.norm(x)
            shape = (batch, tokens, self.heads, width // self.heads)
            q, k, v = (p(y).reshape(shape).permute(0, 2, 1, 3) for p in (self.q, self.k, self.v))
            y = torch.softmax(q @ k.transpose(-1, -2) / shape[-1] ** 0.5, -1) @ v
            return x + self.out(y.permute(0, 2, 1, 3).reshape(batch, tokens, width))

    torch.manual_seed(0)
    conv = nn.Conv2d
    alexnet = nn.Sequential(
        conv(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), conv(64, 192, 5, 1, 2), nn.ReLU(),
        nn.MaxPool2d(3, 2), conv(192, 384, 3, 1, 1), nn.ReLU(), conv(384, 256, 3, 1, 1), nn.ReLU(),
        conv(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(1),
        nn.Linear(256 * 36, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
    )  # fmt: skip
    width = 512
    encoder = nn.Sequential(
        nn.Linear(64, width), *(m for _ in range(4) for m in (Attention(width, 8), Mlp(width))),
        nn.Linear(width, 100),
    )  # fmt: skip
    return {
        "AlexNet, layers behind the first two": (
            exported(alexnet, torch.randn(1, 3, 224, 224)), "[/6/Conv,/8/Conv,/10/Conv,/14/Gemm,/16/Gemm]"),
        "encoder of 4 layers, width 512, 64 tokens, MLPs": (
            exported(encoder, torch.randn(1, 64, 64)), "[*/up/*,*/down/*]"),
    }  # fmt: skip


def measure_networks(budget: float) -> Iterator[dict[str, Any]]:
    """Measure whole networks in onnxruntime, with random blocks, pivoted, compared with the dense ones."""
    for name, (dense, names) in networks().items():
        for k in (2, 4, 8):
            masked = shrink(dense, f"mask-blocks{{blocks={k},layers={names}}}")
            result = shrink(masked.model, f"pivot{{blocks={k},method=zeros,layers={names}}}")
            refused = [f"{r.node}: {r.reason}" for p in result.report.passes for r in p.refusals]
            done = [
                r.what
                for p in result.report.passes
                for r in p.rewrites
                if r.what.startswith("pivot")
            ]
            found = pair(dense, result.model, masked.model, InOnnxruntime, budget)
            before, after = result.report.before, result.report.after
            yield {
                "network": name, "k": k, "layers": len(done),
                "shuffles": sum("shuffle" in d for d in done), "refused": refused,
                "parameters": after.parameters / before.parameters,
                "dense ms": found.milliseconds[0], "ms": found.milliseconds[1],
                "speedup": found.speedup, "low": found.interval[0], "high": found.interval[1],
            }  # fmt: skip


# The search.


def metis_blocks(saliency: Any, k: int, heavy: int = 8) -> Blocks | None:
    """METIS on the heaviest entries, then assignment of rows and columns in turn until nothing improves."""
    try:
        import pymetis
    except ImportError:
        return None
    n, m = saliency.shape
    flat = saliency.reshape(-1)
    i, j = np.unravel_index(np.argpartition(flat, -heavy * n)[-heavy * n :], saliency.shape)
    weight = saliency[i, j]
    weight = np.clip(weight / weight.min() * 10, 1, 10**6).astype(np.int64)
    source, target = np.concatenate([i, j + n]), np.concatenate([j + n, i])
    order = np.argsort(source, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=n + m))])
    _, parts = pymetis.part_graph(
        k, adjacency=pymetis.CSRAdjacency(starts, target[order]),
        eweights=np.concatenate([weight, weight])[order], options=pymetis.Options(seed=0),
    )  # fmt: skip
    columns, last, sizes = np.asarray(parts)[n:], -1.0, capacities(n, k)
    while True:
        rows = assign(saliency @ np.eye(k)[columns], sizes)
        columns = assign(saliency.T @ np.eye(k)[rows], sizes)
        found = Blocks(rows, columns, k)
        if kept_mass(saliency, found) <= last * (1 + 1e-9):
            return found
        last = kept_mass(saliency, found)


def heavy_tailed() -> dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]]:
    """Distributions of weights by name, the lightest tails first; in the last two, whole rows and columns are large."""

    def scaled(rng: np.random.Generator, size: tuple[int, int], draw: Callable[..., Any]) -> Any:
        return rng.standard_normal(size) * draw(size=(size[0], 1)) * draw(size=(1, size[1]))

    return {
        "normal": lambda rng, size: rng.standard_normal(size),
        "Laplace": lambda rng, size: rng.laplace(size=size),
        "log-normal, deviation 1": lambda rng, size: rng.lognormal(0, 1, size),
        "Student's t, 3": lambda rng, size: rng.standard_t(3, size),
        "log-normal, deviation 1.1": lambda rng, size: rng.lognormal(0, 1.1, size),
        "Laplace, squared": lambda rng, size: rng.laplace(size=size) ** 2,
        "Student's t, 2.8": lambda rng, size: rng.standard_t(2.8, size),
        "Student's t, 2.5": lambda rng, size: rng.standard_t(2.5, size),
        "Student's t, 2": lambda rng, size: rng.standard_t(2, size),
        "normal times log-normal rows and columns": lambda rng, size: scaled(
            rng, size, partial(rng.lognormal, 0, 1)
        ),
        "normal times t(3) rows and columns": lambda rng, size: scaled(
            rng, size, partial(rng.standard_t, 3)
        ),
    }


def measure_search() -> Iterator[dict[str, Any]]:
    """Measure kept squared weights and CPU seconds of the search, for a few matrices."""
    n, k = 1024, 16
    side = Side(capacities(n, k))
    present = Blocks(contiguous_labels(side.sizes), contiguous_labels(side.sizes), k)
    # A first, small search, so that imports are not timed.
    search_blocks(np.ones((4, 4)), Side(capacities(4, 2)), Side(capacities(4, 2)))
    for name, draw in heavy_tailed().items():
        for seed in range(3):
            saliency = draw(np.random.default_rng(seed), (n, n)) ** 2
            start = time.process_time()
            found = search_blocks(saliency, side, side)
            taken = time.process_time() - start
            other = metis_blocks(saliency, k)
            yield {
                "weights": name, "seed": seed, "identity": kept_mass(saliency, present),
                "search": kept_mass(saliency, found), "CPU seconds": taken,
                "metis": None if other is None else kept_mass(saliency, other),
            }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, list):
            return "; ".join(value) or "none"
        return "" if value is None else str(value)

    print("| " + " | ".join(names) + " |")
    print("| " + " | ".join("---" for _ in names) + " |")
    for row in rows:
        print("| " + " | ".join(cell(row.get(name)) for name in names) + " |")


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", default="fc,conv,networks,search")
    parser.add_argument("--runtime", default="onnxruntime,litert")
    parser.add_argument("--depth", default="1,4", help="how many layers in a row")
    parser.add_argument("--seconds", type=float, default=1.0, help="approximate time for each pair")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    depths = [int(d) for d in given.depth.split(",")]
    found: dict[str, list[dict[str, Any]]] = {}
    for what in given.what.split(","):
        if what in ("fc", "conv"):
            for runtime in given.runtime.split(","):
                if why := missing(runtime):
                    print(why, file=sys.stderr)
                    continue
                found[f"{what} {runtime}"] = list(
                    measure_layers(what, runtime, depths if what == "fc" else [1], given.seconds)
                )
        elif what == "networks":
            found[what] = list(measure_networks(given.seconds))
        elif what == "search":
            found[what] = list(measure_search())
        else:
            sys.exit(f"--what: {what!r} is none of fc, conv, networks, search")
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for rows in found.values():
        show(rows)
        print()


if __name__ == "__main__":
    main()
