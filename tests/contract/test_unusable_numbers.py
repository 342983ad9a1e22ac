"""Batch norms and weights whose numbers are unusable (NaN, infinite): they stay as they are, and the report has the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphshrink import ModelError, shrink
from support.onnx_run import outputs_of

EPS = 1e-3
CHANNELS = 4
X = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning)
        yield


def first(number: float, rest: float = 1.0) -> Any:
    return np.array([number] + [rest] * (CHANNELS - 1), np.float32)


def arrays(**given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    found = {
        "w": rng.standard_normal((CHANNELS, 3, 3, 3)),
        "g": rng.random(CHANNELS) + 0.5,
        "b": rng.standard_normal(CHANNELS),
        "m": rng.standard_normal(CHANNELS),
        "v": rng.random(CHANNELS) + 0.5,
    }
    return {name: np.asarray(a, np.float32) for name, a in {**found, **given}.items()}


def onnx_model(nodes: list[Any], constants: dict[str, Any], x: Any = X) -> onnx.ModelProto:
    """A chain of (operator, constants, attributes) from x to y."""
    made, value = [], "x"
    for number, (op, names, attributes) in enumerate(nodes):
        result = "y" if number == len(nodes) - 1 else f"v{number}"
        made.append(
            helper.make_node(op, [value, *names], [result], name=f"{op}_{number}", **attributes)
        )
        value = result
    used = {n for _, names, _ in nodes for n in names}
    graph = helper.make_graph(
        made, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items() if n in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


NORM = ("BatchNormalization", ["g", "b", "m", "v"], {"epsilon": EPS})
CONV = ("Conv", ["w"], {"pads": [1] * 4})


class Torch(nn.Module):
    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS, EPS)
        pairs = zip(
            (self.conv.weight, self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var),
            "wgbmv",
            strict=True,
        )  # fmt: skip
        with torch.no_grad():
            for tensor, name in pairs:
                assert tensor is not None
                tensor.copy_(torch.tensor(given[name]))

    def forward(self, x: Any) -> Any:
        return torch.sigmoid(self.norm(self.conv(x)))


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "variance of -eps": ({"v": first(-EPS)}, "its variance is -0.001 somewhere, with an epsilon of 0.001"),
    "variance below -eps": ({"v": first(-1)}, "its variance is -1 somewhere"),
    "variance close to -eps": ({"v": first(np.nextafter(np.float32(-EPS), np.float32(0)))}, "its variance is -0.001"),
    "variance NaN": ({"v": first(np.nan)}, "its variance is not finite everywhere"),
    "variance infinite": ({"v": first(np.inf)}, "its variance is not finite everywhere"),
    "mean NaN": ({"m": first(np.nan)}, "its mean is not finite everywhere"),
    "scale infinite": ({"g": first(-np.inf)}, "its scale is not finite everywhere"),
    "bias NaN": ({"b": first(np.nan)}, "its bias is not finite everywhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_batch_norms_stay(name: str) -> None:
    given, reason = UNUSABLE[name]
    constants = arrays(**given)
    model = onnx_model([CONV, NORM, ("Sigmoid", [], {})], constants)
    result = shrink(model)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "BatchNormalization", "Sigmoid"]
    np.testing.assert_array_equal(outputs_of(result.model, X), outputs_of(model, X))
    found = [
        r for p in result.report.passes for r in p.refusals if r.node == "BatchNormalization_1"
    ]
    assert found
    assert found[0].reason.startswith(f"BatchNormalization is not merged: {reason}")

    module = Torch(constants).eval()
    x = torch.tensor(X)
    shrunk = shrink(module, example_inputs=(x,))
    assert isinstance(shrunk.model.norm, nn.BatchNorm2d)
    torch.testing.assert_close(shrunk.model(x), module(x), rtol=0, atol=0, equal_nan=True)
    reasons = [r.reason for p in shrunk.report.passes for r in p.refusals if r.node == "norm"]
    assert reasons[0].startswith(f"norm is not merged: {reason}")


@pytest.mark.parametrize("variance", [0.0, -1e-9, -EPS / 2, -0.98 * EPS, 1e30])
def test_usable_variances_merge(variance: float) -> None:
    """Far enough from -eps a sum in float32 and one in float64 are the same but for rounding."""
    constants = arrays(v=first(variance))
    model = onnx_model([CONV, NORM, ("Sigmoid", [], {})], constants)
    result = shrink(model)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Sigmoid"]
    np.testing.assert_allclose(outputs_of(result.model, X)[0], outputs_of(model, X)[0], atol=2e-5)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("before", [False, True])
def test_scaling_a_weight_that_is_not_finite_is_exact(number: float, before: bool) -> None:
    """Infinity and NaN are kept in a scaled weight, so that finite outputs stay finite."""
    weight = arrays()["w"][:, :, 1:2, 1:2].copy()
    weight[2, 1, 0, 0] = number
    scale = ("Mul", ["s"], {})
    constants = {
        "w": weight,
        "s": np.array([2.0, -0.5, 0.25] + [3.0] * (not before)).reshape(-1, 1, 1),
    }
    layer = ("Conv", ["w"], {})
    nodes = [scale, layer] if before else [layer, scale]
    x = np.abs(X)
    model = onnx_model([*nodes, ("Sigmoid", [], {})], constants)
    result = shrink(model)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Sigmoid"]
    np.testing.assert_allclose(outputs_of(result.model, x)[0], outputs_of(model, x)[0], atol=1e-6)


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize(
    "front",
    [("Add", ["t"], {}), ("AveragePool", [], {"kernel_shape": [2, 2]})],
    ids=["shift", "pool"],
)
def test_merges_that_add_up_weights_that_are_not_finite_are_refused(
    front: Any, number: float
) -> None:
    """``w (x + t)`` is infinite where ``w x + w t`` is infinity less infinity: NaN."""
    weight = arrays()["w"][:, :, 1:2, 1:2].copy()
    weight[2, 1, 0, 0] = number
    constants = {"w": weight, "t": np.array([-3.0, -4.0, 5.0]).reshape(3, 1, 1)}
    model = onnx_model([front, ("Conv", ["w"], {}), ("Sigmoid", [], {})], constants)
    result = shrink(model, "merge-linear{max-mac-growth=100}")
    assert [n.op_type for n in result.model.graph.node] == [front[0], "Conv", "Sigmoid"]
    (record,) = result.report.passes
    assert "the weight of Conv_1 has numbers that are not finite" in record.refusals[0].reason
    np.testing.assert_array_equal(outputs_of(result.model, X)[0], outputs_of(model, X)[0])


def test_weights_that_overflow_when_they_are_scaled_are_an_error() -> None:
    """They are computed when the model is written: an error that names them, not infinity in the file."""
    weight = np.full((CHANNELS, 3, 3, 3), 1e30, np.float32)
    constants = arrays(w=weight, g=first(1e12))
    with pytest.raises(
        ModelError, match=r"^Conv_0\.weight: its computed numbers exceed the range of f32"
    ):
        _ = shrink(onnx_model([CONV, NORM, ("Sigmoid", [], {})], constants)).model
    with pytest.raises(
        ModelError, match=r"^conv\.weight: its computed numbers exceed the range of f32"
    ):
        _ = shrink(Torch(constants).eval(), example_inputs=(torch.tensor(X),)).model
