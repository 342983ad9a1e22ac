"""Inner values of a graph, computed batch by batch: in onnxruntime for ONNX, in torch for FX."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir import Graph, ModelError, Value
from ..ir.errors import one_line
from .sessions import session

Array = npt.NDArray[Any]
Batch = Sequence[Array]
"""One array for each input of the graph, in order; for a module, inputs with defaults may be omitted at the end."""


def onnx_values(
    graph: Graph, values: Sequence[Value], batches: Iterable[Batch]
) -> Iterator[tuple[Array, ...]]:
    """Run a graph that did not come from torch in onnxruntime; yields the chosen values of each batch.

    Raises:
        ModelError: If the graph cannot be emitted or does not run.
    """
    from ..targets.onnx.emitter import save_values

    # Imported before there is a temporary file, which an interrupted import would leave behind.
    import_module("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        path = Path(folder) / "values.onnx"
        names = save_values(graph, list(dict.fromkeys(values)), path)
        loaded = session(path, name="the model")
        place = {value: i for i, value in enumerate(dict.fromkeys(values))}
        feeds = [info.name for info in loaded.get_inputs()]
        host = [v.host if isinstance(v.host, str) else v.name for v in graph.inputs]
        for number, batch in enumerate(batches):
            given = {n: a for n, a in zip(host, batch, strict=True) if n in feeds}
            try:
                found = loaded.run(names, given)
            except Exception as error:
                raise ModelError(_failed("onnxruntime", number, batch, error)) from error
            yield tuple(found[place[value]] for value in values)


def fx_values(
    graph: Graph, values: Sequence[Value], batches: Iterable[Batch]
) -> Iterator[tuple[Array, ...]]:
    """Run a graph from torch in torch; yields the chosen values of each batch.

    Raises:
        ModelError: If the graph cannot be emitted or does not run.
    """
    import torch

    from ..hosts.torch.dtypes import DTYPES
    from ..targets.torch.emitter import to_fx_values

    module, names = to_fx_values(graph, values)
    tap = _tap(module, frozenset(names))
    kinds = {ours: theirs for theirs, ours in DTYPES.items()}
    weight = next(graph.host.module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    wanted = [kinds.get(v.type.dtype) if v.type.dtype else None for v in graph.inputs]
    for number, batch in enumerate(batches):
        given = [
            _tensor(array).to(device, dtype) for array, dtype in zip(batch, wanted, strict=False)
        ]
        try:
            with torch.no_grad():
                found = tap(given)
        except Exception as error:
            raise ModelError(_failed("torch", number, batch, error)) from error
        yield tuple(found[name] for name in names)


def _failed(runtime: str, number: int, batch: Batch, error: Exception) -> str:
    shapes = ", ".join("x".join(map(str, a.shape)) or "a scalar" for a in batch)
    return (
        f"{runtime} cannot run the model on calibration batch {number} ({shapes}): "
        f"{one_line(error)}"
    )


def _tensor(array: Array) -> Any:
    """A tensor with a copy of the data, so that in-place calls do not change the original."""
    import torch

    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def _tap(module: Any, names: frozenset[str]) -> Any:
    """A function that runs a module until the named nodes are computed, and returns their values as arrays."""
    import torch
    from torch import fx

    class Done(Exception):
        pass

    class Tap(fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(module)
            self.found: dict[str, Array] = {}

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in names:
                # Copied now, because a later call may change it in place.
                wide = result.float() if result.dtype is torch.bfloat16 else result
                self.found[n.name] = np.array(wide.detach().cpu().numpy())
                if len(self.found) == len(names):
                    raise Done
            return result

    def run(given: Sequence[Any]) -> Mapping[str, Array]:
        tap = Tap()
        with suppress(Done):
            tap.run(*given, enable_io_processing=False)
        return tap.found

    return run
