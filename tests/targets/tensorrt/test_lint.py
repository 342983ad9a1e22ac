"""What TensorRT would refuse is refused, in one error; what can be helped is helped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink import ModelError, shrink
from support.cli import fails
from support.onnx_run import outputs_of

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Value = tuple[str, int, list[Any]]


def model_of(
    nodes: list[Any],
    inputs: list[Value],
    outputs: list[Value],
    constants: dict[str, Any] | None = None,
    opset: int = 18,
    domains: tuple[str, ...] = (),
    functions: tuple[Any, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*v) for v in inputs],
        [helper.make_tensor_value_info(*v) for v in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def refusal(model: onnx.ModelProto, tmp_path: Path, **options: Any) -> str:
    out = tmp_path / "out.onnx"
    with pytest.raises(ModelError) as caught:
        shrink(model, "", target="tensorrt").save(out, **options)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def same(
    model: onnx.ModelProto, tmp_path: Path, feeds: dict[str, Any], **options: Any
) -> onnx.ModelProto:
    """Save, compare in onnxruntime, and give back what was written."""
    shrink(model, "", target="tensorrt").save(tmp_path / "out.onnx", **options)
    pairs = zip(
        outputs_of(model, feeds, plain=True),
        outputs_of(tmp_path / "out.onnx", feeds, plain=True),
        strict=True,
    )
    for want, got in pairs:
        np.testing.assert_allclose(
            got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max(initial=0))
        )
    written: onnx.ModelProto = onnx.load(tmp_path / "out.onnx")
    return written


def test_one_error_lists_everything(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unique", ["x"], ["a"], name="unique_1"),
        helper.make_node("BitwiseAnd", ["i", "i"], ["b"], name="and_1"),
        helper.make_node("BitwiseAnd", ["b", "i"], ["c"], name="and_2"),
        helper.make_node("Det", ["m"], ["d"], name="det"),
        helper.make_node("MyOp", ["d"], ["e"], name="mine", domain="my.domain"),
        helper.make_node("CumSum", ["i", "axis"], ["f"], name="sum"),
    ]
    model = model_of(
        nodes,
        [("x", F, [4]), ("i", I64, [4]), ("m", F, [2, 2])],
        [("a", F, ["n"]), ("c", I64, [4]), ("e", F, []), ("f", I64, [4])],
        {"axis": np.array(0)},
        domains=("my.domain",),
    )
    said = refusal(model, tmp_path)
    assert said.startswith("TensorRT 11.1 does not take this model: ")
    for part in (
        "Unique (unique_1) is not supported (use TopK)",
        "BitwiseAnd (and_1, and_2) is not supported (use And on booleans)",
        "Det (det) is not supported;",
        "my.domain::MyOp (mine) is not an operator of ONNX",
        "CumSum (sum) does not support INT64 (only BF16, FP16, FP32)",
        "--allow-op NAME",
    ):
        assert part in said
    onnx.save(model, tmp_path / "in.onnx")
    line = fails(tmp_path / "in.onnx", tmp_path / "o.onnx", "--target", "tensorrt", "--passes", "")
    assert "and_1, and_2" in line
    shrink(model, "", target="tensorrt").save(
        tmp_path / "out.onnx", allow_op=["Unique", "BitwiseAnd", "Det", "MyOp", "CumSum"]
    )


def test_versions_differ(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("HannWindow", ["n"], ["y"], name="window"),
         helper.make_node("Mul", ["x", "y"], ["z"])],
        [("x", F, [8]), ("n", I64, [])], [("z", F, [8])],
    )  # fmt: skip
    # Where it is missing, it is spelled out by what ONNX says it is made of.
    x = np.arange(8, dtype=np.float32)
    feeds = {"x": x, "n": np.array(8)}
    old = same(model, tmp_path, feeds, trt_version="10.1")
    assert {"Cos", "Range"} <= {n.op_type for n in old.graph.node}
    new = same(model, tmp_path, feeds, trt_version="10.16")
    assert {n.op_type for n in new.graph.node} == {"HannWindow", "Mul"}
    stft = [helper.make_node("STFT", ["x", "step", "w"], ["y"], name="stft")]
    constants = {"step": np.array(4), "w": np.ones(4, np.float32)}
    model = model_of(stft, [("x", F, [1, 16, 1])], [("y", F, [1, None, None, 2])], constants)
    (tmp_path / "out.onnx").unlink()
    (tmp_path / "out.trt.json").unlink()
    said = refusal(model, tmp_path, trt_version="10.1")
    assert "TensorRT 10.1 does not take this model: STFT (stft) is not supported" in said
    shrink(model, "", target="tensorrt").save(tmp_path / "out.onnx", trt_version="10.16")


CASES: dict[str, tuple[list[Any], list[Value], list[Value], dict[str, Any], str]] = {
    "dilated pool": (
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])],
        [("x", F, [1, 2, 8, 8])], [("y", F, [1, 2, 6, 6])], {}, "has dilations",
    ),
    "indices": (
        [helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])],
        [("x", F, [1, 2, 8, 8])], [("y", F, [1, 2, 7, 7]), ("i", I64, [1, 2, 7, 7])], {}, "has the output Indices",
    ),
    "norm with statistics": (
        [helper.make_node("LayerNormalization", ["x", "s"], ["y", "m"])],
        [("x", F, [2, 4])], [("y", F, [2, 4]), ("m", F, [2, 1])], {"s": np.ones(4, np.float32)},
        "has more than one output",
    ),
    "computed axes": (
        [helper.make_node("ReduceSum", ["x", "a"], ["y"])],
        [("x", F, [2, 4]), ("a", I64, [1])], [("y", F, [None, None])], {}, "takes computed axes",
    ),
    "free axis": (
        [helper.make_node("Hardmax", ["x"], ["y"], axis=0)],
        [("x", F, ["n", 4])], [("y", F, ["n", 4])], {}, "axis of free size",
    ),
    "asymmetric quantization": (
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        [("x", F, [4])], [("y", F, [4])], {"s": np.float32(0.1), "z": np.int8(3)},
        "zero point other than 0: quantize symmetrically",
    ),
    "quantization to uint8": (
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        [("x", F, [4])], [("y", F, [4])], {"s": np.float32(0.1), "z": np.uint8(0)},
        "DequantizeLinear (y) does not support UINT8 (only FP4, FP8, INT4, INT8)",
    ),
    "training dropout": (
        [helper.make_node("Dropout", ["x", "r", "t"], ["y"])],
        [("x", F, [4])], [("y", F, [4])], {"r": np.float32(0.5), "t": np.array(True)}, "is in training mode",
    ),
    "free eye": (
        [helper.make_node("EyeLike", ["x"], ["y"])],
        [("x", F, ["n", 4])], [("y", F, ["n", 4])], {}, "takes an input of free size",
    ),
    "grid in 3-D": (
        [helper.make_node("GridSample", ["x", "g"], ["y"], mode="linear")],
        [("x", F, [1, 1, 2, 2, 2]), ("g", F, [1, 2, 2, 2, 3])], [("y", F, [1, 1, 2, 2, 2])], {}, "rank 5, not 4",
    ),
    "resize by cubic": (
        [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic")],
        [("x", F, [1, 1, 4, 4])], [("y", F, [1, 1, 8, 8])], {"s": np.array([1, 1, 2, 2], np.float32)},
        "mode 'cubic': use one of linear, nearest",
    ),
    "resize with antialias": (
        [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)],
        [("x", F, [1, 1, 8, 8])], [("y", F, [1, 1, 4, 4])], {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
        "has antialias",
    ),
    "too many of the largest": (
        [helper.make_node("TopK", ["x", "k"], ["y", "i"])],
        [("x", F, [5000])], [("y", F, [4000])], {"k": np.array([4000])}, "asks for 4000 elements; it must be fewer than 3840",
    ),
    "unsorted": (
        [helper.make_node("TopK", ["x", "k"], ["y", "i"], sorted=0)],
        [("x", F, [50])], [("y", F, [4])], {"k": np.array([4])}, "asks for unsorted results",
    ),
    "reducing scatter": (
        [helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction="add")],
        [("x", F, [4]), ("u", F, [1])], [("y", F, [4])], {"i": np.array([[1]])}, "has reduction 'add'",
    ),
    "coupled gates": (
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2, input_forget=1)],
        [("x", F, [3, 1, 4])], [("y", F, [3, 1, 1, 2])],
        {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}, "couples input and forget gates",
    ),
    "batch first": (
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2, layout=1)],
        [("x", F, [1, 3, 4])], [("y", F, [1, 3, 1, 2])],
        {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}, "has layout 1",
    ),
    "other activations backward": (
        [helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=2, direction="bidirectional",
                          activations=["Tanh", "Relu"])],
        [("x", F, [3, 1, 4])], [("y", F, [3, 2, 1, 2])],
        {"w": np.ones((2, 2, 4), np.float32), "r": np.ones((2, 2, 2), np.float32)}, "has other activations backward",
    ),
    "uneven pads": (
        [helper.make_node("DeformConv", ["x", "w", "o"], ["y"], pads=[1, 0, 0, 0])],
        [("x", F, [1, 1, 4, 4]), ("o", F, [1, 8, 4, 3])], [("y", F, [1, 1, 4, 3])],
        {"w": np.ones((1, 1, 2, 2), np.float32)}, "pads the two ends of an axis differently",
    ),
    "strings": (
        [helper.make_node("Constant", [], ["c"], value_string="a"),
         helper.make_node("StringConcat", ["s", "c"], ["y"])],
        [("s", TensorProto.STRING, [2])], [("y", TensorProto.STRING, [2])], {}, "StringConcat (y) is not supported",
    ),
    "computed depth": (
        [helper.make_node("OneHot", ["i", "d", "v"], ["y"])],
        [("i", I64, [2]), ("d", I64, [1])], [("y", F, [2, None])], {"v": np.array([0, 1], np.float32)},
        "takes computed depths",
    ),
    "floats of eight bytes": (
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT16)],
        [("x", F, [2])], [("y", TensorProto.INT16, [2])], {}, "does not support i16",
    ),
    "bools in a sum": (
        [helper.make_node("Where", ["c", "c", "c"], ["w"]), helper.make_node("Pad", ["w", "p"], ["y"])],
        [("c", BOOL, [2])], [("y", BOOL, [4])], {"p": np.array([1, 1])}, "Pad (y) does not support BOOL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_restrictions(name: str, tmp_path: Path) -> None:
    nodes, inputs, outputs, constants, said = CASES[name]
    opset = (
        20 if name == "grid in 3-D" or name == "strings" else 19 if "Deform" in str(nodes) else 18
    )
    model = model_of(nodes, inputs, outputs, constants, opset)
    onnx.checker.check_model(model, full_check=True)
    assert said in refusal(model, tmp_path, profile=["x:4x4"] if "n" in str(inputs[0][2]) else [])


def test_attention_of_opset_23(tmp_path: Path) -> None:
    def model(rank: int, **attributes: Any) -> onnx.ModelProto:
        shape = [1, 2, 4, 8] if rank == 4 else [1, 4, 16]
        heads = {} if rank == 4 else {"q_num_heads": 2, "kv_num_heads": 2}
        node = helper.make_node(
            "Attention", ["q", "k", "v"], ["y"], name="attention", **heads, **attributes
        )
        return model_of([node], [(n, F, shape) for n in "qkv"], [("y", F, shape)], opset=23)

    assert "Q of rank 3, not 4: split the heads" in refusal(model(3), tmp_path)
    assert "has softcap" in refusal(model(4, softcap=2.0), tmp_path)
    shrink(model(4), "", target="tensorrt").save(tmp_path / "out.onnx")
    (tmp_path / "out.onnx").unlink()
    (tmp_path / "out.trt.json").unlink()
    # 10.1 is too old for the opset.
    assert "takes opsets 9 to 20, the model has 23" in refusal(
        model(4), tmp_path, trt_version="10.1"
    )


def test_operators_that_onnx_defines_by_others_are_spelled_out(tmp_path: Path) -> None:
    """CenterCropPad is missing in TensorRT; ONNX says how it is made of what is not."""
    model = model_of(
        [helper.make_node("CenterCropPad", ["x", "s"], ["y"], axes=[1])],
        [("x", F, [2, 6])], [("y", F, [2, 4])], {"s": np.array([4])},
    )  # fmt: skip
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    written = same(model, tmp_path, {"x": x})
    found = {n.op_type for n in written.graph.node}
    assert "Slice" in found
    assert "CenterCropPad" not in found


def test_they_are_spelled_out_beside_weights_that_passes_make(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((16, 3, 3, 3)), **{n: rng.uniform(1, 2, 16) for n in "gbmv"}}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["d"]),
        helper.make_node("CenterCropPad", ["d", "s"], ["y"], axes=[2, 3]),
    ]
    constants = {n: a.astype(np.float32) for n, a in arrays.items()}
    model = model_of(
        nodes,
        [("x", F, [1, 3, 8, 8])],
        [("y", F, [1, 16, 4, 4])],
        {**constants, "s": np.array([4, 4])},
    )
    shrink(model, target="tensorrt").save(tmp_path / "out.onnx")
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    (want,), (got,) = outputs_of(model, x), outputs_of(tmp_path / "out.onnx", x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    ops = {n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node}
    assert not ops & {"CenterCropPad", "BatchNormalization"}


def test_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "my.domain", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model = model_of(
        [helper.make_node("Twice", ["x"], ["y"], domain="my.domain")],
        [("x", F, [3])], [("y", F, [3])], domains=("my.domain",), functions=(function,),
    )  # fmt: skip
    written = same(model, tmp_path, {"x": np.ones(3, np.float32)})
    assert [n.op_type for n in written.graph.node] == ["Add"]
    assert not written.functions


def body(name: str, nodes: list[Any], inputs: list[Value], outputs: list[Value]) -> Any:
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*v) for v in inputs],
        [helper.make_tensor_value_info(*v) for v in outputs],
    )


def branches(condition: str, second: Any = None) -> Any:
    first = body("then", [helper.make_node("Mul", ["h", "h"], ["r"])], [], [("r", F, [3])])
    other = second or body("else", [helper.make_node("Neg", ["h"], ["r"])], [], [("r", F, [3])])
    return helper.make_node(
        "If", [condition], ["y"], name="if", then_branch=first, else_branch=other
    )


@pytest.mark.parametrize("precision", [{}, {"fp16": True}])
def test_branches_get_names_of_their_own(tmp_path: Path, precision: Any) -> None:
    """TensorRT wants the results of the two branches to be called differently."""
    nodes = [helper.make_node("Add", ["x", "one"], ["h"]), branches("c")]
    model = model_of(
        nodes, [("x", F, [3]), ("c", BOOL, [])], [("y", F, [3])], {"one": np.ones(3, np.float32)}
    )
    for condition in (True, False):
        feeds = {"x": np.array([1, 2, 3], np.float32), "c": np.array(condition)}
        written = same(model, tmp_path, feeds, **precision)
    node = next(n for n in written.graph.node if n.op_type == "If")
    names = {a.name: {v.name for v in a.g.output} for a in node.attribute}
    assert not names["then_branch"] & names["else_branch"]


def test_a_decided_branch_is_inlined(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["h"]), branches("c")]
    model = model_of(nodes, [("x", F, [3])], [("y", F, [3])], {"c": np.array(False)})
    written = same(model, tmp_path, {"x": np.array([1, 2, 3], np.float32)})
    assert "If" not in {n.op_type for n in written.graph.node}


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("nested", [False, True])
def test_a_constant_that_is_an_output_keeps_its_name(
    condition: bool, nested: bool, tmp_path: Path
) -> None:
    """Both branches read it, and the one that is taken is inlined."""
    parts = [
        body(name, [helper.make_node(kind, ["h", "k"], ["r"])], [], [("r", F, [3])])
        for name, kind in (("then", "Mul"), ("else", "Sub"))
    ]
    decided = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=parts[0], else_branch=parts[1]
    )
    nodes = [helper.make_node("Neg", ["x"], ["h"]), decided]
    inputs = [("x", F, [3])]
    if nested:
        inner = helper.make_node(
            "If", ["c"], ["q"], name="if", then_branch=parts[0], else_branch=parts[1]
        )
        outer = [body("then", [inner], [], [("q", F, [3])]), parts[1]]
        outer[1].name = "other"
        nodes[1] = helper.make_node(
            "If", ["d"], ["y"], name="outer", then_branch=outer[0], else_branch=outer[1]
        )
        inputs.append(("d", BOOL, []))
    weights = {"k": np.array([2, 3, 4], np.float32), "c": np.array(condition)}
    model = model_of(nodes, inputs, [("k", F, [3]), ("y", F, [3])], weights)
    feeds = {"x": np.array([1, 2, 3], np.float32)}
    written = same(model, tmp_path, {**feeds, "d": np.array(True)} if nested else feeds)
    assert [v.name for v in written.graph.output] == ["k", "y"]


def test_what_is_wrong_inside_bodies_is_seen(tmp_path: Path) -> None:
    bad = body(
        "else", [helper.make_node("Unique", ["h"], ["r"], name="inner")], [], [("r", F, [3])]
    )
    nodes = [helper.make_node("Identity", ["x"], ["h"]), branches("c", bad)]
    model = model_of(nodes, [("x", F, [3]), ("c", BOOL, [])], [("y", F, [3])])
    assert "Unique (inner) is not supported" in refusal(model, tmp_path)
    flat = body(
        "else", [helper.make_node("ReduceSum", ["h"], ["r"], keepdims=0)], [], [("r", F, [])]
    )
    nodes = [helper.make_node("Identity", ["x"], ["h"]), branches("c", flat)]
    model = model_of(nodes, [("x", F, [3]), ("c", BOOL, [])], [("y", F, None)])
    assert "has an output of rank 1 in one branch and of rank 0 in the other" in refusal(
        model, tmp_path
    )


def test_loops_pass_and_keep_their_numbers(tmp_path: Path) -> None:
    step = body(
        "step",
        [helper.make_node("Mul", ["s", "x"], ["t"]), helper.make_node("Identity", ["go"], ["on"])],
        [("i", I64, []), ("go", BOOL, []), ("s", F, [3])],
        [("on", BOOL, []), ("t", F, [3])],
    )
    nodes = [helper.make_node("Loop", ["n", "", "one"], ["y"], name="loop", body=step)]
    model = model_of(
        nodes, [("x", F, [3])], [("y", F, [3])], {"n": np.array(3), "one": np.ones(3, np.float32)}
    )
    x = np.array([1, 2, 3], np.float32)
    written = same(model, tmp_path, {"x": x})
    assert [n.op_type for n in written.graph.node] == ["Loop"]
    same(model, tmp_path, {"x": x}, fp16=True)


def test_shapes_are_folded(tmp_path: Path) -> None:
    """What exporters compute from shapes becomes constant, so that axes and sizes are."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["m"]),
        helper.make_node("Concat", ["m", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axis": np.array([0]), "minus": np.array([-1])}
    model = model_of(nodes, [("x", F, [2, 3, 4])], [("y", F, [2, 12])], constants)
    written = same(model, tmp_path, {"x": np.ones((2, 3, 4), np.float32)})
    assert [n.op_type for n in written.graph.node] == ["Reshape"]
    assert [p.name for p in written.graph.initializer] == [written.graph.node[0].input[1]]


@pytest.mark.parametrize(
    "bounds", [{"start": 0, "end": 1}, {"start": -2}, {"end": -1}, {"start": 7}]
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_shape_of_some_axes_is_not_folded_as_a_whole_one(
    tmp_path: Path, bounds: dict[str, int], inside: bool
) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"], **bounds)]
    outputs: list[Value] = [("y", I64, [None])]
    if inside:
        first = body("then", nodes, [], [("s", I64, [None])])
        other = body("else", [helper.make_node("Shape", ["x"], ["t"])], [], [("t", I64, [None])])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=first, else_branch=other)]
    else:
        nodes.append(helper.make_node("Mul", ["s", "two"], ["y"]))
    model = model_of(nodes, [("x", F, [2, 3, 4]), ("c", BOOL, [])], outputs, {"two": np.array(2)})
    same(model, tmp_path, {"x": np.ones((2, 3, 4), np.float32), "c": np.array(True)})


def test_operators_that_onnx_defines_by_branches_are_refused(tmp_path: Path) -> None:
    """What ONNX makes AffineGrid of has branches: it is refused, not spelled out."""
    model = model_of(
        [helper.make_node("AffineGrid", ["x", "s"], ["y"])],
        [("x", F, [1, 2, 3])], [("y", F, [1, 4, 5, 2])], {"s": np.array([1, 1, 4, 5])}, opset=20,
    )  # fmt: skip
    said = refusal(model, tmp_path)
    assert "AffineGrid (y) is not supported (use a constant grid, or MatMul)" in said


def test_nodes_have_names_of_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"], name="a"),
        helper.make_node("Relu", ["b"], ["y"], name="n"),
    ]
    written = same(
        model_of(nodes, [("x", F, [3])], [("y", F, [3])]), tmp_path, {"x": np.ones(3, np.float32)}
    )
    assert [n.name for n in written.graph.node] == ["a", "a_2", "n"]


