"""Convolutions.

TFLite has two paddings: none (VALID), and the smallest one that gives ``ceil(size / stride)`` outputs, the larger half at the end
(SAME). A convolution whose pads equal neither gets a PAD operation. Padding that no window reaches is dropped first: with stride 2, a
symmetric pad of 1 on an even size becomes a pad of 1 at the beginning only, which differs from SAME.

A 1-D convolution is written as a 2-D one of height 1; a 3-D one has an operation of its own, which has no groups. A transposed convolution that is not SAME is computed without padding (VALID) and
cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import Conv, ConvTranspose, Node, Value
from ..emitter import Emitter, Unsupported, spells
from ..flat import DYNAMIC, NUMPY_TYPES, Array, FlatTensor
from ..layout import Layout, channels_last, model_order
from .slices import strided_slice

SAME, VALID = 0, 1
"""The schema's Padding."""


@spells(Conv)
def conv(e: Emitter, node: Node, op: Conv) -> None:
    """CONV_2D, DEPTHWISE_CONV_2D or CONV_3D."""
    x, w = node.required(0), node.required(1)
    n = op.spatial_rank if op.spatial_rank == 3 else _checked_rank(op.spatial_rank)
    sizes = e.known_sizes(x, range(2, 2 + n), "spatial size")
    fan_out, _, *kernel = e.known_sizes(w, range(2 + n), "weight's size")
    begins, ends = op.pads[:n], op.pads[n:]
    out = e.known_sizes(node.output, range(2, 2 + n), "spatial size")
    layout = channels_last(n + 2)
    image = as_image(e, e.get(x, layout))
    window = Window.of(n, kernel, op.strides, op.dilations, begins, ends, sizes, out)
    image, padding = window.padded(e, image)
    bias = _bias(e, node.input(2), fan_out)
    channels = image.shape[-1]
    options: dict[str, Any] = {"padding": padding}
    for axis, stride, dilation in zip("DHW"[-max(n, 2):], window.strides, window.dilations, strict=True):  # fmt: skip
        options |= {f"stride{axis}": stride, f"dilation{axis}Factor": dilation}
    if n == 3 and op.groups > 1:
        raise Unsupported("3-D with groups: LiteRT has none")
    act, result = e.fuse_activation(node)
    options["fusedActivationFunction"] = act
    shape = (image.shape[0], *window.out, fan_out)
    if n == 3:
        # (O, I, d, h, w) to (d, h, w, I, O).
        if w.data is None:
            weight = e.get(w, Layout((2, 3, 4, 1, 0)))
        else:
            weight = e.weight(_packed(e.numbers(w).transpose(2, 3, 4, 1, 0)), w.name)
        code, kind = "CONV_3D", "Conv3DOptions"
    elif op.groups == channels and op.groups > 1:
        # (O, 1, h, w) to (1, h, w, O).
        weight = _kernel(e, w, (1, 2, 3, 0))
        options["depthMultiplier"] = fan_out // channels
        code, kind = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
    else:
        weight = _kernel(e, w, (0, 2, 3, 1))
        code, kind = "CONV_2D", "Conv2DOptions"
        if op.groups > 1:
            e.notes[
                "grouped convolutions are fast with XNNPACK only; without it, LiteRT computes them slowly"
            ] = None
    made = e.op(code, [image, weight, bias], shape, "FLOAT32", (kind, options))
    e.put(result, from_image(e, made, n), layout)


@spells(ConvTranspose)
def conv_transpose(e: Emitter, node: Node, op: ConvTranspose) -> None:
    """TRANSPOSE_CONV, one for each group."""
    x, w = node.required(0), node.required(1)
    n = _checked_rank(op.spatial_rank)
    sizes = e.known_sizes(x, range(2, 2 + n), "spatial size")
    _, fan_out, *taps = e.known_sizes(w, range(2 + n), "weight's size")
    out = e.known_sizes(node.output, range(2, 2 + n), "spatial size")
    begins, ends = op.pads[:n], op.pads[n:]
    if min(*begins, *ends) < 0:
        raise Unsupported("negative padding")
    layout = channels_last(n + 2)
    image = as_image(e, e.get(x, layout))
    lead = (1,) * (2 - n)
    kernel = (*lead, *(1 + (k - 1) * d for k, d in zip(taps, op.dilations, strict=True)))
    strides, out2, sizes2 = (*lead, *op.strides), (*lead, *out), (*lead, *sizes)
    begins2 = (*(0,) * (2 - n), *begins)
    # All positions that the kernel writes to, and zeros after them for output_padding.
    full = tuple(
        max((s - 1) * stride + k, b + o)
        for s, stride, k, b, o in zip(sizes2, strides, kernel, begins2, out2, strict=True)
    )
    padding = VALID
    same = [_same_pads(o, k, stride) for o, k, stride in zip(out2, kernel, strides, strict=True)]
    ends2 = (*(0,) * (2 - n), *ends)
    if all(
        (b, t) == pads and o == s * stride
        for b, t, pads, o, s, stride in zip(
            begins2, ends2, same, out2, sizes2, strides, strict=True
        )
    ):
        padding, full, begins2 = SAME, out2, (0, 0)
    whole = full == out2
    b = node.input(2)
    bias = None if b is None else e.numbers(_constant(b))
    act, result = e.fuse_activation(node)
    made = []
    weights = _transposed_kernels(e, w, op)
    for g, (piece, weight) in enumerate(zip(_split(e, image, op.groups), weights, strict=True)):
        inputs = [_shape_of(e, image, (*full, fan_out)), weight, piece]
        if bias is not None:
            inputs.append(e.constant(bias[g * fan_out : (g + 1) * fan_out]))
        made.append(
            e.op("TRANSPOSE_CONV", inputs, (image.shape[0], *full, fan_out), "FLOAT32",
                 ("TransposeConvOptions", {"padding": padding, "strideH": strides[0], "strideW": strides[1],
                                           "fusedActivationFunction": act}))
        )  # fmt: skip
    joined = made[0]
    if len(made) > 1:
        shape = (image.shape[0], *full, fan_out * op.groups)
        joined = e.op("CONCATENATION", made, shape, "FLOAT32",
                      ("ConcatenationOptions", {"axis": 3, "fusedActivationFunction": 0}))  # fmt: skip
    if not whole:
        starts = (0, *begins2, 0)
        stops = (None, *(b + o for b, o in zip(begins2, out2, strict=True)), None)
        joined = strided_slice(e, joined, starts, stops, (1,) * 4)
    e.put(result, from_image(e, joined, n), layout)


