"""Random inputs that fit a model of unknown kind, and how two models differ on them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

Feeds = dict[str, Any]

_FLOATS = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2"}

SIZES: tuple[tuple[int, int], ...] = (
    (64, 8), (32, 16), (48, 512), (224, 576), (320, 1), (640, 16000), (96, 80), (1, 2), (256, 1024), (128, 40), (416, 128),
    (64, 81), (64, 105), (64, 144),
)  # fmt: skip
"""What is tried for open sizes, until the model runs: the sides of images, and the length of anything else."""


def session(path: str, optimised: bool = False) -> Any:
    """A session of onnxruntime on one thread, which computes the graph as it is unless ``optimised``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def candidates(path: str, inputs: Any) -> Iterator[Feeds]:
    """Inputs to try, one after the other: first as many elements as the file states, then other sizes."""
    rows, widths = _rows(path), _widths(path)
    stated = all(isinstance(d, int) for item in inputs for d in item.shape or [None])
    sizes: list[tuple[int, int, int]] = [(*SIZES[0], 1)]
    if not stated:
        sizes = [(*size, batch) for size in SIZES for batch in (1, 2)]
        # The first axis may be time, and the first layers convolutions without padding.
        sizes += [(*size, 32) for size in SIZES]
    for image, length, batch in sizes:
        named: dict[str, int] = {}
        shapes = {
            i.name: _shape(i.shape, batch, image, length, named, widths.get(i.name)) for i in inputs
        }
        longest = max((s[-1] for s in shapes.values() if s), default=1)
        for lowest in (False, True):
            yield {i.name: _numbers(i, shapes[i.name], rows, longest, lowest) for i in inputs}


def _shape(
    stated: Any,
    batch: int,
    image: int,
    length: int,
    named: dict[str, int],
    weights: tuple[int, int | None] | None,
) -> list[int]:
    """Sizes for the open ones: the first axis is a batch, an array of four axes a picture, and axes of one name are alike.

    ``weights`` has the size of the last axis, where weights tell it, and a number of steps if a recurrent layer reads the input.
    """
    stated = [None, None] if stated is None else list(stated)
    if weights is not None and len(stated) > 1 and not isinstance(stated[-1], int):
        width, steps = weights
        stated[-1] = width
        if len(stated) == 2 and not isinstance(stated[0], int):
            stated[0] = steps
    picture = len(stated) == 4
    last_is_channels = picture and stated[3] in (1, 3, 4)
    # The state of a recurrent network: layers, batch, numbers.
    is_state = len(stated) == 3 and isinstance(stated[0], int) and isinstance(stated[2], int)
    found = []
    for axis, size in enumerate(stated):
        if isinstance(size, int):
            made = size
        elif isinstance(size, str) and size in named:
            made = named[size]
        elif _says(size, "past", "cache", "history"):
            made = 4
        elif (axis == 0 and len(stated) > 1) or _says(size, "batch") or (is_state and axis == 1):
            made = batch
        elif picture and (axis > 1 or last_is_channels):
            made = image
        elif picture and axis == 1:
            made = 3
        else:
            made = length
        if isinstance(size, str):
            named.setdefault(size, made)
        found.append(made)
    return found


def _says(name: Any, *words: str) -> bool:
    return isinstance(name, str) and any(word in name.lower() for word in words)


def _numbers(item: Any, shape: list[int], rows: dict[str, int], longest: int, lowest: bool) -> Any:
    """Random numbers for one input; ids within the rows of the table that they choose from."""
    rng = np.random.default_rng(len(item.name))
    if item.type in _FLOATS:
        spread = rng.random(shape) if len(shape) == 4 else rng.normal(size=shape)
        return np.asarray(spread).astype(_FLOATS[item.type])
    if item.type == "tensor(string)":
        return np.full(shape, "a", object)
    if item.type == "tensor(bool)":
        return np.ones(shape, bool)
    kind = item.type.removeprefix("tensor(").removesuffix(")")
    if item.name in rows:
        return rng.integers(0, 1 if lowest else max(1, rows[item.name]), shape).astype(kind)
    if _says(item.name, "rate") or item.name.lower() in ("sr", "fs"):
        return np.full(shape, 16000, kind)
    if _says(item.name, "len"):
        return np.full(shape, longest, kind)
    if _says(item.name, "size", "shape"):
        return np.full(shape, 64, kind)
    if _says(item.name, "mask"):
        return np.ones(shape, kind)
    if lowest:
        return np.zeros(shape, kind)
    return rng.integers(0, 256 if kind == "uint8" and len(shape) > 2 else 2, shape).astype(kind)


