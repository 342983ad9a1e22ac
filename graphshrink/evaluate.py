"""Running graphs to compare their numbers: onnxruntime for ONNX, torch for FX."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir import DType, Graph, ModelError, TensorType, UsageError, Value

Arrays = dict[str, npt.NDArray[Any]]


def random_inputs(
    graph: Graph, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> Arrays:
    """Inputs for a check: standard normal floats, small whole numbers, random booleans.

    Args:
        graph: Whose inputs.
        shapes: Shapes by input name; else known sizes, with 1 for every unknown one.
        seed: The seed of the random numbers.

    Raises:
        UsageError: If a shape names no input, does not fit it, or is needed and missing.
    """
    shapes = dict(shapes or {})
    known = [v.name for v in graph.inputs]
    for name in shapes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"inputs are {', '.join(known)}"
            raise UsageError(f"the model has no input {name!r}; {hint}")
    rng = np.random.default_rng(seed)
    symbols: dict[str, int] = {}
    for value in graph.inputs:
        given = shapes.get(value.name)
        if given is None or value.type.shape is None:
            continue
        if not value.type.accepts(TensorType(None, tuple(given))):
            wanted = "x".join("?" if d is None else str(d) for d in value.type.shape)
            shown = "x".join(map(str, given))
            raise UsageError(f"input {value.name!r} takes {wanted}, not {shown}")
        for d, size in zip(value.type.shape, given, strict=True):
            if isinstance(d, str) and symbols.setdefault(d, size) != size:
                raise UsageError(f"input {value.name!r}: {d} is both {symbols[d]} and {size}")
    return {v.name: _random(v, shapes.get(v.name), symbols, rng) for v in graph.inputs}


def _random(
    value: Value,
    given: Sequence[int] | None,
    symbols: Mapping[str, int],
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
            d if isinstance(d, int) else symbols.get(d, 1) if d else 1 for d in value.type.shape
        ]
    if dtype is DType.BOOL:
        return rng.integers(0, 2, given).astype(bool)
    if dtype.is_float or dtype in (DType.C64, DType.C128):
        return rng.standard_normal(given).astype(dtype.numpy)
    return rng.integers(0, 2, given).astype(dtype.numpy)


def onnx_runner(feeds: Arrays) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as ONNX and runs it in onnxruntime on ``feeds``."""

    def run(graph: Graph) -> list[Any]:
        from .targets.onnx import save_onnx

        with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
            path = Path(folder) / "check.onnx"
            save_onnx(graph, path)
            return list(session(path).run(None, feeds))

    return run


def session(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU without onnxruntime's own graph optimisations of layout.

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
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: onnxruntime does not run this model: {first}") from error


def fx_runner(inputs: Sequence[Any]) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as FX and runs it in torch on ``inputs``."""

    def run(graph: Graph) -> list[Any]:
        import torch
        from torch.utils._pytree import tree_leaves

        from .targets.fx import to_fx

        module = to_fx(graph)
        with torch.no_grad():
            leaves = tree_leaves(module(*inputs))
        return [
            leaf.detach().cpu().double().numpy() if leaf.is_floating_point() else leaf.cpu().numpy()
            for leaf in leaves
            if isinstance(leaf, torch.Tensor)
        ]

    return run