def _transposed_kernels(e: Emitter, w: Value, op: ConvTranspose) -> list[FlatTensor]:
    """Return the kernel of each group, (O, h, w, I)."""
    if w.data is None:
        if op.groups > 1 or set(op.dilations) != {1}:
            raise Unsupported(f"its weight {w.name} is computed by the model, not constant")
        return [_kernel(e, w, (1, 2, 3, 0))]
    weight = _as_2d(_dilated(e.numbers(w), op.dilations))
    return [
        e.weight(_packed(part.transpose(1, 2, 3, 0)), w.name)
        for part in np.split(weight, op.groups)
    ]


def _same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding of SAME at the two ends of an axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _shape_of(e: Emitter, image: FlatTensor, tail: Sequence[int]) -> FlatTensor:
    """Return the sizes of the result as TRANSPOSE_CONV reads them; an unknown batch size is that of the input at run time."""
    if image.shape[0] != DYNAMIC:
        return e.constant(np.array([image.shape[0], *tail]), "INT32")
    sizes = e.op("SHAPE", [image], (4,), "INT32", ("ShapeOptions", {"outType": 2}))
    batch = strided_slice(e, sizes, (0,), (1,), (1,))
    return e.op("CONCATENATION", [batch, e.constant(np.array(tail), "INT32")], (4,), "INT32",
                ("ConcatenationOptions", {"axis": 0, "fusedActivationFunction": 0}))  # fmt: skip