def test_initializers_that_are_listed_as_inputs_are_constants(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Add", ["x", "b"], ["y"])],
        [("x", F, [3]), ("b", F, [3])], [("y", F, [3])], {"b": np.ones(3, np.float32)},
    )  # fmt: skip
    written = same(model, tmp_path, {"x": np.ones(3, np.float32)}, fp16=True)
    assert [v.name for v in written.graph.input] == ["x"]


RELU = helper.make_node("Relu", ["x"], ["y"])


def _untyped(model: onnx.ModelProto, **shape: Any) -> onnx.ModelProto:
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info(output.name, F, shape.get("shape")))
    return model


@pytest.mark.parametrize("stated", [None, [4, 3], [2, 3, 1]], ids=["none", "size", "rank"])
def test_inferred_shapes_of_outputs_complete_and_win(tmp_path: Path, stated: Any) -> None:
    model = _untyped(model_of([RELU], [("x", F, [2, 3])], [("y", F, None)]), shape=stated)
    written = same(model, tmp_path, {"x": np.ones((2, 3), np.float32)})
    assert [d.dim_value for d in written.graph.output[0].type.tensor_type.shape.dim] == [2, 3]


def test_stated_names_of_sizes_stay(tmp_path: Path) -> None:
    model = model_of([RELU], [("x", F, ["n", 3])], [("y", F, ["batch", 3])])
    written = same(model, tmp_path, {"x": np.ones((2, 3), np.float32)}, profile=("x:1x3:2x3:4x3",))
    assert written.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_an_output_of_unknown_rank_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["wide"])]
    model = model_of(nodes, [("x", F, [2, 3]), ("s", I64, ["r"])], [("wide", F, None)])
    message = refusal(model, tmp_path, profile=("s:1:2:3",))
    assert "the rank of these outputs" in message
    assert "wide" in message


