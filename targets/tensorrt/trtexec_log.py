"""Reads from the output of ``trtexec`` which layers of an engine got sparse kernels.

Two kinds of file are read:

- The log of ``trtexec --sparsity=enable --verbose``. It names the layers whose weights have the pattern, and those of them for
  which a sparse kernel was faster than the dense ones. Up to 8.5 (and in its developer guide, section "Sparsity")::

      [I] [TRT] (Sparsity) Layers eligible for sparse math: conv1, conv2, conv3
      [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: conv2, conv3

  and since then, once for each round of choosing kernels; the last round is that of the engine::

      [I] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: conv1, conv2, conv3
      [I] [TRT] (Sparsity) Chose 2 layer(s) using sparse tactics: conv2, conv3

  A layer's name is that of the nodes fused into it, joined by `` + ``. A log may leave out the names.

- The JSON of ``trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed``, which is also what TensorRT's engine
  inspector returns. ``HasSparseWeights`` means that the weights have the pattern; only the name of a kernel shows that it is sparse:
  ``sm80_xmma_fprop_sparse_conv_..._sptensor16x8x32``. ``Metadata`` names the nodes as ``[ONNX Layer: name]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir import ModelError
from ...ir.errors import check_readable

_LARGEST = 1 << 30
"""The largest file that is read, in bytes."""
_ELIGIBLE = re.compile(
    r"\(Sparsity\) (?:Layers eligible for sparse math|"
    r"Found (?P<count>\d+) layer\(s\) eligible to use sparse tactics):?(?P<names>.*)"
)
_PICKED = re.compile(
    r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers|"
    r"Chose (?P<count>\d+) layer\(s\) using sparse tactics):?(?P<names>.*)"
)
_LATENCY = re.compile(r"GPU Compute Time:.*?median = (?P<median>[\d.]+) ms")
_NODE = re.compile(r"\[ONNX Layer: (?P<name>[^\]]*)\]")
_SPARSE_KERNEL = re.compile(r"(?:^|_)(?:sparse|sptensor\d)")


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the engine.

    Attributes:
        name: TensorRT's name for it.
        nodes: The nodes of the model that were fused into it, as far as the file names them.
        eligible: Whether its weights have the pattern.
        sparse: Whether its kernel is sparse.
        kernel: The name of the kernel, if the file has it.
    """

    name: str
    nodes: tuple[str, ...]
    eligible: bool
    sparse: bool
    kernel: str | None = None


@dataclass(frozen=True)
class SparseReport:
    """The sparse kernels of an engine.

    Attributes:
        layers: All layers if read from layer information, the eligible ones that it names if read from a log.
        eligible: How many layers have weights with the pattern.
        sparse: How many layers got sparse kernels.
        milliseconds: The median time on the GPU, if a log has it.
    """

    layers: tuple[EngineLayer, ...]
    eligible: int
    sparse: int
    milliseconds: float | None = None

    def of_node(self, name: str) -> EngineLayer | None:
        """Return the layer that a node of the model was fused into."""
        return next((layer for layer in self.layers if name in layer.nodes), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "eligible": self.eligible,
            "sparse": self.sparse,
            "milliseconds": self.milliseconds,
            "layers": [{**vars(layer), "nodes": list(layer.nodes)} for layer in self.layers],
        }


def read_report(path: str | Path) -> SparseReport:
    """Return the report of a file, which is a log or layer information.

    Raises:
        ModelError: If the file is missing or is neither, or the layer information is not detailed.
    """
    check_readable(path, _LARGEST)
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if text.lstrip().startswith("{"):
        try:
            return parse_layers(json.loads(text))
        except (ValueError, RecursionError, ModelError) as error:
            raise ModelError(f"{path}: {error}") from error
    try:
        return parse_log(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def parse_log(text: str) -> SparseReport:
    """Return the report of a log of trtexec.

    Raises:
        ModelError: If the log has no lines about sparsity.
    """
    eligible = _last(_ELIGIBLE, text)
    picked = _last(_PICKED, text)
    if eligible is None or picked is None:
        raise ModelError(
            "the log has no lines about sparsity: build with trtexec --sparsity=enable --verbose"
        )
    names = list(dict.fromkeys((*eligible[1], *picked[1])))
    layers = tuple(
        EngineLayer(name, tuple(name.split(" + ")), True, name in picked[1]) for name in names
    )
    time = _LATENCY.search(text)
    return SparseReport(
        layers, eligible[0], picked[0], None if time is None else float(time["median"])
    )


def _last(pattern: re.Pattern[str], text: str) -> tuple[int, list[str]] | None:
    """Return the number of layers in the last line that matches, and their names as far as the line has them."""
    found = None
    for line in text.splitlines():
        hit = pattern.search(line)
        if hit is not None:
            names = [name.strip() for name in hit["names"].split(", ") if name.strip()]
            found = (int(hit["count"]) if hit["count"] else len(names), names)
    return found


def parse_layers(data: Any) -> SparseReport:
    """Return the report of layer information.

    Args:
        data: The JSON of trtexec or of the engine inspector, an object with ``Layers``.

    Raises:
        ModelError: If it is not such an object, or has only the names of layers.
    """
    found = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise ModelError("this is not layer information: it has no list of Layers")
    if found and all(isinstance(layer, str) for layer in found):
        raise ModelError(
            "the layer information has names only: build with trtexec --profilingVerbosity=detailed"
        )
    layers = tuple(_layer(entry) for entry in found if isinstance(entry, dict))
    return SparseReport(
        layers, sum(layer.eligible for layer in layers), sum(layer.sparse for layer in layers)
    )


def _layer(entry: dict[str, Any]) -> EngineLayer:
    name = str(entry.get("Name", ""))
    kernel = entry.get("TacticName")
    nodes = _NODE.findall(str(entry.get("Metadata", ""))) or name.split(" + ")
    sparse = isinstance(kernel, str) and _SPARSE_KERNEL.search(kernel) is not None
    eligible = sparse or bool(entry.get("HasSparseWeights", 0))
    return EngineLayer(
        name, tuple(nodes), eligible, sparse, kernel if isinstance(kernel, str) else None
    )


def with_engine_results(
    weights: Iterable[dict[str, Any]], report: SparseReport
) -> list[dict[str, Any]]:
    """Return the weights of a side-car, each with the kernel that TensorRT chose for it.

    Args:
        weights: The layers of a side-car, or of ``sidecar.sparse_layers``.
        report: The report of the engine.

    Returns:
        The same entries with ``engine``: ``"sparse"``, ``"dense"`` (TensorRT found a dense kernel faster), ``"not eligible"``, or
        ``None`` when the report does not name the nodes.
    """
    found = []
    for weight in weights:
        layers = [report.of_node(node) for node in weight["nodes"]]
        known = [layer for layer in layers if layer is not None]
        engine = None
        if known:
            engine = "dense" if any(layer.eligible for layer in known) else "not eligible"
            engine = "sparse" if any(layer.sparse for layer in known) else engine
        kernel = next((layer.kernel for layer in known if layer.kernel), None)
        found.append({**weight, "engine": engine, "kernel": kernel})
    return found
