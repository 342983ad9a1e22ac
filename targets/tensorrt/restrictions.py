"""Restrictions on operators that TensorRT takes: each a rule that looks at one node.

Which rules hold for which operator of which version is in the operators' data. A rule gives what is wrong together
with the remedy, or ``None``. What a rule cannot see (a shape that is not known) it lets pass: TensorRT has the last word.
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
"""``TopK`` must ask for fewer."""


@dataclass(frozen=True)
class Site:
    """A node and what is known of its values.

    Attributes:
        node: The node.
        types: Types by name.
        constants: Constants by name.
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
        """The name of an input; empty when it is not given."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        """The name of an output; empty when it is not given."""
        return self.node.output[index] if index < len(self.node.output) else ""

    def shape(self, index: int) -> Shape | None:
        """The shape of an input, if it is known."""
        found = self.types.get(self.input(index))
        return None if found is None else found.shape

    def dtype(self, index: int) -> DType | None:
        """The element type of an input, if it is known."""
        found = self.types.get(self.input(index))
        return None if found is None else found.dtype

    def computed(self, index: int) -> bool:
        """Whether an input is given and is no constant."""
        name = self.input(index)
        return bool(name) and name not in self.constants

    def number(self, index: int) -> Any:
        """The numbers of a constant input; ``None`` when it has none."""
        found = self.constants.get(self.input(index))
        return None if found is None else found.numpy()


def _pool(site: Site) -> str | None:
    shape = site.shape(0)
    if shape is not None and len(shape) not in (4, 5):
        return f"pools over {len(shape) - 2} axes: pool over 2 or 3 (add an axis of size 1)"
    return None


def _dilations(site: Site) -> str | None:
    if any(d != 1 for d in site.attributes.get("dilations", ())):
        return "has dilations: pool without them"
    return None


def _indices(site: Site) -> str | None:
    return "gives indices, which must not be read" if site.output(1) else None


def _first_output(site: Site) -> str | None:
    return "gives more than its first result" if any(site.node.output[1:]) else None


def _constant(index: Mapping[str, int], name: str) -> Callable[[Site], str | None]:
    def rule(site: Site) -> str | None:
        if site.computed(index.get(site.node.op_type, 1)):
            return f"takes {name} that are computed: make them constant"
        return None

    return rule


def _static_axis(site: Site) -> str | None:
    shape, axis = site.shape(0), site.attributes.get("axis", -1)
    if shape is not None and -len(shape) <= axis < len(shape) and not isinstance(shape[axis], int):
        return "works along an axis of free size: give it a size"
    return None


def _zero_point(site: Site) -> str | None:
    if site.computed(2):
        return "takes a zero point that is computed: quantize symmetrically, zero point 0"
    points = site.number(2)
    if points is not None and np.any(points.astype(np.float32)):
        return "has a zero point other than 0: quantize symmetrically, to int8"
    return None


def _inference(site: Site) -> str | None:
    if site.computed(2) or (site.number(2) is not None and bool(site.number(2))):
        return "is in training mode: export the model in evaluation mode"
    return None


def _static_input(site: Site) -> str | None:
    shape = site.shape(0)
    if shape is not None and not all(isinstance(d, int) for d in shape):
        return "takes an input of free size: give it a size"
    return None


def _rank_four(site: Site) -> str | None:
    shape = site.shape(0)
    return (
        None if shape is None or len(shape) == 4 else f"takes an input of rank {len(shape)}, not 4"
    )


def _same_activations(site: Site) -> str | None:
    names = [
        n.decode() if isinstance(n, bytes) else n for n in site.attributes.get("activations", ())
    ]
    half = len(names) // 2
    if site.attributes.get("direction", b"") == b"bidirectional" and names[:half] != names[half:]:
        return "has other activations backward than forward: split it in two"
    return None


def _no_input_forget(site: Site) -> str | None:
    return "couples input and forget gates" if site.attributes.get("input_forget") else None


def _no_layout(site: Site) -> str | None:
    return "has layout 1: transpose to layout 0" if site.attributes.get("layout") else None


def _branches(site: Site) -> str | None:
    def rank(body: Any, i: int) -> int | None:
        kind = body.output[i].type.tensor_type
        return len(kind.shape.dim) if kind.HasField("shape") else None

    first, second = site.attributes["then_branch"], site.attributes["else_branch"]
    for i in range(min(len(first.output), len(second.output))):
        ranks = (rank(first, i), rank(second, i))
        if None not in ranks and ranks[0] != ranks[1]:
            return f"gives rank {ranks[0]} by one branch and rank {ranks[1]} by the other"
    return None


_RESIZE = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
}  # fmt: skip


def _resize(site: Site) -> str | None:
    for name, taken in _RESIZE.items():
        found = site.attributes.get(name)
        if found is not None and found.decode() not in taken:
            return f"has {name} {found.decode()!r}: use one of {', '.join(sorted(taken))}"
    if site.attributes.get("antialias"):
        return "has antialias"
    return None


def _top_k(site: Site) -> str | None:
    if not site.attributes.get("sorted", 1):
        return "asks for unsorted results: sort them"
    count = site.number(1)
    if count is not None and int(np.max(count)) >= MAX_K:
        return f"asks for {int(np.max(count))} elements, fewer than {MAX_K} are possible"
    return None


def _no_reduction(site: Site) -> str | None:
    kind = site.attributes.get("reduction", b"none").decode()
    return None if kind == "none" else f"has reduction {kind!r}"


def _dense(site: Site) -> str | None:
    names = {"sparse_value", "value_string", "value_strings"} & set(site.attributes)
    return f"holds {sorted(names)[0]}" if names else None


def _deform(site: Site) -> str | None:
    shape, pads = site.shape(0), site.attributes.get("pads", ())
    if shape is not None and len(shape) not in (3, 4):
        return f"has {len(shape) - 2} spatial axes, not 1 or 2"
    half = len(pads) // 2
    if list(pads[:half]) != list(pads[half:]):
        return "pads the two ends of an axis differently: pad before it"
    return None


def _attention(site: Site) -> str | None:
    for i, name in enumerate(("Q", "K", "V", "attn_mask")):
        shape = site.shape(i)
        if shape is not None and len(shape) != 4:
            return f"takes {name} of rank {len(shape)}, not 4: split the heads before it"
    if any(site.input(i) for i in (4, 5, 6)):
        return "takes a cache of keys and values: concatenate before it"
    if any(site.node.output[1:]):
        return "gives more than its first result"
    if site.attributes.get("softcap") or site.attributes.get("qk_matmul_output_mode"):
        return "has softcap or qk_matmul_output_mode"
    return None


def _positions(site: Site) -> str | None:
    if site.dtype(3) not in (None, DType.I64):
        return "takes position_ids that are not int64: cast them"
    return None


def _stft(site: Site) -> str | None:
    if site.computed(1) or site.computed(2):
        return "takes frame_step or window that are computed: make them constant"
    shape = site.shape(0)
    return "takes a complex signal" if shape and len(shape) == 3 and shape[-1] == 2 else None


def _tensor_scatter(site: Site) -> str | None:
    if any((shape := site.shape(i)) is not None and len(shape) != 4 for i in (0, 1)):
        return "takes a cache that is not of rank 4"
    return None if site.attributes.get("axis", -2) == -2 else "works along an axis other than -2"


_AXES = {"Slice": 3, "Pad": 3, "Squeeze": 1, "Unsqueeze": 1}

RULES: dict[str, Callable[[Site], str | None]] = {
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
    "loop": lambda site: None,  # How long results get is known when it runs.
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
