"""Inputs to run a graph on: random or given, with sizes for which it runs, and changed by one rounding unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir import DType, Graph, ModelError, TensorType, UsageError, Value
from ..ir.errors import check_input_name, counted
from ..passes.infra.tolerance import UNITS
from .memory import available_memory

Arrays = dict[str, npt.NDArray[Any]]


def check_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """Check given shapes against the types of the graph's inputs.

    Returns:
        The sizes of the symbols in the types.

    Raises:
        UsageError: If there is no such input, a shape does not fit it, or two shapes contradict each other.
    """
    known = {v.name: v.type for v in graph.inputs}
    symbols: dict[str, int] = {}
    for name, given in (shapes or {}).items():
        check_input_name(name, known)
        wanted = known[name].shape
        if not known[name].accepts(TensorType(None, tuple(given))):
            raise UsageError(
                f"input {name!r} takes {_shape_text(wanted)}, not {_shape_text(given)}"
            )
        for d, size in zip(wanted or (), given, strict=False):
            if isinstance(d, str) and symbols.setdefault(d, size) != size:
                raise UsageError(f"input {name!r}: {d} is both {symbols[d]} and {size}")
    return symbols


def _shape_text(shape: Sequence[Any] | None) -> str:
    return "x".join("?" if d is None else str(d) for d in shape or ()) or "a scalar"


SIZES = (64, 224, 512, 1024, 16000, 16, 1)
"""Sizes that are tried for unknown ones, one after the other, until the model runs."""


NUDGES = 3
"""The number of runs on inputs changed by a rounding unit, to measure how sensitive a model is."""


def random_inputs(
    graph: Graph,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    unknown: int = 1,
) -> Arrays:
    """Inputs for a check: standard normal floats, zeros and ones for integers and booleans.

    Integers are that small because they are most often indices.

    Args:
        graph: The graph.
        shapes: Shapes by input name; the known sizes of the graph for other inputs.
        seed: The seed of the random numbers.
        unknown: The size for unknown ones, except along the first axis of an input and for the symbol of such an axis: these
            are 1.

    Raises:
        UsageError: If there is no such input, a shape does not fit it, or a shape that is needed is missing.
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
    needed, have = math.prod(given) * max(dtype.numpy.itemsize, 8), available_memory()
    if needed > have:
        raise UsageError(
            f"input {value.name!r} of {_shape_text(given)} takes {needed:,} bytes, this machine has {have:,}; "
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
    """Random inputs on which an ONNX model runs; unknown sizes are tried from :data:`SIZES`.

    A note on the graph says which sizes were used.

    Args:
        graph: The graph of the model.
        shapes: Shapes by input name.
        seed: The seed of the random numbers.
        run: Runs the model.

    Raises:
        ModelError: If it runs with none of them: the error of the first.
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


def nudge(array: npt.NDArray[Any], rng: np.random.Generator, unit: float = 0.0) -> npt.NDArray[Any]:
    """An array of floats, each changed up or down by about one rounding unit; an array of another type is not changed.

    Args:
        array: The array.
        rng: A random generator, for the directions.
        unit: The rounding unit; that of the array's element type if that is larger.
    """
    step = UNITS.get(DType.of(array.dtype)) if array.dtype.kind in "fV" else None
    if step is None:
        return array
    wide = array.astype(np.float64)
    signs = rng.integers(0, 2, array.shape) * 2 - 1
    moved: npt.NDArray[Any] = (wide + wide * signs * max(step, unit)).astype(array.dtype)
    return moved


def nudges(feeds: Arrays, seed: int, unit: float = 0.0) -> list[Arrays]:
    """Several sets of inputs that differ from ``feeds`` by rounding units only; ``unit`` as for :func:`nudge`."""
    rng = np.random.default_rng(seed)
    return [{n: nudge(a, rng, unit) for n, a in feeds.items()} for _ in range(NUDGES)]


def shapes_text(feeds: Arrays) -> str:
    """The shapes of inputs as ``--input`` takes them."""
    return ", ".join(f"{n}:{'x'.join(map(str, a.shape))}" for n, a in feeds.items())


def named_inputs(graph: Graph, given: Any) -> Arrays:
    """Inputs of an ONNX model from arrays by name or in order, checked against the model's types.

    Raises:
        UsageError: If one is missing, unknown, or of another type or shape.
    """
    known = {v.name: v.type for v in graph.inputs}
    if not isinstance(given, Mapping):
        items = list(given) if isinstance(given, tuple | list) else [given]
        if len(items) != len(known):
            raise UsageError(
                f"the model has {counted(len(known), 'input')}, {len(items)} {'was' if len(items) == 1 else 'were'} given"
            )
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


def fx_inputs(
    graph: Graph, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> tuple[Any, ...]:
    """Random inputs for a graph from torch, on the device of its weights.

    Raises:
        UsageError: If the shape of an input is unknown.
    """
    import torch

    from ..hosts.torch.dtypes import DTYPES

    for value in graph.inputs:
        if value.type.shape is None and value.name not in (shapes or {}):
            raise UsageError(
                f"the shape of input {value.name!r} is unknown: a check needs example_inputs"
            )
    kinds = {ours: theirs for theirs, ours in DTYPES.items()}
    weight = next(graph.host.module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    made = []
    for value, array in zip(graph.inputs, random_inputs(graph, shapes, seed).values(), strict=True):
        # torch cannot read NumPy's extension types; float32 represents all their values.
        dtype = value.type.dtype
        assert dtype is not None
        plain = array.astype(np.float32) if array.dtype.kind == "V" else array
        made.append(torch.from_numpy(np.ascontiguousarray(plain)).to(device, kinds[dtype]))
    return tuple(made)


def fx_nudges(inputs: Sequence[Any], seed: int, unit: float = 0.0) -> list[tuple[Any, ...]]:
    """Several sets of inputs that differ from ``inputs`` by rounding units only; only tensors of floats are changed.

    ``unit`` as for :func:`nudge`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def moved(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device, x.dtype) * 2 - 1
        return x + x * signs * max(torch.finfo(x.dtype).eps, unit)

    return [tuple(map(moved, inputs)) for _ in range(NUDGES)]
