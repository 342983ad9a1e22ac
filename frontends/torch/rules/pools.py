"""torch's pools."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .... import ir
from ...lowering import Lowered, Path, Steps
from ...lowering.base import first_of_several
from ...lowering.pools import average_pool, global_max
from ...support import LeftAlone
from ..call import Call, Followed, ints
from ..registry import reads_module, reads_pieces, reads_ranks


@reads_ranks("avg_pool{}d", makes=ir.AveragePool, note="without divisor_override")
def _average(call: Call, n: int) -> Lowered | None:
    """``(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)``."""
    if call.get(6, "divisor_override") is not None:
        return None
    kernel = call.ints(1, "kernel_size", None, n)
    stride = call.get(2, "stride")
    return average_pool(
        call.value(0),
        kernel,
        kernel if stride in (None, [], ()) else ints(stride, n),
        call.ints(3, "padding", 0, n) * 2,
        (1,) * n,
        ceil_mode=bool(call.get(4, "ceil_mode", False)),
        counts_padding=bool(call.get(5, "count_include_pad", True)),
    )


_WINDOW = "kernel_size stride padding ceil_mode"
reads_module(nn.AvgPool1d, call="avg_pool1d", fields=f"{_WINDOW} count_include_pad")
reads_module(
    nn.AvgPool2d, call="avg_pool2d", fields=f"{_WINDOW} count_include_pad divisor_override"
)
reads_module(
    nn.AvgPool3d, call="avg_pool3d", fields=f"{_WINDOW} count_include_pad divisor_override"
)


@reads_ranks("max_pool{}d", makes=ir.MaxPool, note="without indices")
def _max(call: Call, n: int) -> Lowered | None:
    """``(x, kernel, stride, padding, dilation, ceil_mode, return_indices)``."""
    if call.get(6, "return_indices", False):
        return None
    kernel = call.ints(1, "kernel_size", None, n)
    stride = call.get(2, "stride")
    return ir.MaxPool(
        kernel if stride in (None, [], ()) else ints(stride, n),
        call.ints(3, "padding", 0, n) * 2,
        call.ints(4, "dilation", 1, n),
        kernel,
        bool(call.get(5, "ceil_mode", False)),
    ), [call.value(0)]


reads_module(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    call="max_pool{}d", fields=f"{_WINDOW} dilation return_indices",
)  # fmt: skip


@reads_pieces(
    "max_pool2d_with_indices", "max_pool3d_with_indices", makes=ir.MaxPool, note="without indices"
)
def _max_with_indices(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, kernel, stride, padding, dilation, ceil_mode)`` gives ``(y, indices)``."""
    return first_of_several(_max(call, 2 if "2d" in call.name else 3))


def _windows(call: Call, n: int) -> tuple[int, ...] | None:
    """The kernel that divides the input into windows, which is the stride too; ``None`` where the result has size 1.

    Raises:
        LeftAlone: If the windows are not all alike, or sizes are not known.
    """
    x, size = call.value(0), call.get(1, "output_size")
    wanted = [*size] if isinstance(size, (list, tuple)) else [size] * n
    if x.type.rank not in (None, n + 2):
        raise LeftAlone("its input has no batch axis")
    if ints([1 if d is None else d for d in wanted], n) == (1,) * n and None not in wanted:
        return None
    sizes: list[tuple[int, int]] = []
    for i, goal in enumerate(wanted):
        size = x.type.dim(2 + i) if x.type.rank else None
        if not isinstance(size, int):
            raise LeftAlone("the size of its input is not known")
        sizes.append((size, size if goal is None else goal))
    if any(not w or h % w for h, w in sizes):
        have, into = ("x".join(str(d[i]) for d in sizes) for i in (0, 1))
        raise LeftAlone(f"its input of {have} does not divide into {into} windows of one size")
    windows = tuple(h // w for h, w in sizes)
    if call.example:  # Copied, the call has other windows for inputs of other sizes.
        call.baked += [
            Followed(w) for w, goal in zip(windows, wanted, strict=True) if goal is not None
        ]
    return windows


@reads_ranks(
    "adaptive_avg_pool{}d",
    makes=[ir.GlobalAveragePool, ir.AveragePool],
    note="to sizes that divide the input",
)
def _adaptive_average(call: Call, n: int) -> Lowered | None:
    """``(x, output_size)``."""
    x, kernel = call.value(0), _windows(call, n)
    if kernel is None:
        return ir.GlobalAveragePool(n if x.type.rank is None else None), [x]
    return average_pool(x, kernel, kernel, (0,) * (2 * n), (1,) * n)


reads_module(
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    call="adaptive_avg_pool{}d", fields="output_size",
)  # fmt: skip


@reads_ranks(
    "adaptive_max_pool{}d",
    makes=[(ir.Reduce, "max"), ir.MaxPool],
    note="to sizes that divide the input, without indices",
)
def _adaptive_max(call: Call, n: int) -> Lowered | None:
    """``(x, output_size, return_indices)``."""
    if call.get(2, "return_indices", False):
        return None
    x, kernel = call.value(0), _windows(call, n)
    if kernel is None:
        return global_max(x)
    return ir.MaxPool(kernel, (0,) * (2 * n), (1,) * n, kernel), [x]


reads_module(
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    call="adaptive_max_pool{}d", fields="output_size return_indices",
)  # fmt: skip


@reads_pieces(
    "aten.adaptive_max_pool1d",
    "aten.adaptive_max_pool2d",
    "aten.adaptive_max_pool3d",
    makes=[(ir.Reduce, "max"), ir.MaxPool],
    note="to sizes that divide the input, without indices",
)
def _aten_adaptive_max(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, output_size)`` gives ``(y, indices)``."""
    return first_of_several(_adaptive_max(call.again(*call.args[:2]), int(call.name[-2])))
