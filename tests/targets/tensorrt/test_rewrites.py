"""Forms that TensorRT's parser does not take are written in others: old opsets, pools over one axis; failures name their cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphshrink import ModelError, shrink
from graphshrink.targets.tensorrt import cleanup
from support.onnx_run import outputs_of

pytest.importorskip("onnx_graphsurgeon", reason='pip install "graphshrink[tensorrt]"')

node = helper.make_node
RNG = np.random.default_rng(0)


def model_of(nodes: list[Any], shape: Any, weights: dict[str, Any], opset: int) -> onnx.ModelProto:
    outputs = [helper.make_empty_tensor_value_info(nodes[-1].output[0])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    version = 8 if opset >= 9 else 4
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version
    )


def written(model: onnx.ModelProto, folder: Path, passes: str = "") -> onnx.ModelProto:
    """The file for TensorRT, after a comparison with the given model in onnxruntime."""
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    profile = "x:" + "x".join(map(str, shape))
    free = any(not d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    shrink(model, passes, target="tensorrt").save(
        folder / "o.onnx", profile=(profile,) if free else ()
    )
    for want, got in zip(
        outputs_of(model, feeds, plain=True),
        outputs_of(folder / "o.onnx", feeds, plain=True),
        strict=True,
    ):
        np.testing.assert_allclose(want, got, rtol=1e-5, atol=1e-6)
    return onnx.load(folder / "o.onnx")


@pytest.mark.parametrize("opset", [7, 8])
@pytest.mark.parametrize("passes", ["", "merge-linear"])
def test_opsets_7_and_8(opset: int, passes: str, tmp_path: Path) -> None:
    vector = {n: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for n in "abcd"}
    weight = {"w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    nodes = [
        node("Upsample", ["x"], ["u"], scales=[1.0, 1.0, 2.0, 2.0]),
        node("Conv", ["u", "w"], ["v"]),
        node("BatchNormalization", ["v", *"abcd"], ["n"], spatial=1),
        node("Relu", ["n"], ["y"]),
    ]
    found = written(model_of(nodes, [1, 3, 5, 5], vector | weight, opset), tmp_path, passes)
    assert [o.version for o in found.opset_import] == [9]


def test_a_form_that_only_the_old_opset_has_is_refused_with_the_reason(tmp_path: Path) -> None:
    numbers = {n: np.ones((3, 2, 2), np.float32) for n in "abcd"}
    nodes = [node("BatchNormalization", ["x", *"abcd"], ["y"], name="norm", spatial=0)]
    model = model_of(nodes, [1, 3, 2, 2], numbers, 7)
    with pytest.raises(ModelError, match=r"BatchNormalization \(norm\) normalises every number"):
        shrink(model, "", target="tensorrt").save(tmp_path / "o.onnx")


POOLS = [
    ("MaxPool", {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ("MaxPool", {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3], "strides": [2], "pads": [0, 1]}),
    ("AveragePool", {"kernel_shape": [1]}),
]


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(("op", "attributes"), POOLS)
@pytest.mark.parametrize("shape", [[1, 3, 9], ["n", 3, 9]])
def test_pools_over_one_axis(
    op: str, attributes: Any, opset: int, shape: Any, tmp_path: Path
) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node(op, ["r"], ["y"], name="pool", **attributes)]
    found = written(model_of(nodes, shape, {}, opset), tmp_path)
    (pool,) = [n for n in found.graph.node if n.op_type == op]
    assert len(next(a for a in pool.attribute if a.name == "kernel_shape").ints) == 2
    assert pool.name == "pool"


def test_pools_over_two_axes_stay(tmp_path: Path) -> None:
    nodes = [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])]
    found = written(model_of(nodes, [1, 2, 4, 4], {}, 17), tmp_path)
    assert [n.op_type for n in found.graph.node] == ["MaxPool"]


@pytest.mark.parametrize("lacking", [False, True])
def test_a_failed_clean_up_is_named_first(
    lacking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Axes from a Constant count as computed until they are folded, so they must not be blamed; an operator that is lacking may be."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("the surgeon is ill")

    monkeypatch.setattr(cleanup, "_run_surgeon", broken)
    axis = numpy_helper.from_array(np.array([0]))
    nodes = [
        node("Constant", [], ["a"], value=axis),
        node("Det" if lacking else "Abs", ["x"], ["d"], name="middle"),
        node("Unsqueeze", ["d", "a"], ["y"]),
    ]
    with pytest.raises(ModelError) as caught:
        shrink(model_of(nodes, [2, 2], {}, 17), "", target="tensorrt").save(tmp_path / "o.onnx")
    said = str(caught.value)
    assert said.startswith("onnx-graphsurgeon cannot clean up the model: the surgeon is ill")
    assert "Unsqueeze" not in said
    assert ("Det (middle) is not supported" in said) == lacking
