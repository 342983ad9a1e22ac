"""Running graphs to compare their numbers: onnxruntime for ONNX, torch for FX."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir import DType, Graph, ModelError, TensorType, UsageError, Value
from .ir.errors import check_input_name

Arrays = dict[str, npt.NDArray[Any]]


def check_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """Hold given input shapes against the graph's inputs.

    Returns:
        The sizes that they give to symbols.

    Raises:
        UsageError: If a shape names no input or does not fit it, or two contradict each other.
    """
    known = {v.name: v.type for v in graph.inputs}
    symbols: dict[str, int] = {}
    for name, given in (shapes or {}).items():
        check_input_name(name, known)
        wanted = known[name].shape
        if not known[name].accepts(TensorType(None, tuple(given))):
            raise UsageError(f"input {name!r} takes {_shown(wanted)}, not {_shown(given)}")
        for d, size in zip(wanted or (), given, strict=False):
            if isinstance(d, str) and symbols.setdefault(d, size) != size:
                raise UsageError(f"input {name!r}: {d} is both {symbols[d]} and {size}")
    return symbols


def _shown(shape: Sequence[Any] | None) -> str:
    return "x".join("?" if d is None else str(d) for d in shape or ()) or "a scalar"


SIZES = (64, 224, 512, 1024, 16000, 16, 1)
"""What sizes that are not known are taken as, one after the other, until the model runs."""

NUDGES = 3
"""How many times inputs are moved by a rounding unit to see how sensitive a model is."""


def random_inputs(
    graph: Graph,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    unknown: int = 1,
) -> Arrays:
    """Inputs for a check: standard normal floats, zeros and ones for whole numbers and booleans.

    Whole numbers stay that small because they are most often indices.

    Args:
        graph: Whose inputs.
        shapes: Shapes by input name; else known sizes. Those that are not known are ``unknown``, but 1 along the
            first axis of an input, and wherever the symbol of such an axis stands.
        seed: The seed of the random numbers.
        unknown: The size that unknown ones are taken as.

    Raises:
        UsageError: If a shape names no input, does not fit it, or is needed and missing.
    """
    symbols = check_shapes(graph, shapes)
    for value in graph.inputs:
        if value.type.shape and isinstance(value.type.shape[0], str):
            symbols.setdefault(value.type.shape[0], 1)
    rng = np.random.default_rng(seed)
    return {
        v.name: _random(v, (shapes or {}).get(v.name), symbols, unknown, rng) for v in graph.inputs
    }


def _random(
    value: Value,
    given: Sequence[int] | None,
    symbols: Mapping[str, int],
    unknown: int,
    rng: np.random.Generator,
) -> npt.NDArray[Any]:
    dtype = value.type.dtype
    if dtype is None or dtype is DType.STRING or (given is None and value.type.shape is None):
        raise UsageError(
            f"input {value.name!r} has no known shape and type; "
            f"give its shape (--input {value.name}:1x3x224x224)"
        )
    if given is None:
        assert value.type.shape is not None
        given = [
            d if isinstance(d, int) else symbols.get(d or "", unknown if axis else 1)
            for axis, d in enumerate(value.type.shape)
        ]
    # Random numbers are drawn as float64.
    needed, have = math.prod(given) * max(dtype.numpy.itemsize, 8), _memory()
    if needed > have:
        raise UsageError(
            f"input {value.name!r} of {_shown(given)} takes {needed:,} bytes, this machine has {have:,}; "
            f"give other sizes by --input"
        )
    if dtype is DType.BOOL:
        return rng.integers(0, 2, given).astype(bool)
    if dtype.is_float or dtype in (DType.C64, DType.C128):
        return rng.standard_normal(given).astype(dtype.numpy)
    return rng.integers(0, 2, given).astype(dtype.numpy)


def running_inputs(
    graph: Graph,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    run: Callable[[Arrays], object],
) -> Arrays:
    """Random inputs that an ONNX model runs on: sizes that are not known are tried, :data:`SIZES`.

    Which ones were taken is added to the graph's notes.

    Args:
        graph: The graph of the model.
        shapes: Shapes by input name.
        seed: The seed of the random numbers.
        run: Runs the model.

    Raises:
        ModelError: If it runs with none of them; the error is that of the first.
        UsageError: As for :func:`random_inputs`.
    """
    failure: ModelError | None = None
    tried: set[str] = set()
    for size in SIZES:
        feeds = random_inputs(graph, shapes, seed, size)
        shown = shapes_text(feeds)
        if shown in tried:
            continue
        tried.add(shown)
        try:
            run(feeds)
        except ModelError as error:
            failure = failure or error
            continue
        if any(v.type.static_shape is None and v.name not in (shapes or {}) for v in graph.inputs):
            graph.notes.append(f"run on inputs {shown} (--input gives other shapes)")
        return feeds
    assert failure is not None
    raise failure


def nudge(array: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """An array of floats, each moved up or down by about one rounding unit; others as they are."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    step = np.asarray(np.finfo(array.dtype).eps, array.dtype)
    signs = rng.integers(0, 2, array.shape).astype(array.dtype) * 2 - 1
    moved: npt.NDArray[Any] = (array + array * signs * step).astype(array.dtype)
    return moved


