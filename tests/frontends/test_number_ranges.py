"""Arithmetic with numbers at the ends of an element type: what is folded computes what the host computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from graphshrink import shrink_graph
from support.fx_calls import traced

VALUES = [-3.0, -0.7, -0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 60.0]

NUMBERS = {
    torch.float16: (3e-8, 1e-5, 3e-5, 0.3, 4e4, 1e6),
    torch.bfloat16: (1e-39, 3e-39, 0.3, 3e38, 1e39),
    torch.float32: (1e-46, 1e-39, 3e-39, 1e-30, 0.3, 1e30, 3e38, 1e39),
    torch.float64: (1e-310, 1e-200, 0.3, 1e200, 1.7e308),
}
"""Numbers that overflow, have few digits, or have inverses that do; and one that is none of it."""

STEPS: dict[str, Callable[[Any, float], Any]] = {
    "mul": lambda x, c: x * c,
    "div": lambda x, c: x / c,
    "add": lambda x, c: x + c,
    "sub": lambda x, c: x - c,
    "rsub": lambda x, c: c - x,
    "torch.rsub": lambda x, c: torch.rsub(x, c),
}


class TwoSteps(nn.Module):
    def __init__(self, first: str, second: str, c: float, d: float) -> None:
        super().__init__()
        self.first, self.second, self.c, self.d = STEPS[first], STEPS[second], c, d

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x, self.c), self.d)
        return found


def agree(model: nn.Module, x: Tensor, *, export: bool = False, atol: float = 0.0) -> None:
    given: Any = torch.export.export(model, (x,)) if export else traced(model)
    extra = {} if export else {"example_inputs": (x,)}
    small, want = shrink_graph(given, **extra)(x), model(x)
    assert small.dtype is want.dtype
    step = 4 * torch.finfo(want.dtype).eps
    torch.testing.assert_close(small, want, rtol=step, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    x = torch.tensor([VALUES], dtype=dtype)
    for c, (first, second) in itertools.product(
        NUMBERS[dtype], itertools.product(("mul", "div"), repeat=2)
    ):
        agree(TwoSteps(first, second, c, c), x)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_what_is_added_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    x = torch.tensor([VALUES], dtype=dtype)
    smallest, *_, largest = NUMBERS[dtype]
    for first in ("add", "sub", "rsub", "torch.rsub"):
        # What is lost in a large sum is not lost in a merged one.
        agree(TwoSteps(first, "sub", largest, largest), x, atol=largest * torch.finfo(dtype).eps)
        agree(TwoSteps(first, "mul", smallest, 1.0), x)


@pytest.mark.parametrize("numbers", [(0.0, 2.0), (-0.0, 1.0), (float("inf"), 3.0)])
def test_division_by_zero_and_infinity(numbers: tuple[float, float]) -> None:
    for dtype in NUMBERS:
        agree(TwoSteps("div", "mul", *numbers), torch.tensor([VALUES], dtype=dtype))


class Chain(nn.Module):
    """Multiplies by numbers one after the other."""

    def __init__(self, *numbers: Any) -> None:
        super().__init__()
        self.numbers = [torch.tensor(n) if isinstance(n, list) else n for n in numbers]
        for i, n in enumerate(self.numbers):
            if isinstance(n, Tensor):
                self.register_buffer(f"n{i}", n)

    def forward(self, x: Tensor) -> Tensor:
        for i, n in enumerate(self.numbers):
            x = x * (getattr(self, f"n{i}") if isinstance(n, Tensor) else n)
        return x


@pytest.mark.parametrize(
    "numbers",
    [
        (1e30, 1e30, 1e-30, 1e-30),
        (1e-30, 1e-30, 1e30, 1e30),
        ([1e-30, 1.0], [1e-30, 1.0], [1e30, 1.0], 1e30),
        ([1.0, 1e30], 1e30, [1e-30, 1e-30], 1e-30),
        (2.0, [1e-39, 1.0], 1e38),
    ],
)
def test_what_overflows_on_the_way_is_not_merged_away(numbers: Any) -> None:
    agree(Chain(*numbers), torch.tensor([[0.5, 3.0], [100.0, -2.0]]))


def test_ordinary_numbers_merge_into_one_scale() -> None:
    x = torch.randn(2, 2)
    # One number is written in the code, a vector is held by a module.
    for numbers, kind in (
        ((0.5, 3.0, 1e-5, 2e4), "call_function"),
        (([1e-33, 1.0], [0.5, 2.0], 3.0), "call_module"),
    ):
        small = shrink_graph(traced(Chain(*numbers)), example_inputs=(x,))
        assert [n.op for n in small.graph.nodes] == ["placeholder", kind, "output"]
        torch.testing.assert_close(small(x), Chain(*numbers)(x), rtol=1e-5, atol=1e-12)
    half = torch.randn(2, 2).half()
    small = shrink_graph(traced(Chain(0.1, 3.0)), example_inputs=(half,))
    assert len(small.graph.nodes) == 3
    # The number is rounded once, with the other one: not 0.1 to float16 first.
    (number,) = list(small.graph.nodes)[1].args[1:]
    assert number == np.float16(np.float64(np.float32(0.1)) * 3)


class Whole(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


INTEGERS: dict[str, Callable[[Tensor], Tensor]] = {
    "true division": lambda x: (x / 2) * 2,
    "floor division": lambda x: (x // 2) * 2,
    "rounded": lambda x: torch.div(x, 2, rounding_mode="floor") * 2,
    "truncated": lambda x: torch.div(x, 2, rounding_mode="trunc") * 2,
    "large": lambda x: (x + 2**30) - 2**30,
    "fraction": lambda x: x * 0.5 + 0.5,
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32], ids=str)
def test_divisions_of_integers(name: str, dtype: torch.dtype) -> None:
    if name == "large" and dtype in (torch.int8, torch.float32):
        return
    x = torch.tensor([[-7, -2, -1, 0, 1, 5, 100]], dtype=dtype)
    model = Whole(INTEGERS[name]).eval()
    small, want = shrink_graph(traced(model), example_inputs=(x,))(x), model(x)
    assert small.dtype is want.dtype
    torch.testing.assert_close(small, want)


FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha": lambda x: torch.add(x, 3, alpha=2) - torch.sub(x, 1.0, alpha=0.5),
    "rsub alpha": lambda x: torch.rsub(x, 3.0, alpha=2),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5) * 2.0,
    "addcdiv": lambda x: torch.addcdiv(x, x, x + 5, value=0.5) * 2.0,
    "lerp": lambda x: torch.lerp(x, x * 2, 0.25) / 4.0,
    "pow": lambda x: ((x + 9) ** 2.0) ** 0.5,
    "base": lambda x: 1e-38**x,
}


@pytest.mark.parametrize("name", FUSED)
def test_calls_that_take_more_numbers(name: str) -> None:
    x = torch.tensor([[-1.0, 0.5, 2.0, 3.0]])
    agree(Whole(FUSED[name]).eval(), x, export="alpha" in name)
    agree(Whole(FUSED[name]).eval(), x)


@pytest.mark.parametrize(
    ("kinds", "number"),
    [
        (("Div", "Mul"), 1e-39),
        (("Div", "Mul"), 3e-39),
        (("Mul", "Div"), 3e38),
        (("Mul", "Mul"), 1e30),
        (("Mul", "Div"), 1e30),
        (("Div", "Mul"), 1e-30),
        (("Div", "Mul"), 0.0),
    ],
)
def test_onnx_has_the_same_guard(kinds: tuple[str, str], number: float) -> None:
    x = np.array([VALUES], np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(kinds[0], ["x", "c"], ["a"]),
                helper.make_node(kinds[1], ["a", "c"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)],
            [numpy_helper.from_array(np.array(number, np.float32), "c")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )

    def run(proto: onnx.ModelProto) -> Any:
        return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]

    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run(shrink_graph(model)), run(model), rtol=1e-6)
