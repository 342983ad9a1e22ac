"""IR graphs to .tflite files for LiteRT.

The emitter writes the file itself, by the schema's generated code: no TensorFlow, and for ONNX no torch. Convolutional networks are
stored channels last from end to end. ``layout`` and ``wishes`` decide the order of axes, ``emitter`` walks the graph, the files beside
it have the rules of the ops by family, ``flat`` is the model in memory, ``versions`` knows the operators, ``write`` makes the bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ...ir import Graph, UsageError
from ...ir.files import resolve_output, write_bytes
from ...ir.options import PythonOnly
from ..emitted import Emitted, Readers
from . import litert_torch
from .convert import flat_model
from .spell import (
    activations,  # noqa: F401 - the rules register themselves
    arithmetic,  # noqa: F401 - the rules register themselves
    conv,  # noqa: F401 - the rules register themselves
    dense,  # noqa: F401 - the rules register themselves
    functions,  # noqa: F401 - the rules register themselves
    indexing,  # noqa: F401 - the rules register themselves
    padding,  # noqa: F401 - the rules register themselves
    pools,  # noqa: F401 - the rules register themselves
    quantized,  # noqa: F401 - the rules register themselves
    recurrent,  # noqa: F401 - the rules register themselves
    reduce,  # noqa: F401 - the rules register themselves
    resample,  # noqa: F401 - the rules register themselves
    reshapes,  # noqa: F401 - the rules register themselves
    slices,  # noqa: F401 - the rules register themselves
)
from .write import schema, to_bytes


@dataclass(frozen=True)
class Options:
    """The options of the target.

    Attributes:
        keep_nchw_io: Inputs and outputs keep the model's own order of axes, at the price of a TRANSPOSE each.
        weights: Store weights as float32 or as float16.
        via: Who writes the file; ``litert-torch`` takes torch models only.
    """

    keep_nchw_io: bool = False
    weights: Literal["float32", "float16"] = "float32"
    via: Annotated[Literal["graphshrink", "litert-torch"], PythonOnly()] = "graphshrink"


def ready(options: Options) -> None:
    """Check that what writes the file is installed.

    Raises:
        MissingExtra: If it is not.
    """
    if options.via == "litert-torch":
        litert_torch.check_installed()
    else:
        schema()


def to_tflite(
    graph: Graph, options: Options | None = None, readers: Readers | None = None
) -> bytes:
    """The bytes of a .tflite file.

    Raises:
        ModelError: If there are ops that cannot be written; it names all of them.
        MissingExtra: If the extra is not installed.
    """
    return _content(graph, options or Options(), readers)[0]


def save(
    graph: Graph, path: str | os.PathLike[str], options: Options, readers: Readers | None = None
) -> Emitted:
    """Write a graph as a .tflite file, whole or not at all.

    Raises:
        ModelError: If there are ops that cannot be written; it names all of them.
        UsageError: If the file cannot be written.
    """
    resolve_output(path)  # Before the work.
    content, notes, data = _content(graph, options, readers)
    write_bytes(path, content)
    return Emitted((Path(path),), tuple(notes), data)


def _content(
    graph: Graph, options: Options, readers: Readers | None
) -> tuple[bytes, list[str], dict[str, Any]]:
    """The file, notes, and data for the report."""
    if options.via == "litert-torch":
        if options != Options(via=options.via):
            raise UsageError("via='litert-torch' takes none of the other options")
        return litert_torch.convert(graph), ["written by litert-torch"], {}
    model, notes, data = flat_model(graph, options, readers)
    return to_bytes(model), notes, data
