"""Precision written into files for TensorRT: which nodes compute in float16, which do not, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from zoo.exports import example, exported

from graphshrink import ModelError, UsageError, shrink
from support.cli import fails, succeeds, write
from support.onnx_run import outputs_of

F, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
RNG = np.random.default_rng(0)


def model_of(nodes: list[Any], constants: dict[str, Any], shape: list[Any], out: list[Any],
             opset: int = 18) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info("y", F, out)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def weight(*shape: int, scale: float = 0.2) -> Any:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def lowered(model: Any, path: Path, **options: Any) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Save in low precision; the file, and the reasons of the nodes that stay in float32."""
    options = options if {"fp16", "bf16"} & set(options) else {**options, "fp16": True}
    done = shrink(model, "", target="tensorrt").save(path, **options)
    onnx.checker.check_model(path, full_check=True)
    kept = done.data["tensorrt"]["precision"]["float32_nodes"]
    return onnx.load(path), {k["node"]: k["reason"] for k in kept}


def reference(path: Path, x: Any) -> Any:
    """What onnx's reference implementation gives, which really computes in float16: onnxruntime takes casts back."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0]


def far(model: onnx.ModelProto, path: Path, x: Any, strict: bool = True) -> float:
    """How far a file is from a model, in onnxruntime and in onnx's reference implementation."""
    (want,), (got,) = outputs_of(model, x, plain=True), outputs_of(path, x, plain=True)
    found = [got, reference(path, x)] if strict else [got]
    assert all(g.dtype == want.dtype for g in found)
    return max(float(np.abs(g - want).max() / np.abs(want).max()) for g in found)


def mlp(**changes: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"], name="first"),
        helper.make_node("Relu", ["1"], ["2"], name="relu"),
        helper.make_node("MatMul", ["2", "b"], ["y"], name="second"),
    ]
    return model_of(nodes, {"a": weight(64, 64), "b": weight(64, 64), **changes}, [4, 64], [4, 64])


def test_casts_stand_at_the_rim_only(tmp_path: Path) -> None:
    model = mlp()
    written, kept = lowered(model, tmp_path / "m.onnx")
    assert [n.op_type for n in written.graph.node] == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert {p.name: p.data_type for p in written.graph.initializer} == {
        "a_fp16": F16,
        "b_fp16": F16,
    }
    assert [v.name for v in (*written.graph.input, *written.graph.output)] == ["x", "y"]
    assert kept == {}
    assert 0 < far(model, tmp_path / "m.onnx", weight(4, 64, scale=1)) < 2e-3


def test_a_weight_that_does_not_fit_keeps_its_node_in_float32(tmp_path: Path) -> None:
    large, small = weight(64, 64), weight(64, 64, scale=1e-8)
    large[0, 0] = 1e5
    for name, array, said in (
        ("a", large, "a weight reaches 1e+05, beyond the range of fp16"),
        ("b", small, "its weights are too small for fp16"),
    ):
        model = mlp(**{name: array})
        written, kept = lowered(model, tmp_path / "m.onnx")
        node = {"a": "first", "b": "second"}[name]
        assert list(kept) == [node]
        assert kept[node].startswith(said)
        types = {p.name: p.data_type for p in written.graph.initializer}
        assert types[name] == F
        assert far(model, tmp_path / "m.onnx", weight(4, 64, scale=1e-3)) < 2e-3
    # bfloat16 has the range.
    _, kept = lowered(mlp(a=large), tmp_path / "m.onnx", bf16=True)
    assert kept == {}


def test_a_weight_that_is_read_in_both_forms_is_there_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"], name="first"),
        helper.make_node("MatMul", ["1", "a"], ["y"], name="second"),
    ]
    model = model_of(nodes, {"a": weight(32, 32)}, [4, 32], [4, 32])
    written, kept = lowered(model, tmp_path / "m.onnx", keep_float32="second")
    assert kept == {"second": "asked for"}
    assert {p.name: p.data_type for p in written.graph.initializer} == {"a": F, "a_fp16": F16}
    assert far(model, tmp_path / "m.onnx", weight(4, 32, scale=1)) < 2e-3