def _rows(path: str) -> dict[str, int]:
    """For inputs that choose rows of constant tables, the number of rows of the smallest one."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    tables = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    source = {i.name: i.name for i in graph.input}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in (
            "Cast",
            "Identity",
            "Reshape",
            "Unsqueeze",
            "Squeeze",
            "Flatten",
            "Clip",
        ):
            source.update(
                {o: source[node.input[0]] for o in node.output if node.input[0] in source}
            )
        elif node.op_type == "Gather" and node.input[0] in tables and node.input[1] in source:
            name, axis = source[node.input[1]], [a.i for a in node.attribute if a.name == "axis"]
            if axis in ([], [0]):
                found[name] = min(found.get(name, 1 << 30), tables[node.input[0]])
    return found


def _widths(path: str) -> dict[str, tuple[int, int | None]]:
    """The size of the last axis of inputs that a recurrent or dense layer reads, which its weights tell, and a number of steps."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name: t for t in graph.initializer}
    source = {i.name: i.name for i in graph.input if i.name not in weights}
    found: dict[str, tuple[int, int | None]] = {}
    for node in graph.node:
        if not node.input or node.input[0] not in source:
            continue
        name = source[node.input[0]]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Squeeze", "Unsqueeze", "Slice"):
            at = {"Slice": 3}.get(node.op_type, 1)
            axes = options.get("axes")
            if axes is None and len(node.input) > at and node.input[at] in weights:
                axes = to_array(weights[node.input[at]])
            # The first axes of sequences: the last one stays.
            if axes is not None and set(axes) <= ({0} if node.op_type == "Slice" else {0, 1}):
                source[node.output[0]] = name
        elif node.op_type in ("Identity", "Cast"):
            source[node.output[0]] = name
        elif len(node.input) > 1 and node.input[1] in weights:
            dims = weights[node.input[1]].dims
            if node.op_type in ("LSTM", "GRU", "RNN"):
                found.setdefault(name, (dims[2], 16))
            elif node.op_type == "MatMul":
                found.setdefault(name, (dims[-2] if len(dims) > 1 else dims[0], None))
            elif node.op_type == "Gemm":
                found.setdefault(name, (dims[1 if options.get("transB") else 0], None))
    return found


def running_inputs(path: str) -> tuple[Feeds, list[Any]]:
    """Inputs that the model runs on, and its outputs for them.

    Raises:
        ValueError: If none were found.
    """
    model = session(path)
    error: Exception | None = None
    inputs = model.get_inputs()
    ranks = [len(o.shape) if o.shape else None for o in model.get_outputs()]
    stated = all(isinstance(d, int) for i in inputs for d in i.shape or [None])
    second: tuple[Feeds, list[Any]] | None = None
    for feeds in candidates(path, inputs):
        if not stated and not _survives(model, feeds):
            error = error or RuntimeError("onnxruntime crashes")
            continue
        try:
            found = feeds, list(model.run(None, feeds))
        except Exception as problem:
            error = error or problem
            continue
        if all(r in (None, getattr(x, "ndim", r)) for r, x in zip(ranks, found[1], strict=True)):
            return found
        # An axis has one element and was squeezed, or has several where the file expects one.
        second = second or found
    if second is not None:
        return second
    text = str(error).splitlines()[0]
    raise ValueError(f"no inputs were found that the original runs on: {text[:120]}")


def _survives(model: Any, feeds: Feeds) -> bool:
    """Whether the process outlives a run on sizes that were guessed: some kernels crash on those that do not fit.

    A child that does not end, because it waits for a thread that it has not inherited, tells nothing.
    """
    child = os.fork()
    if child == 0:
        # What goes wrong without a crash is reported by the run that follows.
        with suppress(Exception):
            model.run(None, feeds)
        os._exit(0)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def difference(before: str, after: str) -> tuple[str, float | None, float | None]:
    """How the outputs of two models differ on random inputs.

    Returns:
        What is wrong, or an empty text; the largest difference, relative to the largest number of the output; and the
        same for the original alone, between onnxruntime with and without its optimisations, which shows how much of the
        difference is rounding.
    """
    feeds, want = running_inputs(before)
    tops = _tops(before)
    wrong, gap = gap_between(want, session(after).run(None, feeds), tops)
    try:
        own = gap_between(want, session(before, optimised=True).run(None, feeds), tops)[1]
    except Exception:
        own = None
    return wrong, gap, own


def _tops(path: str) -> list[float]:
    """For each output, a number that it can reach: 1 for probabilities, which may all be close to zero, else 0."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    moving = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Cast")
    found = []
    for output in graph.output:
        node = makers.get(output.name)
        while node is not None and node.op_type in moving:
            node = makers.get(node.input[0])
        bounded = node is not None and node.op_type in ("Sigmoid", "Softmax", "HardSigmoid", "Tanh")
        found.append(float(bounded))
    return found


def gap_between(want: list[Any], got: list[Any], tops: list[float]) -> tuple[str, float | None]:
    """What is wrong with results, or an empty text, and the largest relative difference."""
    worst = 0.0
    for expected, found, top in zip(want, got, tops, strict=True):
        if isinstance(expected, list | dict):
            if repr(expected) != repr(found):
                return "other sequences or maps", None
            continue
        a, b = np.asarray(expected), np.asarray(found)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype}{a.shape} became {b.dtype}{b.shape}", None
        if a.dtype.kind != "f":
            worst = max(worst, float(not np.array_equal(a, b)))
        elif a.size:
            if not np.array_equal(np.isnan(a), np.isnan(b)):
                return "other numbers are not numbers", None
            worst = max(worst, _relative(a, b, top))
    return "", worst


def _relative(a: Any, b: Any, top: float) -> float:
    top = float(np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=top)) or 1.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.where(a == b, 0, a.astype(np.float64) - b.astype(np.float64)))
    return float(np.nanmax(gap, initial=0)) / top
