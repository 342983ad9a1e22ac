"""Which layers of an engine got sparse kernels: read from what ``trtexec`` writes.

Two kinds of file are read:

- The log of ``trtexec --sparsity=enable --verbose``. TensorRT says in it which layers have weights with the pattern, and for
  which of them sparse kernels were faster than dense ones. Up to 8.5 (and in its developer guide, section "Sparsity")::

      [I] [TRT] (Sparsity) Layers eligible for sparse math: conv1, conv2, conv3
      [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: conv2, conv3

  and since then, once for each round of choosing, the last one being that of the engine::

      [I] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: conv1, conv2, conv3
      [I] [TRT] (Sparsity) Chose 2 layer(s) using sparse tactics: conv2, conv3

  A layer is named after the nodes that were fused into it, joined by `` + ``. Names may be left out where there are none or many.

- The JSON of ``trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed``, which is also what TensorRT's engine
  inspector gives. ``HasSparseWeights`` says that the pattern holds; that the kernel is a sparse one only its name says:
  ``sm80_xmma_fprop_sparse_conv_..._sptensor16x8x32``. The nodes stand in ``Metadata`` as ``[ONNX Layer: name]``.
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
"""No log has more bytes."""
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
class Layer:
    """A layer of the engine.

    Attributes:
        name: TensorRT's name for it.
        nodes: The nodes of the model that are in it, as far as the file says.
        eligible: Whether its weights have the pattern.
        sparse: Whether a sparse kernel runs it.
        kernel: The kernel's name, where the file has it.
    """

    name: str
    nodes: tuple[str, ...]
    eligible: bool
    sparse: bool
    kernel: str | None = None


@dataclass(frozen=True)
class SparseReport:
    """What a file says of sparse kernels.

    Attributes:
        layers: The layers that it names: all of them from layer information, the eligible ones from a log.
        eligible: How many layers have weights with the pattern.
        sparse: How many layers got sparse kernels.
        milliseconds: The median time on the GPU, if a log has it.
    """

    layers: tuple[Layer, ...]
    eligible: int
    sparse: int
    milliseconds: float | None = None

    def of_node(self, name: str) -> Layer | None:
        """The layer that a node of the model is in."""
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
    """Read a log, or layer information, whichever it is.

    Raises:
        ModelError: If the file is missing or neither of them, or the layer information is not detailed.
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
    """What a log of trtexec says.

    Raises:
        ModelError: If it says nothing of sparsity.
    """
    eligible = _last(_ELIGIBLE, text)
    picked = _last(_PICKED, text)
    if eligible is None or picked is None:
        raise ModelError(
            "the log says nothing of sparsity: build with trtexec --sparsity=enable --verbose"
        )
    names = list(dict.fromkeys((*eligible[1], *picked[1])))
    layers = tuple(Layer(name, tuple(name.split(" + ")), True, name in picked[1]) for name in names)
    time = _LATENCY.search(text)
    return SparseReport(
        layers, eligible[0], picked[0], None if time is None else float(time["median"])
    )


def _last(pattern: re.Pattern[str], text: str) -> tuple[int, list[str]] | None:
    """The last line of its kind: how many layers, and their names where they are given."""
    found = None
    for line in text.splitlines():
        hit = pattern.search(line)
        if hit is not None:
            names = [name.strip() for name in hit["names"].split(", ") if name.strip()]
            found = (int(hit["count"]) if hit["count"] else len(names), names)
    return found


def parse_layers(data: Any) -> SparseReport:
    """What layer information says.

    Args:
        data: The JSON: an object with ``Layers``, as trtexec and the engine inspector give it.

    Raises:
        ModelError: If it is not that, or has only the names of layers.
    """
    found = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise ModelError("this is no layer information: it has no list of Layers")
    if found and all(isinstance(layer, str) for layer in found):
        raise ModelError(
            "the layer information has names only: build with trtexec --profilingVerbosity=detailed"
        )
    layers = tuple(_layer(entry) for entry in found if isinstance(entry, dict))
    return SparseReport(
        layers, sum(layer.eligible for layer in layers), sum(layer.sparse for layer in layers)
    )


def _layer(entry: dict[str, Any]) -> Layer:
    name = str(entry.get("Name", ""))
    kernel = entry.get("TacticName")
    nodes = _NODE.findall(str(entry.get("Metadata", ""))) or name.split(" + ")
    sparse = isinstance(kernel, str) and _SPARSE_KERNEL.search(kernel) is not None
    eligible = sparse or bool(entry.get("HasSparseWeights", 0))
    return Layer(name, tuple(nodes), eligible, sparse, kernel if isinstance(kernel, str) else None)


def joined(weights: Iterable[dict[str, Any]], report: SparseReport) -> list[dict[str, Any]]:
    """What the side-car says of each weight, beside what TensorRT did with it.

    Args:
        weights: The layers of a side-car, or of ``sidecar.sparse_layers``.
        report: What TensorRT said.

    Returns:
        The same entries with ``engine``: ``"sparse"``, ``"dense"`` (TensorRT found a dense kernel faster), ``"not eligible"``, or
        ``None`` when the report does not name the nodes.
    """
    found = []
    for weight in weights:
        layers = [report.of_node(node) for node in weight["nodes"]]
        known = [layer for layer in layers if layer is not None]
        said = None
        if known:
            said = "dense" if any(layer.eligible for layer in known) else "not eligible"
            said = "sparse" if any(layer.sparse for layer in known) else said
        kernel = next((layer.kernel for layer in known if layer.kernel), None)
        found.append({**weight, "engine": said, "kernel": kernel})
    return found
