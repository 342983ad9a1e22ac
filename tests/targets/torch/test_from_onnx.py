"""Modules made of ONNX models: names, sizes, training, copies, and models that cannot be written."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from torch import fx, nn

from graphshrink import CalibrationData, MissingExtra, ModelError, UsageError, shrink, to_torch
from graphshrink.api import load
from graphshrink.ir import parse
from support.cli import succeeds
from support.onnx_run import outputs_of

RNG = np.random.default_rng(3)


def model(text: str, opset: int = 17, **constants: Any) -> ModelProto:
    """A model from onnx's text form, with arrays as initializers."""
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "own": 1]> {text}')
    for name, array in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return made


def n(*shape: int) -> Any:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def network(dtype: int = TensorProto.FLOAT) -> ModelProto:
    """A small network as torch.onnx.export writes it before folding, with a dropout."""
    nodes = [
        ("Conv", ["in.1", "stem.weight", "stem.bias"], "a", "/stem/Conv", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"], "b", "/bn/BatchNormalization", {}),
        ("Relu", ["b"], "c", "/layers/layers.0/act/Relu", {}),
        ("Conv", ["c", "onnx::Conv_1", "onnx::Conv_2"], "d", "/layers/layers.0/conv/Conv", {"group": 2}),
        ("Relu", ["d"], "e", "/layers/layers.0/act/Relu_1", {}),
        ("Dropout", ["e", "rate"], "f", "/drop/Dropout", {}),
        ("GlobalAveragePool", ["f"], "g", "/pool/GlobalAveragePool", {}),
        ("Flatten", ["g"], "h", "/Flatten", {}),
        ("Gemm", ["h", "fc.weight", "fc.bias"], "out:0", "/fc/Gemm", {"transB": 1}),
    ]  # fmt: skip
    arrays = {
        "stem.weight": n(8, 3, 3, 3), "stem.bias": n(8), "bn.weight": 1 + n(8) / 9, "bn.bias": n(8), "bn.running_mean": n(8),
        "bn.running_var": 1 + n(8) ** 2, "onnx::Conv_1": n(8, 4, 3, 3) / 3, "onnx::Conv_2": n(8), "rate": np.float32(0.25),
        "fc.weight": n(4, 8), "fc.bias": n(4),
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [y], name, **attrs) for op, inputs, y, name, attrs in nodes],
        "net",
        [helper.make_tensor_value_info("in.1", dtype, ["batch", 3, "h", "w"])],
        [helper.make_tensor_value_info("out:0", dtype, ["batch", 4])],
        [numpy_helper.from_array(a, name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def close(made: ModelProto, module: Any, *inputs: Any, error: float = 1e-5) -> None:
    """Fail unless a module computes what onnxruntime does."""
    names = [i.name for i in made.graph.input]
    want = outputs_of(made, dict(zip(names, inputs, strict=True)))
    with torch.no_grad():
        got = module(*map(torch.from_numpy, inputs))
    for a, b in zip(want, got if isinstance(got, tuple) else (got,), strict=True):
        assert (a.shape, a.dtype) == (tuple(b.shape), b.numpy().dtype)
        largest = float(np.abs(a[np.isfinite(a)]).max(initial=1))
        np.testing.assert_allclose(b.numpy(), a, rtol=0, atol=error * largest)


def test_the_module_is_the_network_under_its_names() -> None:
    made = network()
    module = to_torch(made)
    assert isinstance(module, fx.GraphModule)
    kinds = {name: type(m).__name__ for name, m in module.named_modules() if not list(m.children())}
    assert kinds == {
        "stem": "Conv2d", "bn": "BatchNorm2d", "layers.0.act": "ReLU", "layers.0.conv": "Conv2d", "layers.0.act_1": "ReLU",
        "drop": "Dropout", "fc": "Linear",
    }  # fmt: skip
    assert module.meta == {"inputs": {"in_1": "in.1"}, "outputs": ["out:0"]}
    assert module.drop.p == 0.25
    assert not module.training
    assert all(p.requires_grad for p in module.parameters())
    assert {name for name, _ in module.named_parameters()} >= {"bn.weight", "layers.0.conv.bias"}
    assert {name for name, _ in module.named_buffers()} == {
        f"bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    for shape in ((1, 3, 8, 8), (5, 3, 9, 7)):
        close(made, module, n(*shape))


def test_it_trains() -> None:
    module = to_torch(network()).train()
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
    before = module.bn.running_mean.clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(before, module.bn.running_mean)
    module.eval()
    assert torch.equal(module(x), module(x))


def test_copies_and_programs() -> None:
    made = network()
    module, x = to_torch(made), torch.from_numpy(n(3, 3, 8, 9))
    want = module(x)
    loaded = pickle.loads(pickle.dumps(module))
    assert torch.equal(loaded(x), want)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other = to_torch(network())
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other(x), want)
    doubled = copy.deepcopy(module).double()
    assert doubled(x.double()).dtype is torch.float64
    assert torch.allclose(doubled(x.double()).float(), want, atol=1e-5)
    assert copy.deepcopy(module).to("meta")(x.to("meta")).device.type == "meta"
    auto = torch.export.Dim.AUTO
    program = torch.export.export(module, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    close(made, program.module(), n(4, 3, 11, 7))


SIZED = {
    "a product of sizes": "s = Shape(x) a = Gather<axis=0>(s, zero) b = Gather<axis=0>(s, one) c = Mul(a, b) u = Unsqueeze(c, first) "
                          "t = Concat<axis=0>(u, flat) y = Reshape(x, t)",
    "half of a size": "s = Shape<start=1, end=2>(x) h = Div(s, pair) y = Slice(x, first, h, ones)",
    "zeros as large": "s = Shape(x) f = ConstantOfShape(s) y = Add(f, x)",
    "positions": "s = Shape(x) b = Gather<axis=0>(s, one) r = Range(zero, b, one) c = Cast<to=1>(r) u = Unsqueeze(c, ones) y = Add(x, u)",
    "repeated": "s = Shape<end=1>(x) t = Concat<axis=0>(s, ones, ones) y = Tile(x, t)",
    "expanded": "s = Shape(x) z = Concat<axis=0>(pair, s) y = Expand(x, z)",
    "padded to a size": "s = Shape<start=1, end=2>(x) d = Sub(wide, s) z = Mul(d, first) p = Concat<axis=0>(z, z, z, z, d, z) y = Pad(x, p)",
    "a number of elements": "s = Size(x) u = Unsqueeze(s, first) y = Reshape(x, u)",
    "a size as a number": "s = Shape(x) c = Cast<to=1>(s) m = ReduceMax<keepdims=0>(c) y = Div(x, m)",
}  # fmt: skip


@pytest.mark.parametrize("case", SIZED)
def test_sizes_are_computed_from_the_input(case: str) -> None:
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "first": [0],
        "ones": [1],
        "flat": [-1],
        "pair": [2],
        "wide": [20],
    }
    made = model(f"g (float[a, b, 4] x) => (float[] y) {{ {SIZED[case]} }}")
    made.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in made.graph.node for name in node.input}
    for name, numbers in constants.items():
        if name in read:
            made.graph.initializer.append(
                numpy_helper.from_array(np.array(numbers, np.int64), name)
            )
    module = to_torch(made)
    for shape in ((2, 6, 4), (3, 9, 4)):
        close(made, module, n(*shape))
    assert ".tolist" not in module.code
    assert module.to("meta")(torch.empty(3, 9, 4, device="meta")).device.type == "meta"
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        to_torch(made), (torch.ones(2, 6, 4),), dynamic_shapes=({0: auto, 1: auto},)
    )
    close(made, program.module(), n(3, 9, 4))


