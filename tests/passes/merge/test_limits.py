"""Limits of merging, on both sides: what is allowed just within a limit is refused just beyond it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphshrink.api import load
from graphshrink.ir import Graph, Rewriter, parse
from graphshrink.passes import Context, MergeLinear


def merged(graph: Graph, **options: float) -> tuple[bool, str]:
    """Whether two nodes became one, and the refusals."""
    rw = Rewriter(graph)
    MergeLinear(**options).run(graph, rw, Context())  # type: ignore[arg-type]
    graph.verify()
    return len(list(graph.nodes)) == 1, "; ".join(r.reason for r in rw.refusals)


def scaled(dtype: str, weight: float, factor: float) -> Graph:
    return parse(
        f"""graph g(%x: {dtype}[1, 4]) {{
          %w: {dtype}[4, 4] = splat {weight!r}
          %s: {dtype}[4] = splat {factor!r}
          %y: {dtype}[1, 4] = Linear(%x, %w)
          %z: {dtype}[1, 4] = Scale(%y, %s) {{axis=-1}}
          return a=%z
        }}"""
    )


NORMAL, LARGEST = 2.0**-14, 65504.0


@pytest.mark.parametrize(
    ("dtype", "weight", "within", "beyond", "why"),
    [
        # The smallest normal number, and the largest one below it.
        ("f16", 1.0, NORMAL, NORMAL - 2.0**-24, "underflow f16"),
        ("f16", -0.5, 2 * NORMAL, NORMAL, "underflow f16"),
        ("f16", 2.0, LARGEST / 2, LARGEST / 2 + 16, "overflow f16"),
        ("f32", 1.0, 2.0**-126, 2.0**-127, "underflow f32"),
        ("bf16", 1.0, 2.0**-126, 2.0**-127, "underflow bf16"),
        ("f32", 2.0, 2.0**126, 2.0**127, "overflow f32"),
        ("f64", 2.0, 1e300, None, ""),
        ("f64", 1.0, 1e-300, None, ""),
    ],
)
def test_ranges_of_stored_weights(
    dtype: str, weight: float, within: float, beyond: float | None, why: str
) -> None:
    assert merged(scaled(dtype, weight, within)) == (True, "")
    if beyond is not None:
        done, reason = merged(scaled(dtype, weight, beyond))
        assert not done
        assert why in reason


def kernels(first: int, second: int, channels: int = 2) -> Graph:
    return parse(
        f"""graph g(%x: f32[1, {channels}, 20, 20]) {{
          %a: f32[{channels}, {channels}, {first}, {first}] = splat 0.5
          %b: f32[{channels}, {channels}, {second}, {second}] = splat 0.5
          %y: f32[1, {channels}, {20 - first + 1}, {20 - first + 1}] = Conv(%x, %a) {{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}}
          %z: f32[1, {channels}, {22 - first - second}, {22 - first - second}] = Conv(%y, %b) {{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}}
          return a=%z
        }}"""
    )


def test_the_largest_kernel() -> None:
    for first, second in ((3, 3), (1, 5), (2, 4)):
        size = first + second - 1
        assert merged(kernels(first, second), max_kernel=size, force=True)[0]
    for first, second in ((3, 3), (2, 4)):
        size = first + second - 1
        done, reason = merged(kernels(first, second), max_kernel=size - 1, force=True)
        assert not done
        assert f"{size}x{size}, beyond max-kernel={size - 1}" in reason
    # A kernel that was that large before may stay so.
    assert merged(kernels(1, 5), max_kernel=3, force=True)[0]


def test_growth_of_arithmetic() -> None:
    """Two 3x3 kernels over 400, 324 and 256 places: 9 + 7.1 taps; one 5x5 takes 25 at 256."""
    before, after = 9 * 18**2 + 9 * 16**2, 25 * 16**2
    ratio = after / before
    assert merged(kernels(3, 3, 64), max_mac_growth=ratio * 1.01)[0]
    done, reason = merged(kernels(3, 3, 64), max_mac_growth=ratio * 0.97)
    assert not done
    assert f"would cost {ratio:.2f}x the MACs" in reason


def test_growth_of_the_model() -> None:
    """A 5x5 kernel in place of two 3x3 adds 25 - 18 numbers for each pair of channels."""
    added = (25 - 18) * 64 * 64 * 4 / 2**20
    assert merged(kernels(3, 3, 64), force=True, max_growth_mb=added * 1.001)[0]
    done, reason = merged(kernels(3, 3, 64), force=True, max_growth_mb=added * 0.999)
    assert not done
    assert "would add" in reason


@pytest.mark.parametrize(
    ("dtype", "within", "beyond"),
    [
        # Both c and 1/c are normal and finite.
        (np.float32, (1.2e-38, 8.4e37), (2e-39, 9e37)),
        (np.float16, (6.2e-5, 1.6e4), (6e-5, 1.7e4)),
    ],
)
def test_divisors_become_factors_where_their_inverse_keeps_its_digits(
    dtype: type, within: tuple[float, ...], beyond: tuple[float, ...]
) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for numbers, wanted in ((within, "Scale"), (beyond, "Div")):
        for number in numbers:
            graph = helper.make_graph(
                [helper.make_node("Div", ["x", "c"], ["y"])], "g",
                [helper.make_tensor_value_info("x", kind, [1, 4])],
                [helper.make_tensor_value_info("y", kind, [1, 4])],
                [numpy_helper.from_array(np.array(number, dtype), "c")],
            )  # fmt: skip
            (node,) = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))[
                0
            ].nodes
            assert node.op.name == wanted, number
