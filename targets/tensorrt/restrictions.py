"""The restrictions of operators that TensorRT supports: rules that check one node each.

The JSON of a version (:mod:`.operators`) lists the rules of each operator. A rule returns what is wrong and the remedy, or ``None``. A
rule accepts what it cannot check, such as an unknown shape; TensorRT itself may still refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto

from ...ir import DType, Shape, Tensor, TensorType
from .draft import attributes

MAX_K = 3840
"""``TopK`` must ask for fewer elements."""


@dataclass(frozen=True)
class NodeInfo:
    """A node, with the known types and constants.

    Attributes:
        node: The node.
        types: The types of values by name.
        constants: The constants by name.
        opset: The version of ONNX's operators.
    """

    node: NodeProto
    types: Mapping[str, TensorType]
    constants: Mapping[str, Tensor]
    opset: int

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes as Python values."""
        return attributes(self.node)

    def input(self, index: int) -> str:
        """Return the name of an input; empty if it is not given."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        """Return the name of an output; empty if it is not given."""
        return self.node.output[index] if index < len(self.node.output) else ""

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input, if it is known."""
        found = self.types.get(self.input(index))
        return None if found is None else found.shape

    def dtype(self, index: int) -> DType | None:
        """Return the element type of an input, if it is known."""
        found = self.types.get(self.input(index))
        return None if found is None else found.dtype

    def is_computed(self, index: int) -> bool:
        """Whether an input is given and not constant."""
        name = self.input(index)
        return bool(name) and name not in self.constants

    def array(self, index: int) -> Any:
        """Return the numbers of a constant input; ``None`` if it is not constant."""
        found = self.constants.get(self.input(index))
        return None if found is None else found.numpy()


def _pool(info: NodeInfo) -> str | None:
    shape = info.shape(0)
    if shape is not None and len(shape) not in (4, 5):
        return f"pools over {len(shape) - 2} axes: pool over 2 or 3 (add an axis of size 1)"
    return None


def _dilations(info: NodeInfo) -> str | None:
    if any(d != 1 for d in info.attributes.get("dilations", ())):
        return "has dilations: pool without them"
    return None


def _indices(info: NodeInfo) -> str | None:
    return "has the output Indices, which TensorRT lacks" if info.output(1) else None


def _first_output(info: NodeInfo) -> str | None:
    return "has more than one output" if any(info.node.output[1:]) else None


def _constant(index: Mapping[str, int], name: str) -> Callable[[NodeInfo], str | None]:
    def rule(info: NodeInfo) -> str | None:
        if info.is_computed(index.get(info.node.op_type, 1)):
            return f"takes computed {name}: make them constant"
        return None

    return rule


def _static_axis(info: NodeInfo) -> str | None:
    shape, axis = info.shape(0), info.attributes.get("axis", -1)
    if shape is not None and -len(shape) <= axis < len(shape) and not isinstance(shape[axis], int):
        return "works along an axis of free size: fix the size"
    return None


def _zero_point(info: NodeInfo) -> str | None:
    if info.is_computed(2):
        return "takes a computed zero point: quantize symmetrically, zero point 0"
    points = info.array(2)
    if points is not None and np.any(points.astype(np.float32)):
        return "has a zero point other than 0: quantize symmetrically, to int8"
    return None


def _inference(info: NodeInfo) -> str | None:
    if info.is_computed(2) or (info.array(2) is not None and bool(info.array(2))):
        return "is in training mode: export the model in evaluation mode"
    return None


def _static_input(info: NodeInfo) -> str | None:
    shape = info.shape(0)
    if shape is not None and not all(isinstance(d, int) for d in shape):
        return "takes an input of free size: fix the size"
    return None


def _rank_four(info: NodeInfo) -> str | None:
    shape = info.shape(0)
    return (
        None if shape is None or len(shape) == 4 else f"takes an input of rank {len(shape)}, not 4"
    )


def _same_activations(info: NodeInfo) -> str | None:
    names = [
        n.decode() if isinstance(n, bytes) else n for n in info.attributes.get("activations", ())
    ]
    half = len(names) // 2
    if info.attributes.get("direction", b"") == b"bidirectional" and names[:half] != names[half:]:
        return "has other activations backward than forward: split it into two layers"
    return None


def _no_input_forget(info: NodeInfo) -> str | None:
    return "couples input and forget gates" if info.attributes.get("input_forget") else None


def _no_layout(info: NodeInfo) -> str | None:
    return "has layout 1: transpose to layout 0" if info.attributes.get("layout") else None


