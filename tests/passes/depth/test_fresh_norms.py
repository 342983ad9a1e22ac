"""fresh-norms: batch norms that change nothing in evaluation mode, for graphs from torch and from ONNX."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from graphshrink import PassError, Pipeline, shrink, to_torch
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import Scale, parse
from graphshrink.passes import FreshNorms
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import outputs_of

RNG = np.random.default_rng(8)


def n(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


class Folded(nn.Module):
    """A network without its norms; the last layer makes the output, and one layer has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.plain = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.rows = nn.Linear(4, 5)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.up(torch.relu(self.plain(torch.relu(self.first(x)))))
        return torch.relu(self.rows(x.mean((2, 3)))), self.head(x)


def folded(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return Folded().eval().to(dtype)


def norms(module: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in module.named_modules() if "BatchNorm" in type(m).__name__}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_from_torch(dtype: torch.dtype) -> None:
    model = folded(dtype)
    # One channel never varies, one is far from 0.
    with torch.no_grad():
        model.first.weight[0] = 0  # type: ignore[union-attr, index]
        model.first.bias[1] += 1000  # type: ignore[union-attr, index]
    x = torch.from_numpy(n(8, 3, 6, 6)).to(dtype)
    result = shrink(model, "fresh-norms{linear=true}", example_inputs=(x,), calibration=x.numpy())
    made = result.model
    assert set(norms(made)) == {"first_norm", "up_norm", "rows_norm"}
    assert made.first is model.first
    for a, b in zip(model(x), made(x), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * float(a.abs().max()))
    # In training mode on the calibration data themselves, the norms compute the same too.
    found = made.first_norm
    y = model.first(x)  # type: ignore[operator]
    assert torch.allclose(found.running_mean, y.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(
        found.running_var, y.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-12
    )
    trained = copy.deepcopy(made).train()
    assert torch.allclose(trained(x)[1], made(x)[1], rtol=0, atol=1e-3)
    trained(x)[1].sum().backward()
    assert trained.first_norm.weight.grad is not None
    reasons = {r.node: r.reason for r in result.report.passes[0].refusals}
    assert reasons == {
        "plain": "it has no bias, so that no norm was folded into it",
        "head": "it makes an output of the model",
    }
    again = shrink(made, "merge-linear,prune-dead", example_inputs=(x,)).model
    assert norms(again) == {}
    for a, b in zip(model(x), again(x), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))


def folded_file(weight: Any) -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "/body/conv/Conv"),
        helper.make_node("Relu", ["a"], ["r"], "/body/act/Relu"),
        helper.make_node("Conv", ["r", "v"], ["y"], "/head/Conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 5, 5])],
        [helper.make_tensor_value_info("y", 1, ["n", 2, 3, 3])],
        [
            numpy_helper.from_array(a, name)
            for name, a in (("w", weight), ("b", n(4)), ("v", n(2, 4, 1, 1)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_from_onnx_with_and_without_data() -> None:
    made, x = folded_file(n(4, 3, 3, 3)), n(16, 3, 5, 5)
    (want,) = outputs_of(made, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = to_torch(made, fresh_norms=True, calibration=x)
    assert set(norms(module)) == {"body.conv_norm"}
    assert not module.body.conv_norm.training
    with pytest.warns(UserWarning, match="the running statistics of 1 norm are 0 and 1"):
        plain = to_torch(made, fresh_norms=True)
    assert plain.body.conv_norm.running_mean.tolist() == [0.0] * 4
    for other in (module, plain):
        np.testing.assert_allclose(other(torch.from_numpy(x)).detach().numpy(), want, atol=1e-5)
    with pytest.warns(UserWarning, match="running statistics"):
        both = to_torch(made, fresh_norms="fresh-norms{layers=/*/Conv}")
    assert set(norms(both)) == {"body.conv_norm", "head_norm"}


def test_the_file_with_norms_and_without_them_again() -> None:
    made, x = folded_file(n(4, 3, 3, 3)), n(2, 3, 5, 5)
    graph = from_onnx(made)
    Pipeline("fresh-norms{layers=*Conv}").run(graph)
    assert sum(isinstance(node.op, Scale) for node in graph.nodes) == 2
    (want,), (got,) = outputs_of(made, x), outputs_of(to_onnx(graph), x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    Pipeline("fresh-norms").run(graph)
    assert sum(isinstance(node.op, Scale) for node in graph.nodes) == 2
    Pipeline("merge-linear,prune-dead").run(graph)
    assert [node.op.name for node in graph.nodes] == ["Conv", "Activation", "Conv"]


def test_what_gets_no_norm() -> None:
    graph = parse(
        """graph g(%x: f32[2, 3], %k: f32[4, 3]) {
  %w: f32[4, 3] = dense [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
  %b: f32[4] = dense [1, 2, 3, 4]
  %y: f32[2, 4] = Linear(%x, %k, %b)
  %u: f32[1, 2, 3] = Unsqueeze(%x) {axes=[0]}
  %z: f32[1, 2, 4] = Linear(%u, %w, %b)
  return %y, %z
}"""
    )
    (record,) = Pipeline(FreshNorms(layers="*")).run(graph)
    assert [r.reason for r in record.refusals] == [
        "its weight is not constant, or its result is",
        "it is neither a convolution nor a linear layer",
        "a batch norm takes rows, and its result has other axes",
    ]


def test_wrong_options_and_numbers() -> None:
    with pytest.raises(PassError, match="epsilon is between 0 and 1"):
        Pipeline("fresh-norms{epsilon=2}")
    with pytest.raises(PassError, match="no node is named 'stem'"):
        to_torch(folded_file(n(4, 3, 3, 3)), fresh_norms="fresh-norms{layers=stem}")
    weight = n(4, 3, 3, 3)
    weight[0, 0, 0, 0] = np.nan
    with pytest.raises(PassError, match="is not finite everywhere on the calibration data"):
        to_torch(folded_file(weight), fresh_norms=True, calibration=n(4, 3, 5, 5))
