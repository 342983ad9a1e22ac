"""Running graphs to compare their outputs: onnxruntime for ONNX, torch for FX."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir import Graph, GraphshrinkError, ModelError, UsageError
from ..ir.errors import check_readable, one_line
from ..ir.processors import session_threads
from .inputs import Arrays, shapes_text
from .memory import check_memory

if TYPE_CHECKING:
    from onnx import ModelProto


def onnx_runner(feeds: Arrays) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as ONNX and runs it in onnxruntime on ``feeds``."""

    def run(graph: Graph) -> list[Any]:
        with emitted_session(graph) as loaded:
            return run_session(loaded, feeds, "the model")

    return run


@contextmanager
def emitted_session(graph: Graph) -> Iterator[Any]:
    """Open an onnxruntime session of a graph that is emitted as ONNX.

    Raises:
        ModelError: If the graph cannot be emitted, or onnxruntime cannot load it.
    """
    check_memory(graph, "the model")
    # Imported before the temporary folder is made: an interrupted import would leave the folder behind.
    import_module("onnxruntime")
    from ..targets.onnx.emitter import save_onnx

    with tempfile.TemporaryDirectory(prefix="graphshrink-") as folder:
        path = Path(folder) / "check.onnx"
        save_onnx(graph, path)
        yield session(path, name="the model")


def session(
    model: Path | ModelProto,
    threads: int = 0,
    name: str | None = None,
    base_dir: Path | None = None,
) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        model: The model file, or the model in memory.
        threads: The number of threads within an op; 0 uses all cores.
        name: The model's name in errors; the path of its file if not given.
        base_dir: The folder of the external data of a model in memory.

    Raises:
        ModelError: If onnxruntime cannot load the model.
    """
    import_module("onnxruntime")
    named = name or str(model)
    try:
        made = _opened(model, threads, base_dir)
        if all(_readable(port.type) for port in (*made.get_inputs(), *made.get_outputs())):
            return made
        failure: Exception = ModelError("onnxruntime does not take bfloat16 from Python")
    except Exception as error:
        failure = error
    from .widened import widened

    try:
        wide = widened(model, base_dir, lambda proto: _opened(proto, threads, base_dir))
    except Exception:
        wide = None  # The first error is the one about the model as it is.
    if wide is not None:
        return wide
    reason = one_line(failure)
    if isinstance(model, Path):
        reason = reason.replace(str(model), named)
    raise ModelError(f"onnxruntime cannot load {named}: {reason}{_hint(str(failure))}") from failure


def _opened(model: Path | ModelProto, threads: int, base_dir: Path | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = session_threads(threads)
    if base_dir is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(base_dir))
    for library in _libraries.get():
        options.register_custom_ops_library(library)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _readable(type_: str) -> bool:
    """Whether Python can give onnxruntime arrays of a type, and take them."""
    return "bfloat16" not in type_


_libraries: ContextVar[tuple[str, ...]] = ContextVar("libraries", default=())


@contextmanager
def custom_ops(libraries: Sequence[str]) -> Iterator[None]:
    """Register libraries with kernels of custom operators in every onnxruntime session inside this context.

    Raises:
        UsageError: If onnxruntime cannot load one.
    """
    for library in libraries:
        import onnxruntime

        try:
            check_readable(library)
            onnxruntime.SessionOptions().register_custom_ops_library(library)
        except GraphshrinkError:
            raise
        except Exception as error:
            raise UsageError(f"--custom-ops {library}: {one_line(error)}") from error
    token = _libraries.set(tuple(libraries))
    try:
        yield
    finally:
        _libraries.reset(token)


def _hint(reason: str) -> str:
    """What helps with operators that onnxruntime does not know."""
    unknown = re.search(r"([^\s:]+):([^\s:(]+)\(-?\d+\) is not a registered function/op", reason)
    if unknown is None:
        return ""
    return (
        f" (the kernel of {unknown[2]} of {unknown[1]} is in a library: --custom-ops FILE loads it; "
        "a model can be shrunk without --check and without it)"
    )


_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's name for the option with the folder of external data."""


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


def fx_runner(inputs: Sequence[Any]) -> Callable[[Graph], list[Any]]:
    """A function that emits a graph as FX and runs it in torch on ``inputs``."""

    def run(graph: Graph) -> list[Any]:
        from ..targets.torch.emitter import to_fx

        return _run_module(to_fx(graph), inputs)

    return run


def _run_module(module: Any, inputs: Sequence[Any]) -> list[Any]:
    """The tensors that a module returns, as arrays; random numbers are the same in every run."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    from ..frontends.torch.trace import random_kept
    from ..hosts.torch.copies import containers_kept

    # In-place modules may write to their inputs: every run gets copies.
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
    """The tensors that the user's module or exported program returns; the model is not changed.

    Raises:
        ModelError: If the model does not run.
    """
    import torch

    from ..hosts.torch.copies import ModuleCopy

    module = model if isinstance(model, torch.nn.Module) else model.module()
    parameters = {id(p) for p in module.parameters()}
    copied = ModuleCopy(module, lambda t: t if id(t) in parameters else t.clone())
    return _run_module(copied.module, inputs)


def run_given_file(model: Any, feeds: Arrays) -> list[Any]:
    """The outputs of the user's ONNX file or ``ModelProto``.

    Raises:
        ModelError: If onnxruntime cannot load or run it.
    """
    if isinstance(model, str | os.PathLike):
        return run_session(session(Path(model)), feeds, os.fspath(model))
    return run_session(session(model, name="the given model"), feeds, "the given model")


def running_module(graph: Graph) -> Any:
    """Emit a graph from torch as a module, and test that the module runs on fake tensors with the shapes of the example inputs.

    Raises:
        ModelError: If the module does not run, or torch cannot express the graph.
    """
    from ..frontends.torch.importer import DoesNotRun, shapes_of
    from ..targets.torch.emitter import to_fx

    module = to_fx(graph)
    inputs = graph.host.exported if graph.host.inputs is None else graph.host.inputs
    if inputs is not None:
        try:
            shapes_of(module, inputs)
        except DoesNotRun as error:
            raise ModelError(
                f"the shrunk module does not run on example_inputs, though the given one does: {one_line(error.__cause__ or error)}; "
                "this is a bug in graphshrink"
            ) from error
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
