"""The target ``tflite``: IR graphs become .tflite files for LiteRT.

The file is written with the schema's generated code, without TensorFlow, and from ONNX without torch. Convolutional networks are
stored channels last from end to end. ``layout`` and ``preferred_orders`` decide the order of axes, ``emitter`` writes the graph node by node,
``spell/`` has the rules of the ops by family, ``flat`` is the model in memory, ``versions`` has the versions of operators, ``write``
makes the bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...ir import Graph, UsageError
from ...ir.files import resolve_output, write_bytes
from ..emitted import Emitted, Readers
from ..options import TFLiteOptions
from . import (
    litert_torch,
    spell,  # noqa: F401 - the rules register themselves
)
from .convert import flat_model
from .write import schema, to_bytes

Options = TFLiteOptions


def ready(options: TFLiteOptions) -> None:
    """Check that the packages that write the file are installed.

    Raises:
        MissingExtra: If one is missing.
    """
    if options.via == "litert-torch":
        litert_torch.check_installed()
    else:
        schema()


def to_tflite(
    graph: Graph, options: TFLiteOptions | None = None, readers: Readers | None = None
) -> bytes:
    """Return the bytes of a .tflite file.

    Raises:
        ModelError: If there are ops that cannot be written; it names all of them.
        MissingExtra: If the extra is not installed.
    """
    return _content(graph, options or TFLiteOptions(), readers)[0]


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    options: TFLiteOptions,
    readers: Readers | None = None,
) -> Emitted:
    """Write a graph as a .tflite file, completely or not at all.

    Raises:
        ModelError: If there are ops that cannot be written; it names all of them.
        UsageError: If the file cannot be written.
    """
    resolve_output(path)  # Fail before the work if the file cannot be written.
    content, notes, data = _content(graph, options, readers)
    write_bytes(path, content)
    return Emitted((Path(path),), tuple(notes), data)


def _content(
    graph: Graph, options: TFLiteOptions, readers: Readers | None
) -> tuple[bytes, list[str], dict[str, Any]]:
    """Return the bytes of the file, notes, and data for the report."""
    if options.via == "litert-torch":
        if options != TFLiteOptions(via=options.via):
            raise UsageError("via='litert-torch' takes none of the other options")
        return litert_torch.convert(graph), ["written by litert-torch"], {}
    model, notes, data = flat_model(graph, options, readers)
    return to_bytes(model), notes, data
