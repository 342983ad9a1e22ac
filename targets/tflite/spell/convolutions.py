"""Convolutions.

TFLite knows two paddings: none (VALID), and as much as makes the output ``ceil(size / stride)``, the larger half behind
(SAME). A convolution whose pads are one of these says so; any other gets a PAD in front. Padding that no window reaches is left
out first: with stride 2, a symmetric pad of 1 on an even size is a pad of 1 in front only, which is not what SAME does.

A 1-D convolution is a 2-D one of height 1. A transposed convolution is made whole (VALID) and cropped.
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
def conv(e: Emitter, node: Node) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D."""
    op, x, w = node.op, node.required(0), node.required(1)
    assert isinstance(op, Conv)
    n = _spatial(op.spatial_rank)
    sizes = e.known_sizes(x, range(2, 2 + n), "spatial size")
    fan_out, _, *kernel = e.known_sizes(w, range(2 + n), "weight's size")
    begins, ends = op.pads[:n], op.pads[n:]
    out = e.known_sizes(node.output, range(2, 2 + n), "spatial size")
    layout = channels_last(n + 2)
    image = as_image(e, e.get(x, layout))
    window = Window.of(n, kernel, op.strides, op.dilations, begins, ends, sizes, out)
    image, padding = window.padded(e, image)
    bias = _bias(e, node.input(2), fan_out)
    channels = image.shape[3]
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": window.strides[0], "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0], "dilationWFactor": window.dilations[1],
    }  # fmt: skip
    act, result = e.fuse_activation(node)
    options["fusedActivationFunction"] = act
    shape = (image.shape[0], *window.out, fan_out)
    if op.groups == channels and op.groups > 1:
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
def conv_transpose(e: Emitter, node: Node) -> None:
    """TRANSPOSE_CONV, one a group."""
    op, x, w = node.op, node.required(0), node.required(1)
    assert isinstance(op, ConvTranspose)
    n = _spatial(op.spatial_rank)
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
    # Everything that the kernel writes to, and zeros behind it for output_padding.
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
    bias = None if node.input(2) is None else e.numbers(_constant(node.input(2)))
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
    """The kernel of every group, (O, h, w, I)."""
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
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _shape_of(e: Emitter, image: FlatTensor, tail: Sequence[int]) -> FlatTensor:
    """The result's sizes, which TRANSPOSE_CONV reads; the batch from the input where it is not known before."""
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
    """A sliding window over an image, with the padding that TFLite can say.

    Attributes:
        kernel: Height and width.
        strides: Likewise.
        dilations: Likewise.
        begins: The padding in front.
        ends: The padding behind, as far as a window reaches it.
        sizes: The image.
        out: The result.
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
        # What the last window reads beyond the image: less than the model pads, or, with ceil_mode, more.
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
        """A window of ``rank`` spatial axes, 1 or 2, as one of two.

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
        """No window reaches beyond the image."""
        return not any(self.begins) and not any(self.ends)

    @property
    def is_same(self) -> bool:
        """The padding is what TFLite's SAME does."""
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
        """The image to slide over, with a PAD where TFLite has no word for the padding, and the word.

        Args:
            e: The emitter.
            image: (N, H, W, C).
            value: What is padded with; ``None`` for zeros.
        """
        if self.is_valid:
            return image, VALID
        if self.is_same and value is None:
            return image, SAME
        return self.with_pad(e, image, value), VALID

    def with_pad(self, e: Emitter, image: FlatTensor, value: float | None = None) -> FlatTensor:
        """The image with all its padding."""
        pads = [(0, 0), *zip(self.begins, self.ends, strict=True), (0, 0)]
        return pad(e, image, pads, value)


def pad(
    e: Emitter,
    tensor: FlatTensor,
    pads: Sequence[tuple[int, int]],
    value: float | None = None,
) -> FlatTensor:
    """PAD with zeros, or PADV2 with a number."""
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
    """(N, L, C) as (N, 1, L, C)."""
    if tensor.rank == 4:
        return tensor
    batch, length, channels = tensor.shape
    return e.reshape(tensor, (batch, 1, length, channels))


def from_image(e: Emitter, image: FlatTensor, rank: int) -> FlatTensor:
    """Back to the rank that the model has."""
    if rank == 2:
        return image
    batch, _, length, channels = image.shape
    return e.reshape(image, (batch, length, channels))


def _spatial(rank: int) -> int:
    if rank not in (1, 2):
        raise Unsupported(f"{rank}-D: LiteRT computes 1-D and 2-D ones")
    return rank


def _kernel(e: Emitter, value: Value, perm: tuple[int, ...]) -> FlatTensor:
    """A 2-D kernel with its axes permuted; a computed one is moved when the model runs."""
    if value.data is not None:
        return e.weight(_packed(_as_2d(e.numbers(value)).transpose(perm)), value.name)
    if len(e.shape(value)) == 4:
        return e.get(value, Layout(perm))
    tensor = e.get(value, model_order(3))
    wide = e.reshape(tensor, (*tensor.shape[:2], 1, tensor.shape[2]))
    return e.transpose(wide, perm)


def _constant(value: Value | None) -> Value:
    assert value is not None
    if value.data is None:
        raise Unsupported(f"its bias {value.name} is computed by the model, not constant")
    return value


def _bias(e: Emitter, value: Value | None, size: int) -> FlatTensor:
    """The bias; zeros where there is none, which every kernel takes."""
    if value is None:
        return e.constant(np.zeros(size, np.float32), name="zeros")
    return e.get(value, model_order(1))


def _as_2d(weight: Array) -> Array:
    return weight if weight.ndim == 4 else weight[:, :, None, :]


def _dilated(weight: Array, dilations: Sequence[int]) -> Array:
    """The kernel with zeros between its taps."""
    if all(d == 1 for d in dilations):
        return weight
    spatial = [1 + (k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *spatial), weight.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return wide


def _packed(array: Array) -> Array:
    return np.ascontiguousarray(array)