def test_ranges_of_activations(tmp_path: Path) -> None:
    """An activation that leaves the range of float16 is seen on data, and only then."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"], name="first"),
        helper.make_node("Mul", ["1", "big"], ["2"], name="grow"),
        helper.make_node("Mul", ["2", "small"], ["3"], name="shrink"),
        helper.make_node("MatMul", ["3", "a"], ["y"], name="second"),
    ]
    constants = {"a": weight(32, 32), "big": np.float32(3e4), "small": np.float32(1e-3)}
    model, x = model_of(nodes, constants, [4, 32], [4, 32]), weight(4, 32, scale=30)
    lowered(model, tmp_path / "m.onnx")
    assert not np.isfinite(reference(tmp_path / "m.onnx", x)).all()
    np.savez(tmp_path / "data.npz", x=x)
    for data in ({"x": x}, iter([{"x": x[:4]}]), tmp_path / "data.npz"):
        written, kept = lowered(model, tmp_path / "m.onnx", ranges=data)
        assert set(kept) == {"grow", "shrink"}
        assert "2 reaches" in kept["grow"]
        assert far(model, tmp_path / "m.onnx", x) < 3e-3
    assert [n.op_type for n in written.graph.node].count("Cast") == 4


def test_ranges_that_do_not_fit(tmp_path: Path) -> None:
    x = weight(4, 64)
    nan = x.copy()
    nan[0, 0] = np.nan
    for data, said in (
        ([], "there is no data"),
        ({"z": x}, "calibration lacks input 'x'; it has z"),
        ({"x": x, "z": x}, "calibration has 'z', which is no input of the model; its inputs are x"),
        ({"x": nan}, "input 'x' contains NaN"),
        ({"x": weight(4, 63)}, "the model does not run on it"),
        (tmp_path / "none.npz", "is not an .npz file"),
        (3, "calibration must be an .npz file, a dict"),
    ):
        with pytest.raises(UsageError, match=said):
            lowered(mlp(), tmp_path / "m.onnx", ranges=data)
    assert not (tmp_path / "m.onnx").exists()
    source = write(tmp_path / "in.onnx", list(mlp().graph.node), {"x": [4, 64]}, {"y": [4, 64]},
                   list(mlp().graph.initializer))  # fmt: skip
    np.savez(tmp_path / "data.npz", x=x)
    given = (source, tmp_path / "o.onnx", "--target", "tensorrt", "--fp16", "--calibration")
    succeeds(*given, tmp_path / "data.npz")
    side = json.loads((tmp_path / "o.trt.json").read_text())
    assert side["precision"]["calibrated"]
    np.savez(tmp_path / "data.npz", x=x[:, :5])
    assert "input 'x' takes" in fails(*given, tmp_path / "data.npz")


def test_sums_stay_in_float32(tmp_path: Path) -> None:
    """A norm that is spread out would overflow: 300 squared is beyond float16."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("ReduceMean", ["h", "axes"], ["m"], name="mean"),
        helper.make_node("Sub", ["h", "m"], ["c"], name="centre"),
        helper.make_node("Pow", ["c", "two"], ["s"], name="square"),
        helper.make_node("ReduceMean", ["s", "axes"], ["v"], name="variance"),
        helper.make_node("Add", ["v", "eps"], ["e"], name="epsilon"),
        helper.make_node("Sqrt", ["e"], ["d"], name="root"),
        helper.make_node("Div", ["c", "d"], ["n"], name="divide"),
        helper.make_node("MatMul", ["n", "a"], ["y"], name="second"),
    ]
    constants = {"a": weight(64, 64), "axes": np.array([-1]), "two": np.float32(2),
                 "eps": np.float32(1e-5)}  # fmt: skip
    model, x = model_of(nodes, constants, [4, 64], [4, 64]), weight(4, 64, scale=300)
    _, kept = lowered(model, tmp_path / "m.onnx")
    assert far(model, tmp_path / "m.onnx", x) < 5e-3
    assert {n for n, r in kept.items() if "sums or powers" in r} == {"mean", "square", "variance"}
    assert {n for n, r in kept.items() if "continues from" in r} == {"epsilon", "root"}


