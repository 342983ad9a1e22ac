"""The public calls: every kind in and out, passes in every form, checks, what cannot be done."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import graphshrink
from graphshrink import (
    Graph,
    MissingExtra,
    ModelError,
    PassError,
    Pipeline,
    Rewriter,
    UsageError,
    shrink,
    shrink_graph,
)
from graphshrink.ir import Activation, Exactness, Linear, parse
from graphshrink.passes import CheckFailed, Context, Pass, PruneDead
from graphshrink.running.inputs import fx_nudges, nudges, random_inputs
from support.cli import small_model
from support.onnx_run import outputs_of


def module() -> nn.Sequential:
    """Conv, batch norm with real statistics, ReLU, dense."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    )
    for _ in range(3):
        made(torch.randn(4, 3, 8, 8))
    return made.eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def same(want: torch.Tensor, got: torch.Tensor) -> bool:
    return bool((want - got).abs().max() <= 1e-5 * want.abs().max())


class Wrong(Pass):
    """Claims to be exact and is not."""

    name = "wrong"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Activation):
                with rw.rewrite("break", node):
                    rw.replace(node, Activation("tanh"), node.inputs)


def test_import_costs_nothing() -> None:
    code = (
        "import sys, graphshrink; before = set(sys.modules)\n"
        "print([m for m in ('numpy', 'torch', 'onnx', 'rich', 'typer') if m in before])\n"
        "for name in graphshrink.__all__: getattr(graphshrink, name)\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    with pytest.raises(AttributeError, match="no attribute 'shrunk'"):
        _ = graphshrink.shrunk  # type: ignore[attr-defined]


# Kinds.


def test_graph_module_in_and_out() -> None:
    model = module()
    traced = torch.fx.symbolic_trace(model)
    code, state = traced.code, {k: v.clone() for k, v in traced.state_dict().items()}
    small = shrink_graph(traced)
    assert isinstance(small, torch.fx.GraphModule)
    assert same(model(X), small(X))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.modules())
    assert traced.code == code
    assert all(torch.equal(v, state[k]) for k, v in traced.state_dict().items())


def test_module_and_exported_program_come_out_as_graph_modules() -> None:
    model = module()
    program = torch.export.export(model, (X,))
    for given in (model, program):
        small = shrink_graph(given, check=True, example_inputs=(X,))
        assert isinstance(small, torch.fx.GraphModule)
        assert same(model(X), small(X))
        assert len([n for n in small.graph.nodes if "batch_norm" in str(n.target)]) == 0


def test_model_proto_in_and_out(tmp_path: Path) -> None:
    path = small_model(tmp_path / "in.onnx")
    proto = onnx.load(path)
    before = proto.SerializeToString(deterministic=True)
    small = shrink_graph(proto, check=True)
    assert isinstance(small, onnx.ModelProto)
    assert [n.op_type for n in small.graph.node] == ["Conv", "Sigmoid", "Mul"]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)}
    want, got = outputs_of(proto, feeds)[0], outputs_of(small, feeds)[0]
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()
    assert proto.SerializeToString(deterministic=True) == before
    assert shrink_graph(proto, "") == proto


def test_paths_and_what_a_result_holds(tmp_path: Path) -> None:
    path = small_model(tmp_path / "in.onnx")
    for given in (path, str(path)):
        result = shrink(given)
        assert result.model is result.model
        assert len(result.graph) == result.report.after.nodes == 2
        result.save(tmp_path / "out.onnx")
        assert onnx.load(tmp_path / "out.onnx") == result.model
    with pytest.raises(UsageError, match=r"out\.pt: only \.onnx"):
        result.save(tmp_path / "out.pt")
    with pytest.raises(UsageError, match="does not exist"):
        result.save(tmp_path / "no" / "out.onnx")


def test_torch_models_are_saved_as_onnx(tmp_path: Path) -> None:
    model, path = module(), tmp_path / "out.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shrink(model, example_inputs=(X,)).save(path)
    proto = onnx.load(path)
    assert [n.op_type for n in proto.graph.node if n.op_type == "BatchNormalization"] == []
    (got,) = outputs_of(path, {proto.graph.input[0].name: X.numpy()})
    assert same(model(X), torch.from_numpy(got))


@pytest.mark.parametrize("given", [3, None, b"model", {"a": torch.zeros(1)}, nn.Module])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(UsageError, match="cannot shrink a"):
        shrink(given)


def test_a_model_of_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    model = module()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "torch.fx", None)
    with pytest.raises(MissingExtra, match=r'pip install .*\[torch\]"'):
        shrink(model)


# What tracing cannot follow.


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[0]):
            x = self.second(self.first(x))
        return x


def test_torch_export_is_tried_where_tracing_fails() -> None:
    torch.manual_seed(0)
    model, x = Loop().eval(), torch.randn(2, 8)
    with pytest.raises(UsageError, match=r"cannot trace Loop .*give example_inputs"):
        shrink_graph(model)
    result = shrink(model, example_inputs=(x,), check=True)
    assert same(model(x), result.model(x))
    assert "torch.export was used" in result.report.notes[-1]
    assert [size.ops["Linear"] for size in (result.report.before, result.report.after)] == [4, 1]
    with pytest.raises(ModelError, match="training mode"):
        shrink(model.train(), example_inputs=(x,))