def nudges(feeds: Arrays, seed: int) -> list[Arrays]:
    """Inputs that differ from ``feeds`` by rounding units only."""
    rng = np.random.default_rng(seed)
    return [{n: nudge(a, rng) for n, a in feeds.items()} for _ in range(NUDGES)]


def shapes_text(feeds: Arrays) -> str:
    """The shapes of inputs as ``--input`` takes them."""
    return ", ".join(f"{n}:{'x'.join(map(str, a.shape))}" for n, a in feeds.items())


def named_inputs(graph: Graph, given: Any) -> Arrays:
    """Inputs of an ONNX model, from arrays by name or in order, held against what the model takes.

    Raises:
        UsageError: If one is missing, unknown, or of another type or shape.
    """
    known = {v.name: v.type for v in graph.inputs}
    if not isinstance(given, Mapping):
        items = list(given) if isinstance(given, tuple | list) else [given]
        if len(items) != len(known):
            raise UsageError(f"the model has {len(known)} inputs, {len(items)} were given")
        given = dict(zip(known, items, strict=True))
    for name in given:
        check_input_name(name, known)
    missing = [name for name in known if name not in given]
    if missing:
        raise UsageError(f"no value was given for input {missing[0]!r}")
    arrays: Arrays = {name: np.asarray(given[name]) for name in known}
    check_shapes(graph, {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        wanted = known[name].dtype
        if wanted is None or wanted is DType.STRING or array.dtype == wanted.numpy:
            continue
        raise UsageError(f"input {name!r} takes {wanted.numpy}, not {array.dtype}")
    return arrays


def onnx_runner(feeds: Arrays) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as ONNX and runs it in onnxruntime on ``feeds``."""

    def run(graph: Graph) -> list[Any]:
        with emitted_session(graph) as loaded:
            return run_session(loaded, feeds, "the model")

    return run


@contextmanager
def emitted_session(graph: Graph) -> Iterator[Any]:
    """An onnxruntime session of a graph that is emitted as ONNX.

    Raises:
        ModelError: If it cannot be emitted, or onnxruntime does not take it.
    """
    check_memory(graph, "the model")
    # Before there is a temporary file that an interrupted import would leave behind.
    import_module("onnxruntime")
    from .targets.onnx import save_onnx

    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        path = Path(folder) / "check.onnx"
        save_onnx(graph, path)
        yield session(path, name="the model")


def check_memory(graph: Graph, name: str) -> None:
    """Check that no value of a graph alone is larger than the memory of this machine.

    Args:
        graph: The graph that is to be run.
        name: What errors call it.

    Raises:
        ModelError: If one is; the message names it.
    """
    have = _memory()
    results = (value for node in graph.nodes for value in node.outputs)
    for value in (*graph.inputs, *results):
        count, dtype = value.type.size, value.type.dtype
        if count is None or dtype is None or count * max(dtype.bits, 8) // 8 <= have:
            continue
        raise ModelError(
            f"{name} cannot be run here: {value.name!r} is {value.type}, {count * max(dtype.bits, 8) // 8:,} bytes; "
            f"this machine has {have:,}"
        )


def _memory() -> int:
    """The bytes of memory that this machine has; as good as without end where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 62


def session(path: Path, threads: int = 0, name: str | None = None) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        path: The model file.
        threads: Threads within an op; 0 takes all.
        name: What errors call the model; the path when not given.

    Raises:
        ModelError: If onnxruntime does not take the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = f"onnxruntime cannot load {name or path}"
        raise ModelError(
            f"{what}: {one_line(error).replace(str(path), name or str(path))}"
        ) from error


def run_session(loaded: Any, feeds: Arrays, name: str) -> list[Any]:
    """Run a session.

    Raises:
        ModelError: If the model does not run on these inputs.
    """
    try:
        return list(loaded.run(None, feeds))
    except Exception as error:
        raise ModelError(
            f"onnxruntime cannot run {name} on inputs {shapes_text(feeds)} (--input gives other shapes): "
            f"{one_line(error)}"
        ) from error


def fx_inputs(
    graph: Graph, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> tuple[Any, ...]:
    """Random inputs for an FX-born graph, on the device of its weights.

    Raises:
        UsageError: If the shape of an input is not known.
    """
    import torch

    from .frontends.fx_call import DTYPES

    for value in graph.inputs:
        if value.type.shape is None and value.name not in (shapes or {}):
            raise UsageError(
                f"the shape of input {value.name!r} is not known: a check needs example_inputs"
            )
    kinds = {ours: theirs for theirs, ours in DTYPES.items()}
    weight = next(graph.host.module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    made = []
    for value, array in zip(graph.inputs, random_inputs(graph, shapes, seed).values(), strict=True):
        # torch does not know NumPy's extension types; float32 holds all that they hold.
        dtype = value.type.dtype
        assert dtype is not None
        plain = array.astype(np.float32) if array.dtype.kind == "V" else array
        made.append(torch.from_numpy(np.ascontiguousarray(plain)).to(device, kinds[dtype]))
    return tuple(made)


def fx_nudges(inputs: Sequence[Any], seed: int) -> list[tuple[Any, ...]]:
    """Inputs that differ from ``inputs`` by rounding units only; what is no tensor of floats stays."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def moved(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device, x.dtype) * 2 - 1
        return x + x * signs * torch.finfo(x.dtype).eps

    return [tuple(map(moved, inputs)) for _ in range(NUDGES)]


def fx_runner(inputs: Sequence[Any]) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as FX and runs it in torch on ``inputs``."""

    def run(graph: Graph) -> list[Any]:
        from .targets.fx import to_fx

        return _run_module(to_fx(graph), inputs)

    return run


def _run_module(module: Any, inputs: Sequence[Any]) -> list[Any]:
    """The tensors that a module gives; random numbers are the same in every run."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    from .frontends.fx_copy import containers_kept
    from .frontends.fx_trace import random_kept

    # In-place modules may write into their inputs: every run gets its own.
    fresh = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tuple(inputs))
    try:
        with containers_kept(module), random_kept(), torch.no_grad():
            torch.manual_seed(0)
            leaves = tree_leaves(module(*fresh))
    except Exception as error:
        raise ModelError(f"the module does not run: {one_line(error)}") from error
    return [
        leaf.detach().cpu().double().numpy() if leaf.is_floating_point() else leaf.cpu().numpy()
        for leaf in leaves
        if isinstance(leaf, torch.Tensor)
    ]


def run_given_module(model: Any, inputs: Sequence[Any]) -> list[Any]:
    """The tensors that a module or an exported program gives, as it was given; it is not changed.

    Raises:
        ModelError: If it does not run.
    """
    import torch

    from .frontends.fx_copy import ModuleCopy

    module = model if isinstance(model, torch.nn.Module) else model.module()
    parameters = {id(p) for p in module.parameters()}
    copied = ModuleCopy(module, lambda t: t if id(t) in parameters else t.clone())
    return _run_module(copied.module, inputs)


def run_given_file(model: Any, feeds: Arrays) -> list[Any]:
    """The outputs of an ONNX file, or of a ``ModelProto``, as it was given.

    Raises:
        ModelError: If onnxruntime does not take or run it.
    """
    import onnxruntime

    if isinstance(model, str | os.PathLike):
        return run_session(session(Path(model)), feeds, os.fspath(model))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        loaded = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(
            f"onnxruntime cannot load the model as it was given: {one_line(error)}"
        ) from error
    return run_session(loaded, feeds, "the model as it was given")


def running_module(graph: Graph) -> Any:
    """The module of an FX-born graph, held to running on the example inputs; nothing is computed on them.

    Raises:
        ModelError: If it does not run, or cannot be said in torch.
    """
    from .frontends.fx import DoesNotRun, shapes_of
    from .targets.fx import to_fx

    module = to_fx(graph)
    inputs = graph.host.exported if graph.host.inputs is None else graph.host.inputs
    if inputs is not None:
        try:
            shapes_of(module, inputs)
        except DoesNotRun as error:
            raise ModelError(
                f"the shrunk module does not run on example_inputs, though the given one does: {one_line(error.__cause__ or error)}; "
                "this is a fault of graphshrink"
            ) from error
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut where it gets long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