def _split(e: Emitter, image: FlatTensor, groups: int) -> list[FlatTensor]:
    if groups == 1:
        return [image]
    shape = (*image.shape[:3], image.shape[3] // groups)
    outs = [e.tensor(f"{image.name}_group", shape, "FLOAT32") for _ in range(groups)]
    e.add_operation(
        "SPLIT", [e.constant(3, "INT32"), image], outs, ("SplitOptions", {"numSplits": groups})
    )
    return outs


class Window:
    """A sliding window over an image, with the padding that its windows reach.

    Attributes:
        kernel: Height and width of the window; depth, height and width of one over a volume, here and below.
        strides: The steps along height and width.
        dilations: The distances of the window's elements.
        begins: The padding at the beginning of height and width.
        ends: The padding at the end, as far as a window reaches it.
        sizes: Height and width of the image.
        out: Height and width of the result.
    """

    def __init__(
        self,
        kernel: tuple[int, ...],
        strides: tuple[int, ...],
        dilations: tuple[int, ...],
        begins: tuple[int, ...],
        sizes: tuple[int, ...],
        out: tuple[int, ...],
    ) -> None:
        self.kernel, self.strides, self.dilations = kernel, strides, dilations
        self.begins, self.sizes, self.out = begins, sizes, out
        # How far the last window reaches beyond the image: less than the model pads, or more with ceil_mode.
        self.ends = tuple(
            max(0, (o - 1) * s + 1 + (k - 1) * d - size - b)
            for o, s, k, d, size, b in zip(
                out, strides, kernel, dilations, sizes, begins, strict=True
            )
        )

    @classmethod
    def of(
        cls,
        rank: int,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        begins: Sequence[int],
        ends: Sequence[int],
        sizes: Sequence[int],
        out: Sequence[int],
    ) -> Window:
        """Return a window for ``rank`` spatial axes (1 to 3); one axis is the width of an image of height 1.

        Raises:
            Unsupported: If padding is negative.
        """
        if min((*begins, *ends), default=0) < 0:
            raise Unsupported("negative padding")
        one, none = (1,) * (2 - rank), (0,) * (2 - rank)
        return cls(
            (*one, *kernel), (*one, *strides), (*one, *dilations), (*none, *begins),
            (*one, *sizes), (*one, *out),
        )  # fmt: skip

    @property
    def is_valid(self) -> bool:
        """Whether no window reaches beyond the image."""
        return not any(self.begins) and not any(self.ends)

    @property
    def is_same(self) -> bool:
        """Whether the padding is that of TFLite's SAME."""
        return all(
            o == -(-size // s) and (b, t) == _same_pads(size, 1 + (k - 1) * d, s)
            for o, size, s, b, t, k, d in zip(
                self.out, self.sizes, self.strides, self.begins, self.ends, self.kernel,
                self.dilations, strict=True,
            )
        )  # fmt: skip

    def padded(
        self, e: Emitter, image: FlatTensor, value: float | None = None
    ) -> tuple[FlatTensor, int]:
        """Return the image to slide over, and TFLite's padding; a padding other than SAME is written as a PAD.

        Args:
            e: The emitter.
            image: (N, H, W, C).
            value: The number to pad with; ``None`` for zeros.
        """
        if self.is_valid:
            return image, VALID
        if self.is_same and value is None:
            return image, SAME
        return self.with_pad(e, image, value), VALID

    def with_pad(self, e: Emitter, image: FlatTensor, value: float | None = None) -> FlatTensor:
        """Return the image with all padding written as a PAD."""
        pads = [(0, 0), *zip(self.begins, self.ends, strict=True), (0, 0)]
        return pad(e, image, pads, value)


def pad(
    e: Emitter,
    tensor: FlatTensor,
    pads: Sequence[tuple[int, int]],
    value: float | None = None,
) -> FlatTensor:
    """Return the tensor after a PAD (zeros) or a PADV2 (another number)."""
    if not any(map(any, pads)):
        return tensor
    shape = [
        DYNAMIC if d == DYNAMIC else d + b + t for d, (b, t) in zip(tensor.shape, pads, strict=True)
    ]
    table = e.constant(np.array(pads), "INT32")
    if value is None:
        made = e.op("PAD", [tensor, table], shape, tensor.dtype, ("PadOptions", {}))
        made.quantization = tensor.quantization
        return made
    number = e.constant(value, tensor.dtype)
    if tensor.quantization is not None:
        number = e.tensor("pad", (), tensor.dtype, np.asarray(value, NUMPY_TYPES[tensor.dtype]))
        number.quantization = tensor.quantization
    made = e.op("PADV2", [tensor, table, number], shape, tensor.dtype, ("PadV2Options", {}))
    made.quantization = tensor.quantization
    return made


def as_image(e: Emitter, tensor: FlatTensor) -> FlatTensor:
    """Return a tensor (N, L, C) as (N, 1, L, C); one of more axes as it is."""
    if tensor.rank > 3:
        return tensor
    batch, length, channels = tensor.shape
    return e.reshape(tensor, (batch, 1, length, channels))


def from_image(e: Emitter, image: FlatTensor, rank: int) -> FlatTensor:
    """Return an image in the model's number of spatial axes, ``rank``: the inverse of :func:`as_image`."""
    if rank > 1:
        return image
    batch, _, length, channels = image.shape
    return e.reshape(image, (batch, length, channels))


def _checked_rank(rank: int) -> int:
    if rank not in (1, 2):
        raise Unsupported(f"{rank}-D: it is written in 1-D and 2-D only")
    return rank


def _kernel(e: Emitter, value: Value, perm: tuple[int, ...]) -> FlatTensor:
    """Return a 2-D kernel with its axes permuted; the axes of a computed one are permuted when the model runs."""
    if value.data is not None:
        return e.weight(_packed(_as_2d(e.numbers(value)).transpose(perm)), value.name)
    if len(e.shape(value)) == 4:
        return e.get(value, Layout(perm))
    tensor = e.get(value, model_order(3))
    wide = e.reshape(tensor, (*tensor.shape[:2], 1, tensor.shape[2]))
    return e.transpose(wide, perm)


def _constant(value: Value) -> Value:
    """Return a bias that is constant; refuse one that the model computes."""
    if value.data is None:
        raise Unsupported(f"its bias {value.name} is computed by the model, not constant")
    return value


def _bias(e: Emitter, value: Value | None, size: int) -> FlatTensor:
    """Return the bias, or zeros where the node has none: some kernels require one."""
    if value is None:
        return e.constant(np.zeros(size, np.float32), name="zeros")
    return e.get(value, model_order(1))


def _as_2d(weight: Array) -> Array:
    return weight if weight.ndim == 4 else weight[:, :, None, :]


def _dilated(weight: Array, dilations: Sequence[int]) -> Array:
    """Return the kernel with zeros inserted between its elements."""
    if all(d == 1 for d in dilations):
        return weight
    spatial = [1 + (k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *spatial), weight.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return wide


def _packed(array: Array) -> Array:
    return np.ascontiguousarray(array)