class Choice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_neither_can_follow() -> None:
    with pytest.raises(UsageError, match=r"cannot trace Choice .* nor can torch.export"):
        shrink(Choice().eval(), example_inputs=(X,))


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="does not run on example_inputs"):
        shrink(module(), example_inputs=(torch.zeros(1, 4, 8, 8),))


# Passes.


def test_every_form_of_passes_gives_the_same_result() -> None:
    model = torch.fx.symbolic_trace(module())
    text = "fold-constants,merge-linear{max-kernel=5},prune-dead"

    def nothing(graph: Graph, rw: Rewriter) -> None:
        pass

    forms: list[Any] = [
        text,
        Pipeline.parse(text),
        text.split(","),
        ["fold-constants,merge-linear{max-kernel=5}", PruneDead],
        [Pipeline("fold-constants,merge-linear{max-kernel=5}"), nothing, PruneDead()],
    ]
    texts = {shrink(model, form).graph.text(full=True) for form in forms}
    assert len(texts) == 1
    with pytest.raises(PassError, match="did you mean 'prune-dead'"):
        shrink(model, "prune-ded")


def test_a_function_alone_is_a_pipeline() -> None:
    def to_tanh(graph: Graph, rw: Rewriter) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Activation):
                rw.replace(node, Activation("tanh"), node.inputs)

    small = shrink_graph(module(), to_tanh)
    model = module()
    model[2] = nn.Tanh()
    assert same(model(X), small(X))


def test_a_pass_that_raises_is_named() -> None:
    def clumsy(graph: Graph, rw: Rewriter) -> None:
        raise ValueError("seven is not eight")

    with pytest.raises(PassError, match="pass clumsy failed: ValueError: seven is not eight"):
        shrink(module(), clumsy)


def test_more_eyes() -> None:
    class Watch:
        seen: list[str]

        def __init__(self) -> None:
            self.seen = []

        def before(self, step: Pass, graph: Graph) -> None:
            self.seen.append(f"{step} {len(graph)}")

        def after(self, step: Pass, graph: Graph, record: Any) -> None:
            self.seen.append(f"{step} {len(graph)}")

    watch = Watch()
    shrink(module(), "merge-linear", observers=[watch])
    assert watch.seen == ["merge-linear 5", "merge-linear 4"]


# Checks.


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_pass_that_is_wrong_is_rolled_back_or_raises(kind: str, tmp_path: Path) -> None:
    model: Any
    if kind == "fx":
        model = module()
        options: dict[str, Any] = {"example_inputs": (X,)}
    else:
        model, options = onnx.load(small_model(tmp_path / "in.onnx")), {}
    result = shrink(model, [Wrong, "merge-linear"], check=True, **options)
    assert result.report.failed
    wrong, merge = result.report.passes
    assert wrong.rolled_back
    assert wrong.error is not None
    assert wrong.error > 1e-3
    assert "pass wrong claims to be exact, but the outputs moved by" in wrong.problem
    assert not merge.rolled_back
    assert merge.error is not None
    assert merge.error < 1e-5
    if kind == "fx":
        assert same(model(X), result.model(X))
    with pytest.raises(CheckFailed, match="pass wrong claims to be exact"):
        shrink_graph(model, Wrong, check=True, **options)
    with pytest.raises(UsageError, match="on_failure"):
        shrink(model, on_failure="ignore", **options)


def test_a_pass_that_admits_to_be_approximate_is_measured() -> None:
    class Admits(Wrong):
        name = "admits"
        exactness = Exactness.APPROXIMATE

    result = shrink(module(), Admits, check=True, example_inputs=(X,))
    assert not result.report.failed
    assert result.report.passes[0].error is not None
    assert result.report.passes[0].error > 1e-3


def test_a_pass_after_which_the_model_does_not_run_is_rolled_back(tmp_path: Path) -> None:
    """onnxruntime refuses a weight of the wrong size, which the IR cannot see here."""

    class Breaks(Pass):
        name = "breaks"
        exactness = Exactness.APPROXIMATE

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            from graphshrink.ir import Opaque

            for node in graph.nodes:
                if isinstance(node.op, Activation):
                    types = [v.type for v in node.outputs]
                    made = rw.insert(Opaque("no.such:Op"), node.inputs, before=node, types=types)
                    rw.replace_uses(node.output, made.output)
                    rw.erase(node)

    path = small_model(tmp_path / "in.onnx")
    result = shrink(path, Breaks, check=True)
    assert result.report.failed
    assert "left a model that does not run" in result.report.passes[0].problem
    assert result.model == onnx.load(path)