def test_norms_that_accumulate_in_float32_do_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "s"], ["y"], name="norm"),
    ]
    model = model_of(nodes, {"a": weight(64, 64), "s": weight(64)}, [4, 64], [4, 64])
    _, kept = lowered(model, tmp_path / "m.onnx")
    assert kept == {}
    nodes[1].attribute.append(helper.make_attribute("stash_type", F16))
    model = model_of(nodes, {"a": weight(64, 64), "s": weight(64)}, [4, 64], [4, 64])
    _, kept = lowered(model, tmp_path / "m.onnx")
    assert "sums or powers" in kept["norm"]


def test_counts_and_positions_stay_in_float32(tmp_path: Path) -> None:
    """Sizes that are computed in floating point are whole numbers beyond 2048."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=F, name="to_float"),
        helper.make_node("Mul", ["f", "scale"], ["g"], name="times"),
        helper.make_node("Floor", ["g"], ["h"], name="floor"),
        helper.make_node("Cast", ["h"], ["n"], to=TensorProto.INT64, name="to_int"),
        helper.make_node("Slice", ["x", "zero", "n"], ["y"], name="slice"),
    ]
    constants = {"scale": np.float32(0.5), "zero": np.array([0])}
    model = model_of(nodes, constants, ["n"], [None])
    x = np.arange(4097 * 2, dtype=np.float32) / 8192
    _, kept = lowered(model, tmp_path / "m.onnx", profile="x:1:8194:8194")
    assert {"to_float", "times", "floor", "to_int"} <= set(kept)
    assert outputs_of(tmp_path / "m.onnx", x)[0].shape == (4097,)
    grid = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("GridSample", ["r", "g"], ["y"], name="sample"),
    ]
    g = RNG.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
    model = model_of(grid, {"g": g}, [1, 2, 8, 8], [1, 2, 4, 4])
    _, kept = lowered(model, tmp_path / "m.onnx")
    assert kept["sample"] == "positions need the precision of float32"


def test_what_has_no_form_in_low_precision(tmp_path: Path) -> None:
    """The scales of Resize are float32 in ONNX, whatever is resized."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Resize", ["c", "", "s"], ["r"], mode="nearest", name="resize"),
        helper.make_node("NonMaxSuppression", ["b", "p", "k"], ["i"], name="nms"),
        helper.make_node("Gather", ["r", "j"], ["y"], axis=1, name="gather"),
    ]
    constants = {
        "w": weight(4, 3, 1, 1), "s": np.array([1, 1, 2, 2], np.float32), "j": np.array([0, 1]),
        "b": RNG.uniform(0, 1, (1, 4, 4)).astype(np.float32),
        "p": RNG.uniform(0, 1, (1, 1, 4)).astype(np.float32), "k": np.array([2]),
    }  # fmt: skip
    model = model_of(nodes, constants, [1, 3, 4, 4], [1, 2, 8, 8])
    written, kept = lowered(model, tmp_path / "m.onnx")
    resize = next(n for n in written.graph.node if n.op_type == "Resize")
    types = {p.name: p.data_type for p in written.graph.initializer}
    assert types[resize.input[2]] == F
    assert resize.input[0].endswith("_fp16")
    assert far(model, tmp_path / "m.onnx", weight(1, 3, 4, 4, scale=1)) < 2e-3
    assert "nms" not in kept  # It computes a constant and is folded.


def test_bounds_of_a_clip_end_where_the_type_does(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("Clip", ["1", "low", "high"], ["y"], name="clip"),
    ]
    constants = {"a": weight(32, 32), "low": np.float32(0), "high": np.finfo(np.float32).max}
    model = model_of(nodes, constants, [4, 32], [4, 32])
    written, kept = lowered(model, tmp_path / "m.onnx")
    assert kept == {}
    high = next(p for p in written.graph.initializer if p.name == "high_fp16")
    assert numpy_helper.to_array(high) == np.finfo(np.float16).max
    assert far(model, tmp_path / "m.onnx", weight(4, 32, scale=1)) < 2e-3


def test_keep_float32_by_operator_name_and_pattern(tmp_path: Path) -> None:
    for given, nodes in (
        ("MatMul", {"first", "second", "relu"}),
        (["fir*"], {"first"}),
        (["relu", "second"], {"relu", "second"}),
    ):
        _, kept = lowered(mlp(), tmp_path / "m.onnx", keep_float32=given)
        assert set(kept) == nodes
    with pytest.raises(UsageError, match="no operator or node is named 'Conv'"):
        lowered(mlp(), tmp_path / "m.onnx", keep_float32="Conv")


