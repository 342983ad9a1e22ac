"""A user's own passes: a function, a class with an option, and an entry point of another package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graphshrink import Context, Exactness, Graph, Pass, PassError, Pipeline, Rewriter, register
from graphshrink.ir import Activation, parse
from graphshrink.passes import base

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


@pytest.mark.parametrize(("text", "message"), [
    ("prune-ded", "did you mean 'prune-dead'"),
    ("merge-linear{max-kernel=x}", "takes int, not 'x'"),
    ("merge-linear{kernel=3}", "no option 'kernel'; did you mean 'max-kernel'"),
    ("prune-dead,,prune-dead", "empty entry"),
    ("merge-linear{max-kernel=3", "do not match"),
])  # fmt: skip
def test_wrong_texts(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        Pipeline(text)


def test_a_pass_that_breaks_the_signature_is_named() -> None:
    def breaks(graph: Graph, rw: Rewriter) -> None:
        graph.output_names[0] = "other"

    with pytest.raises(PassError, match="pass breaks changed the inputs or the names"):
        Pipeline([breaks]).run(parse(TEXT))


def test_entry_point_of_another_package(tmp_path: Path) -> None:
    """A package that is installed beside ours: a module and its metadata, as pip leaves them."""
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
