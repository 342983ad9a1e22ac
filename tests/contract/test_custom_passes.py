"""A user's own passes: a function, a class with an option, and an entry point of another package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graphshrink import Context, Exactness, Graph, Pass, PassError, Pipeline, Rewriter, register
from graphshrink.ir import Activation, parse
from graphshrink.passes.infra import registry as base

TEXT = """graph g(%x: f32[1, 4]) {
  %y: f32[1, 4] = Activation(%x) {kind="silu"}
  %z: f32[1, 4] = Identity(%y)
  return z=%z
}
"""


@pytest.fixture
def swap() -> Iterator[type[Pass]]:
    @register
    @dataclass(frozen=True)
    class Swap(Pass):
        """Replace one kind of activation by another."""

        name = "test-swap"
        exactness = Exactness.APPROXIMATE
        old: str = "silu"
        new: str = "relu"

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            for node in graph.nodes:
                if node.op == Activation(self.old):
                    with rw.rewrite("swap", node):
                        rw.replace(node, Activation(self.new), node.inputs)

    yield Swap
    del base._REGISTRY["test-swap"]


def to_mish(graph: Graph, rw: Rewriter) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Activation):
            rw.replace(node, Activation("mish"), node.inputs)


def kinds(graph: Graph) -> list[str]:
    return [n.op.kind for n in graph.nodes if isinstance(n.op, Activation)]


def test_function_and_class_chain_with_ours(swap: type[Pass]) -> None:
    graph = parse(TEXT)
    records = Pipeline([swap, "prune-dead", to_mish]).run(graph)
    assert kinds(graph) == ["mish"]
    assert [r.text for r in records] == ["test-swap", "prune-dead", "to-mish"]
    assert [str(r.exactness) for r in records] == ["approximate", "exact", "approximate"]
    assert len(graph) == 1


def test_options_in_pipeline_text(swap: type[Pass]) -> None:
    pipeline = Pipeline("test-swap{new=tanh},prune-dead")
    assert str(pipeline) == "test-swap{new=tanh},prune-dead"
    assert pipeline == Pipeline([swap(new="tanh"), "prune-dead"])  # type: ignore[call-arg]
    graph = parse(TEXT)
    pipeline.run(graph)
    assert kinds(graph) == ["tanh"]


def test_names_are_taken_once(swap: type[Pass]) -> None:
    with pytest.raises(PassError, match="'test-swap' is taken by"):
        register(type("Other", (swap,), {}))


def test_a_pass_that_breaks_the_signature_is_named() -> None:
    def breaks(graph: Graph, rw: Rewriter) -> None:
        graph.output_names[0] = "other"

    with pytest.raises(PassError, match="pass breaks changed the inputs or the names"):
        Pipeline([breaks]).run(parse(TEXT))


def test_entry_point_of_another_package(tmp_path: Path) -> None:
    """An installed package: a module and its metadata, as pip installs them."""
    (tmp_path / "plugin.py").write_text(
        "from dataclasses import dataclass\n"
        "from graphshrink import Pass\n"
        "@dataclass(frozen=True)\n"
        "class Count(Pass):\n"
        "    '''Refuse every node, to count them.'''\n"
        "    name = 'plugin-count'\n"
        "    why: str = 'counted'\n"
        "    def run(self, graph, rw, ctx):\n"
        "        for node in graph.nodes:\n"
        "            rw.skip(node, self.why)\n"
    )
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphshrink.passes]\nplugin-count = plugin:Count\n")
    code = (
        "from graphshrink import Pipeline\nfrom graphshrink.ir import parse\n"
        f"g = parse('''{TEXT}''')\n"
        "r, = Pipeline('plugin-count{why=seen}').run(g)\n"
        "print([(f.node, f.reason) for f in r.refusals])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[('y', 'seen'), ('z', 'seen')]"
    listed = subprocess.run(
        [sys.executable, "-m", "graphshrink", "passes"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert "plugin-count" in listed.stdout


EXAMPLES = Path(__file__).parents[2] / "examples"


def python(code: str, folder: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {})}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_runs() -> None:
    pytest.importorskip("torch", reason="pip install 'graphshrink[torch]'")
    path = EXAMPLES / "custom_pass.py"
    out = python(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")
    first, second = out.split("\n\n")
    # From Python and from text it is the same pipeline.
    assert first == second
    lines = first.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [
        "silu-to-hard-swish", "drop-activation{most=2}", "merge-linear", "prune-dead",
    ]  # fmt: skip
    assert "2: drop relu (6); drop relu (4)" in lines[1]
    assert lines[4] == "8 modules -> 3 nodes"


def installed(folder: Path) -> Path:
    """The example plugin, installed by pip from a copy of its source, without a network."""
    pytest.importorskip("setuptools")
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLES / "graphshrink_example_plugin", source)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", target, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def test_an_installed_package_adds_passes(tmp_path: Path) -> None:
    site = installed(tmp_path)
    code = (
        "from graphshrink import Pipeline, PassError\n"
        "from graphshrink.ir import parse\n"
        f"g = parse({TEXT!r}.replace('silu', 'relu6'))\n"
        "p = Pipeline('relu6-to-relu,clamp-activations{limit=4},prune-dead')\n"
        "for r in p.run(g): print(r.text, r.exactness, [w.what for w in r.rewrites])\n"
        "print([n.op.params for n in g.nodes])\n"
        "try: Pipeline('clamp-activations{limit=-1}')\n"
        "except PassError as error: print(error)\n"
        "try: Pipeline('clamp-activation')\n"
        "except PassError as error: print(error)\n"
    )
    assert python(code, site).splitlines() == [
        "relu6-to-relu approximate ['replace by Activation']",
        "clamp-activations{limit=4.0} approximate ['clamp at 4']",
        "prune-dead exact ['bypass Identity', 'remove unused Identity']",
        "[(0.0, 4.0)]",
        "pass 'clamp-activations': limit must be above 0",
        "unknown pass 'clamp-activation'; did you mean 'clamp-activations'?",
    ]


def test_the_command_line_runs_an_installed_pass(tmp_path: Path) -> None:
    site = installed(tmp_path)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, tmp_path / "in.onnx")
    code = (
        "import sys; from graphshrink.cli import main\n"
        f"sys.argv = ['graphshrink', {str(tmp_path / 'in.onnx')!r}, {str(tmp_path / 'out.onnx')!r},\n"
        "            '--passes', 'clamp-activations{limit=2.5}']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
    )
    python(code, site)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": np.array([[-1, 1, 2, 3]], np.float32)})
    assert y.tolist() == [[0.0, 1.0, 2.0, 2.5]]