def test_constants_are_weights_or_buffers() -> None:
    made = model(
        "g (float[2, 4] x) => (float[2, 4] y) <float rate = {0.5}> { a = Add(x, place) b = Add(a, mask) y = Mul(b, rate) }",
        place=n(2, 4),
        mask=np.float32([0, 0, 0, -np.inf]),
    )
    module = to_torch(made)
    assert [name for name, _ in module.named_parameters()] == ["place"]
    assert {name for name, _ in module.named_buffers()} == {"mask", "rate"}
    close(made, module, n(2, 4))


def test_functions_of_the_model_are_inlined_before_passes() -> None:
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) { a = Conv(x, w, b) y = own.Act(a) }
        <opset_import: ["": 17], domain: "own"> Act (v) => (r) { r = Relu(v) }"""
    )
    for name, array in (("w", n(2, 3, 1, 1)), ("b", n(2))):
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    x = n(5, 3, 4, 4)
    module = to_torch(made, fresh_norms=True, calibration=x)
    close(made, module, x)
    assert [type(m).__name__ for m in module.children()] == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_integers_several_outputs_and_odd_names() -> None:
    made = model(
        "g (int64[b, 2] class, int64[b, 2] self) => (int64[b, 2] p, int64[b, 2] q) { p = Add(class, self) q = BitwiseAnd(class, self) }",
        18,
    )
    made.graph.input[1].name = made.graph.node[0].input[1] = made.graph.node[1].input[1] = "2/x:0"
    module = to_torch(made)
    assert module.meta["inputs"] == {"class_": "class", "x_2_x_0": "2/x:0"}
    close(made, module, np.array([[1, 2]]), np.array([[3, 6]]))
    assert list(module.parameters()) == []


def test_arguments_hide_nothing_that_the_code_reads() -> None:
    given = model(
        "net (float[2] torch, float[2] device, int64[1] int) => (float[k] y) { a = Add(torch, device) b = Relu(a) y = Tile(b, int) }"
    )
    module = to_torch(given)
    inputs = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]), torch.tensor([2])
    assert torch.equal(module(*inputs), torch.tensor([1.5, 0.0, 1.5, 0.0]))
    assert list(module.meta["inputs"].values()) == ["torch", "device", "int"]


def test_ranges_count_as_onnxruntime_does() -> None:
    given = model("net (float a, float b, float d) => (float[k] y) { y = Range(a, b, d) }")
    for numbers in ((0, 0.6, 0.2), (0, 1, 0.1), (1, 0, -0.3), (1, 0, 1)):
        close(given, to_torch(given), *(np.array(x, np.float32) for x in numbers))


def test_the_error_names_every_node_that_cannot_be_written() -> None:
    made = model(
        "g (float[2, 4] x, string[2] w) => (float[2, 4] z) { a = own.Twist(x) b = own.Twist(a) c = Relu(b) l = StringConcat(w, w) z = RandomNormalLike(c) }"
    )
    for number, node in enumerate(made.graph.node):
        node.name = f"node{number}"
    with pytest.raises(ModelError) as error:
        to_torch(made)
    text = str(error.value)
    assert text.startswith("the model cannot be written as a torch module: ")
    assert "onnx:own.Twist (node0, node1: the IR has no such op)" in text
    assert "RandomNormalLike (node4" in text
    assert "torch has no element type string" in text
    assert "\n" not in text
    assert "Relu" not in text


def test_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot shrink a int"):
        to_torch(3)
    with pytest.raises(UsageError, match="calibration is for fresh_norms and for passes"):
        to_torch(network(), calibration=n(4, 3, 8, 8))
    with pytest.raises(UsageError, match="there are no samples"):
        to_torch(network(), fresh_norms=True, calibration=CalibrationData([]))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"to_torch needs torch.*\[torch\]"):
        to_torch(network())


def test_weights_that_are_no_numbers_stay_what_they_are() -> None:
    made = network()
    weight = n(4, 8)
    weight[1] = np.nan
    made.graph.initializer[-2].CopyFrom(numpy_helper.from_array(weight, "fc.weight"))
    out = to_torch(made)(torch.ones(1, 3, 8, 8))
    assert torch.isnan(out[0]).tolist() == [False, True, False, False]


def test_a_graph_from_text() -> None:
    made = model(
        "g (float[n, 3] x) => (float[n, 2] y) { a = Gemm<transB=1>(x, w) y = Relu(a) }",
        w=np.float32([[1, 2, 3], [4, 5, 6]]),
    )
    graph, _ = load(made)
    module = to_torch(parse(graph.text(full=True)))
    assert module(torch.tensor([[1.0, -1.0, 1.0]])).tolist() == [[2.0, 5.0]]
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 3)]


def test_the_target(tmp_path: Path) -> None:
    made = network()
    onnx.save(made, tmp_path / "in.onnx")
    result = shrink(tmp_path / "in.onnx", target="torch")
    assert isinstance(result.model, fx.GraphModule)
    close(made, result.model, n(2, 3, 8, 8))
    said = succeeds("shrink", str(tmp_path / "in.onnx"), str(tmp_path / "out.pt2"), "--check")
    assert "inputs whose names are no arguments: in.1 is in_1" in said
    program = torch.export.load(tmp_path / "out.pt2").module()
    for shape in ((2, 3, 8, 8), (5, 3, 9, 7)):
        close(made, program, n(*shape))


def test_a_module_as_a_program(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), torch.ones(2, 3)
    shrink(model, example_inputs=(x,)).save(tmp_path / "out.pt2")
    assert torch.equal(torch.export.load(tmp_path / "out.pt2").module()(x), model(x))


def test_a_program_of_sizes_that_do_not_run(tmp_path: Path) -> None:
    made = model(
        "g (float[a, b] x) => (float[11, c] y) { y = Reshape(x, t) }", t=np.array([11, -1])
    )
    with pytest.raises(ModelError, match="does not run on inputs of the sizes 64, 224"):
        shrink(made, []).save(tmp_path / "out.pt2")
    shrink(made, [], fixed_shapes={"x": (11, None)}).save(tmp_path / "out.pt2")


def test_a_sparse_initializer_is_the_reason_of_a_refusal() -> None:
    made = model("agraph (float[2, 2] x) => (float[2, 2] y) { y = MatMul(x, w) }")
    numbers = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [1])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(numbers, places, [2, 2]))
    with pytest.raises(ModelError, match=r"initializer \(w: it is text or a sparse tensor\)"):
        to_torch(made)