def _branches(info: NodeInfo) -> str | None:
    def rank(body: Any, i: int) -> int | None:
        kind = body.output[i].type.tensor_type
        return len(kind.shape.dim) if kind.HasField("shape") else None

    first, second = info.attributes["then_branch"], info.attributes["else_branch"]
    for i in range(min(len(first.output), len(second.output))):
        ranks = (rank(first, i), rank(second, i))
        if None not in ranks and ranks[0] != ranks[1]:
            return f"has an output of rank {ranks[0]} in one branch and of rank {ranks[1]} in the other"
    return None


_RESIZE = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
}  # fmt: skip


def _resize(info: NodeInfo) -> str | None:
    for name, taken in _RESIZE.items():
        found = info.attributes.get(name)
        if found is not None and found.decode() not in taken:
            return f"has {name} {found.decode()!r}: use one of {', '.join(sorted(taken))}"
    if info.attributes.get("antialias"):
        return "has antialias"
    return None


def _top_k(info: NodeInfo) -> str | None:
    if not info.attributes.get("sorted", 1):
        return "asks for unsorted results: sort them"
    count = info.array(1)
    if count is not None and int(np.max(count)) >= MAX_K:
        return f"asks for {int(np.max(count))} elements; it must be fewer than {MAX_K}"
    return None


def _no_reduction(info: NodeInfo) -> str | None:
    kind = info.attributes.get("reduction", b"none").decode()
    return None if kind == "none" else f"has reduction {kind!r}"


def _dense(info: NodeInfo) -> str | None:
    names = {"sparse_value", "value_string", "value_strings"} & set(info.attributes)
    return f"holds {sorted(names)[0]}" if names else None


def _deform(info: NodeInfo) -> str | None:
    shape, pads = info.shape(0), info.attributes.get("pads", ())
    if shape is not None and len(shape) not in (3, 4):
        return f"has {len(shape) - 2} spatial axes, not 1 or 2"
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        return "pads the two ends of an axis differently: use a Pad before it"
    return None


def _attention(info: NodeInfo) -> str | None:
    for i, name in enumerate(("Q", "K", "V", "attn_mask")):
        shape = info.shape(i)
        if shape is not None and len(shape) != 4:
            return f"takes {name} of rank {len(shape)}, not 4: split the heads before it"
    if any(info.input(i) for i in (4, 5, 6)):
        return "takes a cache of keys and values: concatenate before it"
    if any(info.node.output[1:]):
        return "has more than one output"
    if info.attributes.get("softcap") or info.attributes.get("qk_matmul_output_mode"):
        return "has softcap or qk_matmul_output_mode"
    return None


def _positions(info: NodeInfo) -> str | None:
    if info.dtype(3) not in (None, DType.I64):
        return "takes position_ids that are not int64: cast them"
    return None


def _stft(info: NodeInfo) -> str | None:
    if info.is_computed(1) or info.is_computed(2):
        return "takes a computed frame_step or window: make them constant"
    shape = info.shape(0)
    return "takes a complex signal" if shape and len(shape) == 3 and shape[-1] == 2 else None


def _tensor_scatter(info: NodeInfo) -> str | None:
    if any((shape := info.shape(i)) is not None and len(shape) != 4 for i in (0, 1)):
        return "takes a cache that is not of rank 4"
    return None if info.attributes.get("axis", -2) == -2 else "works along an axis other than -2"


_AXES = {"Slice": 3, "Pad": 3, "Squeeze": 1, "Unsqueeze": 1}

RULES: dict[str, Callable[[NodeInfo], str | None]] = {
    "pool-2d-3d": _pool,
    "no-dilations": _dilations,
    "no-indices": _indices,
    "first-output": _first_output,
    "constant-axis": _constant({}, "axes"),
    "constant-axes": _constant(_AXES, "axes"),
    "constant-depth": _constant({}, "depths"),
    "static-axis": _static_axis,
    "zero-point": _zero_point,
    "inference": _inference,
    "static-input": _static_input,
    "input-4d": _rank_four,
    "same-activations": _same_activations,
    "no-input-forget": _no_input_forget,
    "no-layout": _no_layout,
    "branches": _branches,
    "loop": lambda info: None,  # The lengths of its results are known at run time only.
    "resize": _resize,
    "top-k": _top_k,
    "no-reduction": _no_reduction,
    "dense": _dense,
    "deform": _deform,
    "attention": _attention,
    "int64-positions": _positions,
    "stft": _stft,
    "tensor-scatter": _tensor_scatter,
}

UNFOLDED = frozenset(
    {
        "no-dilations",
        "no-indices",
        "first-output",
        "branches",
        "same-activations",
        "no-input-forget",
        "no-layout",
        "no-reduction",
    }
)
"""The rules that clean-up cannot satisfy: they ask neither for constants nor for shapes that folding makes known."""