def test_check_without_inputs() -> None:
    with pytest.raises(UsageError, match=r"input 'input_?1?' is unknown.*example_inputs"):
        shrink(module(), check=True)
    program = torch.export.export(module(), (X,))
    result = shrink(program, check=True)
    assert all(r.error is not None and r.error < 1e-5 for r in result.report.passes)
    dynamic = torch.export.export(
        module(), (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    )
    assert not shrink(dynamic, check=True).report.failed


def test_check_inputs_for_onnx(tmp_path: Path) -> None:
    path = small_model(tmp_path / "in.onnx")
    x = np.ones((2, 3, 16, 16), np.float32)
    for given in ({"x": x}, (x,), [x], x):
        assert not shrink(path, check=True, example_inputs=given).report.failed
    for given, message in (
        ({"y": x}, "no input 'y'"),
        ({}, "no value was given for input 'x'"),
        ((x, x), "has 1 input, 2 were given"),
        (x[0], "takes batchx3x16x16, not 3x16x16"),
        (x.astype(np.float64), "takes float32, not float64"),
    ):
        with pytest.raises(UsageError, match=message):
            shrink(path, check=True, example_inputs=given)
    assert not shrink(path, check=True, shapes={"x": (4, 3, 16, 16)}).report.failed
    with pytest.raises(UsageError, match="no input 'z'"):
        shrink(path, shapes={"z": (1,)})


def test_random_inputs_fit_the_graph_and_the_seed() -> None:
    graph = parse("""graph g(%x: f32[n, 3], %i: i64[n, m], %b: bool[2], %h: bf16[?], %s: f64[]) {
      %y: f32[n, 3] = Activation(%x) {kind="relu"}
      return y=%y
    }""")
    first = random_inputs(graph, {"x": (5, 3)}, seed=1)
    assert [first[n].shape for n in "xibhs"] == [(5, 3), (5, 1), (2,), (1,), ()]
    assert [first[n].dtype.name for n in "xibhs"] == [
        "float32", "int64", "bool", "bfloat16", "float64"
    ]  # fmt: skip
    assert set(first["i"].ravel()) <= {0, 1}
    again, other = (random_inputs(graph, {"x": (5, 3)}, seed=s) for s in (1, 2))
    assert np.array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    with pytest.raises(UsageError, match="n is both 5 and 4"):
        random_inputs(graph, {"x": (5, 3), "i": (4, 2)})


def test_the_check_leaves_inputs_alone() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.relu_())

    x = torch.randn(3, 4)
    kept = x.clone()
    result = shrink(InPlace().eval(), example_inputs=(x,), check=True)
    assert not result.report.failed
    assert torch.equal(x, kept)


def test_same_input_same_result(tmp_path: Path) -> None:
    model = module()
    texts = {shrink(model, example_inputs=(X,)).graph.text(full=True) for _ in range(3)}
    assert len(texts) == 1
    assert isinstance(next(shrink(nn.Sequential(nn.Linear(2, 2)).eval()).graph.nodes).op, Linear)


def test_sizes_are_tried_until_the_model_runs(tmp_path: Path) -> None:
    """A pooling halves, an upsampling doubles, an addition needs them to agree: 1x1 does not run."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph = helper.make_graph(nodes, "g", [x], [y], [scales])
    path = tmp_path / "in.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    report = shrink(path, check=True).report
    assert not report.failed
    assert report.notes[0] == "run on inputs x:1x3x64x64 (--input gives other shapes)"
    given = shrink(path, check=True, shapes={"x": (2, 3, 8, 8)}).report
    assert not any("run on" in note for note in given.notes)
    with pytest.raises(ModelError, match="on inputs x:1x3x7x7"):
        shrink(path, check=True, shapes={"x": (1, 3, 7, 7)})


def test_nudged_inputs_differ_by_a_rounding_unit() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    feeds = {"x": x, "i": np.arange(3), "b": np.zeros(2, bool)}
    first, second, third = nudges(feeds, seed=1)
    assert first["i"] is feeds["i"]
    assert first["b"] is feeds["b"]
    for moved in (first, second, third):
        assert moved["x"].dtype == np.float32
        ulps = np.abs(moved["x"].view(np.int32).astype(np.int64) - x.view(np.int32))
        assert ulps.min() >= 1
        assert ulps.max() <= 2
    assert not np.array_equal(first["x"], second["x"])
    moved = fx_nudges((torch.ones(50), torch.arange(3), 2), seed=1)[0]
    assert set((moved[0] - 1).tolist()) == {2.0**-23, -(2.0**-23)}
    assert moved[1].tolist() == [0, 1, 2]
    assert moved[2] == 2


@pytest.mark.parametrize("kind", ["onnx", "fx"])
def test_nudged_inputs_are_made_when_they_are_asked_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise AssertionError("nobody asked")

    for name in ("nudges", "fx_nudges"):
        monkeypatch.setattr(f"graphshrink.api.{name}", none)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    given = small_model(tmp_path / "m.onnx") if kind == "onnx" else model
    inputs = None if kind == "onnx" else (torch.randn(1, 3, 8, 8),)
    assert not shrink(given, check=True, example_inputs=inputs).report.failed