def test_names_that_are_taken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["x_fp16"]),
        helper.make_node("MatMul", ["x_fp16", "a"], ["y"]),
    ]
    model = model_of(nodes, {"a": weight(32, 32)}, [4, 32], [4, 32])
    lowered(model, tmp_path / "m.onnx")
    assert far(model, tmp_path / "m.onnx", weight(4, 32, scale=1)) < 2e-3


def test_bfloat16(tmp_path: Path) -> None:
    """onnxruntime has no kernels for it on a CPU: onnx's reference implementation is asked."""
    model = mlp()
    written, kept = lowered(model, tmp_path / "m.onnx", bf16=True)
    assert {p.data_type for p in written.graph.initializer} == {BF16}
    assert kept == {}
    x = weight(4, 64, scale=1)
    (got,) = ReferenceEvaluator(written).run(None, {"x": x})
    (want,) = outputs_of(model, x)
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 2e-2


def test_convolutions_have_bfloat16_from_opset_22_on(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    for opset, reasons in ((18, {"conv": "ONNX has no bf16 form of it before opset 22"}), (22, {})):
        model = model_of(nodes, {"w": weight(4, 3, 3, 3)}, [1, 3, 8, 8], [1, 4, 6, 6], opset)
        _, kept = lowered(model, tmp_path / "m.onnx", bf16=True)
        assert kept == reasons


# Quantized models.


def quantized(opset: int = 21) -> onnx.ModelProto:
    """Two quantized convolutions and a head that is not; the second has its bias as int32."""
    scale = np.float32(0.02)
    weights = {n: RNG.integers(-127, 128, s).astype(np.int8) for n, s in
               (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 1, 1)))}  # fmt: skip
    constants = {
        "s": scale, "z": np.int8(0), "ws": np.float32(0.002), **weights,
        "b2": RNG.integers(-1000, 1000, 8).astype(np.int32), "bs": np.float32(0.02 * 0.002),
        "h": weight(8, 4),
    }  # fmt: skip

    def both(source: str, target: str) -> list[Any]:
        return [
            helper.make_node(
                "QuantizeLinear", [source, "s", "z"], [f"{target}_q"], name=f"q_{target}"
            ),
            helper.make_node(
                "DequantizeLinear", [f"{target}_q", "s", "z"], [target], name=f"dq_{target}"
            ),
        ]

    nodes = [
        *both("x", "a"),
        helper.make_node("DequantizeLinear", ["w1", "ws", "z"], ["w1_d"], name="dq_w1"),
        helper.make_node("Conv", ["a", "w1_d"], ["c"], name="conv1"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        *both("r", "d"),
        helper.make_node("DequantizeLinear", ["w2", "ws", "z"], ["w2_d"], name="dq_w2"),
        helper.make_node("DequantizeLinear", ["b2", "bs"], ["b2_d"], name="dq_b2"),
        helper.make_node("Conv", ["d", "w2_d", "b2_d"], ["e"], name="conv2"),
        helper.make_node("GlobalAveragePool", ["e"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "h"], ["y"], name="head"),
    ]
    return model_of(nodes, constants, [1, 3, 8, 8], [1, 4], opset)


def test_quantization_is_kept_and_biases_become_numbers(tmp_path: Path) -> None:
    model = quantized()
    done = shrink(model, "", target="tensorrt").save(tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx")
    ops = [n.op_type for n in written.graph.node]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (2, 4)
    assert TensorProto.INT32 not in {p.data_type for p in written.graph.initializer}
    assert TensorProto.INT8 in {p.data_type for p in written.graph.initializer}
    assert far(model, tmp_path / "m.onnx", weight(1, 3, 8, 8, scale=1)) < 1e-5
    assert done.data["tensorrt"]["precision"]["quantized"]


def test_quantized_models_in_float16(tmp_path: Path) -> None:
    """Nothing comes between DequantizeLinear and what it feeds: TensorRT fuses the two."""
    model = quantized()
    written, kept = lowered(model, tmp_path / "m.onnx")
    assert kept == {}
    made = {name: n for n in written.graph.node for name in n.output}
    for node in written.graph.node:
        if node.op_type == "Conv":
            assert [made[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
    # A step of the quantization may fall on the other side: the scale is rounded.
    assert far(model, tmp_path / "m.onnx", weight(1, 3, 8, 8, scale=1)) < 2e-2
    with pytest.raises(
        ModelError, match="no quantization in fp16 before opset 19, the model has 18"
    ):
        lowered(quantized(18), tmp_path / "m.onnx")


def test_the_pattern_of_quantized_weights(tmp_path: Path) -> None:
    model = quantized()
    for proto in model.graph.initializer:
        if proto.name == "w2":
            array = numpy_helper.to_array(proto).copy()
            array[:, ::2] = 0
            proto.CopyFrom(numpy_helper.from_array(array, "w2"))
    done = shrink(model, "", target="tensorrt").save(tmp_path / "m.onnx")
    layers = {y["nodes"][0]: y for y in done.data["tensorrt"]["sparsity"]["layers"]}
    assert (layers["conv2"]["valid"], layers["conv2"]["eligible"]) == (True, True)
    assert (layers["conv1"]["valid"], layers["conv1"]["eligible"]) == (False, False)
    assert "--sparsity=enable" in done.data["tensorrt"]["trtexec"]


def test_a_model_that_onnxruntime_quantized(onnx_files: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    # Its quantizer wants weights and biases as initializers.
    source = tmp_path / "in.onnx"
    shrink(exported("resnet18", onnx_files)).save(source)
    image = example("resnet18").numpy()
    feeds = [{onnx.load(source).graph.input[0].name: image}]

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return feeds.pop() if feeds else None

    reader = Reader()
    quantize_static(
        source, tmp_path / "q.onnx", reader, quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )  # fmt: skip
    before = onnx.load(tmp_path / "q.onnx")
    done = shrink(tmp_path / "q.onnx", "", target="tensorrt").save(tmp_path / "m.onnx")
    after = onnx.load(tmp_path / "m.onnx")
    assert done.data["tensorrt"]["precision"]["quantized"]
    count = [sum(n.op_type == "QuantizeLinear" for n in m.graph.node) for m in (before, after)]
    assert count[0] == count[1] > 10
    assert far(before, tmp_path / "m.onnx", image, strict=False) < 1e-5
    assert TensorProto.INT32 in {p.data_type for p in before.graph.initializer}
    assert TensorProto.INT32 not in {p.data_type for p in after.graph.initializer}


SUMS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "InstanceNormalization": ({}, (np.ones(4, np.float32), np.zeros(4, np.float32))),
    "LpNormalization": ({"axis": 1}, ()),
    "LRN": ({"size": 3}, ()),
    "LogSoftmax": ({"axis": 1}, ()),
    "MeanVarianceNormalization": ({"axes": [0, 2, 3]}, ()),
    "CumSum": ({}, (np.array(1, np.int64),)),
    "Exp": ({}, ()),
    "Log": ({}, ()),
    "Pow": ({}, (np.array(2, np.float32),)),
    **{f"Reduce{kind}": ({}, (np.array([1, 2], np.int64),))
       for kind in ("L1", "L2", "LogSum", "LogSumExp", "Mean", "Prod", "Sum", "SumSquare")},
}  # fmt: skip


@pytest.mark.parametrize("op", SUMS)
def test_what_adds_up_stays_in_float32(op: str, tmp_path: Path) -> None:
    """An image whose numbers, or their squares, sum to more than float16 holds."""
    attributes, arrays = SUMS[op]
    names = [f"c{i}" for i in range(len(arrays))]
    constants = {
        "k": np.full((4, 4, 1, 1), 0.25, np.float32),
        **dict(zip(names, arrays, strict=True)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["1"], name="conv"),
        helper.make_node(op, ["1", *names], ["y"], name="sum", **attributes),
    ]
    out = [1, 1, 1, 8] if op.startswith("Reduce") else [1, 4, 8, 8]
    model = model_of(nodes, constants, [1, 4, 8, 8], out)
    written, kept = lowered(model, tmp_path / "m.onnx")
    assert "conv" not in kept
    assert kept["sum"].startswith("its sums or powers")
    node = next(n for n in written.graph.node if n.name == "sum")
    types = {n: i.data_type for i in written.graph.initializer for n in [i.name]}
    assert all(types.get(n) != F16 for n in node.input)
