"""Google's own converter, for torch models with ops that the emitter cannot write (extra ``litert-torch``)."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...hosts.torch import is_from_torch
from ...ir import Graph, MissingExtra, ModelError, UsageError


def check_installed() -> None:
    """Check that the converter is installed, without importing it.

    Raises:
        MissingExtra: If it is not installed.
    """
    if find_spec("litert_torch") is None:
        raise MissingExtra("via='litert-torch'", "litert-torch", "litert-torch")


def convert(graph: Graph) -> bytes:
    """Return the bytes of the .tflite file that litert-torch makes of a graph, which is written as a torch module first.

    Raises:
        UsageError: If the graph did not come from torch.
        ModelError: If litert-torch cannot convert it.
    """
    if not is_from_torch(graph):
        raise UsageError("via='litert-torch' converts torch models; this one came from ONNX")
    check_installed()
    import litert_torch

    from ..torch.emitter import example_inputs_of, to_fx

    module, inputs = to_fx(graph), example_inputs_of(graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = litert_torch.convert(module.eval(), inputs)
            with TemporaryDirectory(prefix="graphshrink-") as folder:
                path = Path(folder) / "made.tflite"
                made.export(str(path))
                return path.read_bytes()
    except Exception as error:
        logging.getLogger(__name__).debug("litert-torch failed", exc_info=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"litert-torch cannot convert the model: {reason}") from error
