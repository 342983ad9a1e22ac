"""The IR end to end on one small graph: text, verification, rewriting."""

import pytest

from graphshrink.ir import Activation, Conv, Graph, GraphError, Identity, Rewriter, parse

TEXT = """\
graph t(%x: f32[1, 3, 8, 8]) {
  %w: f32[4, 3, 3, 3] = elided
  %b: f32[4] = dense [1.0, 2.0, -inf, nan]
  %y: f32[1, 4, 6, 6] = Conv(%x, %w, %b) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}
  %z: f32[1, 4, 6, 6] = Activation(%y) {kind="relu"} as "layer.relu"
  return out=%z
}
"""


@pytest.fixture
def graph() -> Graph:
    return parse(TEXT)


def test_text_round_trips(graph: Graph) -> None:
    assert str(graph) == TEXT
    assert str(graph.clone()) == TEXT


def test_rewriter_keeps_use_lists(graph: Graph) -> None:
    rw = Rewriter(graph)
    conv, relu = graph.nodes
    assert isinstance(conv.op, Conv)
    assert isinstance(relu.op, Activation)
    with rw.rewrite("bypass the activation", relu):
        same = rw.insert(Identity(), [conv.output], before=relu)
        rw.replace_uses(relu.output, same.output)
        rw.erase(relu)
    graph.verify()
    assert [n.op.name for n in graph.nodes] == ["Conv", "Identity"]
    assert graph.output_names == ["out"]
    assert rw.rewrites[0].mutations == 3


def test_a_used_node_cannot_be_erased(graph: Graph) -> None:
    conv = next(iter(graph.nodes))
    with pytest.raises(GraphError, match="still used"):
        Rewriter(graph).erase(conv)
