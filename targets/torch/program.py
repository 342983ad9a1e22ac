"""The target ``torch``: any graph becomes an exported program in a .pt2 file, which ``torch.export.load`` reads.

The program has the sizes of the inputs open that the model leaves open, as far as ``torch.export`` can follow them; a note names those that
it fixes. A module that trains is what :func:`graphshrink.to_torch` returns.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...hosts.torch import is_from_torch
from ...ir import Graph, MissingExtra, ModelError, UsageError
from ...ir.files import resolve_output, write_bytes
from ..emitted import Emitted, Readers
from ..options import TorchOptions

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Options = TorchOptions

SIZES = (64, 224, 512, 1024, 16, 2)
"""Sizes that are tried for unknown ones behind the first axis, one after the other, until the module runs."""

_BATCH = 2
"""The size of unknown first axes; ``torch.export`` would take 1 for a fixed size."""


def ready(options: TorchOptions) -> None:
    """Check that torch is installed.

    Raises:
        MissingExtra: If it is not.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the target torch", "torch", "torch") from error


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    options: TorchOptions,
    readers: Readers | None = None,
) -> Emitted:
    """Write a graph as a .pt2 file, completely or not at all.

    Raises:
        ModelError: If there are nodes that cannot be written, or torch.export cannot export the module.
        UsageError: If the file cannot be written, or the shape of an input is not known.
    """
    import torch

    resolve_output(path)  # Fail before the work if the file cannot be written.
    program, notes = exported(graph, readers)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content)
    write_bytes(path, content.getvalue())
    return Emitted((Path(path),), tuple(notes))


def exported(graph: Graph, readers: Readers | None = None) -> tuple[ExportedProgram, list[str]]:
    """The exported program of a graph, and notes on sizes that it fixes.

    Raises:
        ModelError: If there are nodes that cannot be written, or torch.export cannot export the module.
        UsageError: If the shape of an input is not known.
    """
    import torch

    from .anew import to_module

    module = to_module(graph, readers)
    if is_from_torch(graph):
        from .emitter import example_inputs_of

        return _exported(module, example_inputs_of(graph), None), []
    renamed = [f"{name} is {word}" for word, name in module.meta["inputs"].items() if word != name]
    notes = [f"inputs whose names are no arguments: {', '.join(renamed)}"] if renamed else []
    failure: Exception | None = None
    for inputs, axes in _tried(graph):
        try:
            with torch.no_grad():
                module(*inputs)
        except Exception as error:
            failure = failure or error
            continue
        program = _exported(module, inputs, axes)
        return program, [*notes, *_fixed(graph, program, axes)]
    raise ModelError(
        f"the module does not run on inputs of the sizes {', '.join(map(str, SIZES))} where they are open: fix them "
        f"(--fix-shape, fixed_shapes in Python) ({failure})"
    )


def _exported(module: Any, inputs: tuple[Any, ...], axes: Any) -> ExportedProgram:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: ExportedProgram = torch.export.export(module, inputs, dynamic_shapes=axes)
    except Exception as error:  # Whatever torch.export raises for a call that it cannot follow.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"torch.export cannot export the module: {first}") from error
    return found


def _tried(graph: Graph) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Inputs of different sizes, and which of their axes are open."""
    import torch

    from .speller import torch_dtype

    seen = set()
    for unknown in SIZES:
        shapes, axes = [], []
        for value in graph.inputs:
            if value.type.shape is None or value.type.dtype is None:
                raise UsageError(
                    f"the shape of input {value.name!r} is not known: give it (--fix-shape, fixed_shapes in Python)"
                )
            sizes = value.type.shape
            open_ = {
                a: torch.export.Dim.AUTO for a, d in enumerate(sizes) if not isinstance(d, int)
            }
            axes.append(open_ or None)
            shapes.append(
                tuple(
                    d if isinstance(d, int) else _BATCH if a == 0 else unknown
                    for a, d in enumerate(sizes)
                )
            )
        if tuple(shapes) in seen:
            continue
        seen.add(tuple(shapes))
        made = (
            torch.zeros(s, dtype=torch_dtype(v.type.dtype))
            for s, v in zip(shapes, graph.inputs, strict=True)
            if v.type.dtype
        )
        yield tuple(made), tuple(axes)


def _fixed(graph: Graph, program: ExportedProgram, axes: Any) -> list[str]:
    """A note for each size that the model leaves open and the program does not."""
    notes = []
    named = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = list(program.graph_signature.user_inputs)
    for value, name, open_ in zip(graph.inputs, names, axes, strict=True):
        shape = named[str(name)].meta["val"].shape
        found = [a for a in open_ or () if isinstance(shape[a], int)]
        if found:
            sizes = ", ".join(f"{shape[a]} along axis {a}" for a in found)
            notes.append(
                f"torch.export fixed sizes of input {value.name} that the model leaves open: {sizes}"
            )
    return notes


__all__ = ["exported", "ready", "save"]
