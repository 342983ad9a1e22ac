"""Strides, pads and dilations of ONNX's convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...support import LeftAlone
from ..node import OnnxNode


def window(node: OnnxNode, kernel: Sequence[int], ceil_mode: bool = False) -> dict[str, Any] | None:
    """Strides, pads and dilations with ``auto_pad`` resolved; ``None`` if that needs unknown sizes."""
    n = len(kernel)
    strides = node.ints("strides") or (1,) * n
    dilations = node.ints("dilations") or (1,) * n
    auto = node.text("auto_pad", "NOTSET")
    pads = node.ints("pads") or (0,) * (2 * n)
    if auto not in ("NOTSET", "") and ceil_mode:
        return None  # Versions differ in which of the two determines the size.
    if auto == "VALID":
        pads = (0,) * (2 * n)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for i in range(n):
            size = node.type().dim(2 + i)
            span = dilations[i] * (kernel[i] - 1) + 1
            if strides[i] == 1:
                total = span - 1
            elif size is None:
                raise LeftAlone(
                    f"auto_pad={auto} pads a size that is not known (axis {2 + i} of {node.type()}): give it by --fix-shape"
                )
            else:
                total = max((-(-size // strides[i]) - 1) * strides[i] + span - size, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if auto == "SAME_UPPER" else large)
            ends.append(large if auto == "SAME_UPPER" else small)
        pads = (*begins, *ends)
    elif auto not in ("NOTSET", ""):
        return None
    if any(p < 0 for p in pads) or len(pads) != 2 * n or len(strides) != n or len(dilations) != n:
        return None
    return {"strides": strides, "pads": pads, "dilations": dilations}


def transposed_window(
    node: OnnxNode, kernel: Sequence[int], extra: Sequence[int]
) -> dict[str, Any] | None:
    """Strides, pads and dilations of a transposed convolution, with ``auto_pad`` and ``output_shape`` resolved.

    Args:
        node: The convolution.
        kernel: The sizes of its kernel.
        extra: Its output padding; may be empty.

    Returns:
        ``None`` if that needs unknown sizes, or if a crop would be negative.
    """
    n = len(kernel)
    auto, shape = node.text("auto_pad", "NOTSET"), node.ints("output_shape")
    if auto in ("NOTSET", "", "VALID") and shape is None:
        return window(node, kernel)
    if auto not in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return None
    strides = node.ints("strides") or (1,) * n
    dilations = node.ints("dilations") or (1,) * n
    node.ints("pads")  # Pads are ignored if one of these attributes is given.
    begins, ends = [], []
    for i in range(n):
        span = dilations[i] * (kernel[i] - 1) + 1 + (extra[i] if extra else 0)
        if shape is None:
            total = span - strides[i]
        else:
            size = node.type().dim(2 + i)
            if not isinstance(size, int):
                raise LeftAlone(
                    f"output_shape crops a size that is not known (axis {2 + i} of {node.type()}): give it by --fix-shape"
                )
            total = strides[i] * (size - 1) + span - shape[len(shape) - n + i]
        if total < 0:
            return None
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return {"strides": strides, "pads": (*begins, *ends), "dilations": dilations}