def test_graphs_without_a_name_and_empty_lists(tmp_path: Path) -> None:
    node = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    node.attribute.append(onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS))
    model = model_of([node], [("x", F, [2, 3])], [("y", F, [])], opset=17)
    model.graph.name = ""
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    assert same(model, tmp_path, feeds).graph.name


@pytest.mark.parametrize("spelled", ["value", "value_ints"])
def test_axes_from_constant_nodes_are_not_blamed(tmp_path: Path, spelled: str) -> None:
    # graphsurgeon refuses for another reason: that reason is given, not the axes.
    given: Any = (
        np.array([0]) if spelled == "value_ints" else numpy_helper.from_array(np.array([0]))
    )
    nodes = [
        helper.make_node("Constant", [], ["axes"], **{spelled: given}),
        helper.make_node("Squeeze", ["x", "axes"], ["q"]),
        helper.make_node("Slice", ["q", "starts", "starts"], ["y"], name="cut"),
    ]
    nodes[-1].attribute.append(onnx.AttributeProto(name="nothing", type=onnx.AttributeProto.INTS))
    model = model_of(
        nodes, [("x", F, [1, 4])], [("y", F, [0])], {"starts": np.array([0])}, opset=17
    )
    message = refusal(model, tmp_path)
    assert "computed" not in message
    assert "nothing" in message


@pytest.mark.parametrize("spelled", ["value", "value_ints"])
def test_axes_from_constant_nodes_in_bodies(tmp_path: Path, spelled: str) -> None:
    given: Any = (
        np.array([0]) if spelled == "value_ints" else numpy_helper.from_array(np.array([0]))
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Constant", [], ["axes"], **{spelled: given}),
            helper.make_node("Unsqueeze", ["s", "axes"], ["u"]),
            helper.make_node("Squeeze", ["u", "axes"], ["q"]),
            helper.make_node("Relu", ["q"], ["r"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("s", F, [4]),
        ],
        [helper.make_tensor_value_info("on", BOOL, []), helper.make_tensor_value_info("r", F, [4])],
    )
    model = model_of(
        [helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)],
        [("x", F, [4])],
        [("y", F, [4])],
        {"n": np.array(3), "t": np.array(True)},
        opset=17,
    )
    same(model, tmp_path, {"x": np.ones(4, np.float32)})
