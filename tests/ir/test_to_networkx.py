"""Graphs as networkx sees them."""

from __future__ import annotations

import io
import sys

import networkx
import pytest

from graphshrink.ir import MissingExtra, parse

TEXT = """graph g(%x: f32[1, 4, 6, 6]) {
  %w: f32[8, 4, 3, 3] = random 1
  %a: f32[1, 8, 4, 4] = Conv(%x, %w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], groups=1} as "conv"
  %b: f32[1, 8, 4, 4] = Activation(%a) {kind="relu"} as "act"
  %c: f32[1, 8, 4, 4] = Add(%a, %b) as "add"
  return y=%c
}
"""


@pytest.fixture
def graph():
    text = TEXT.replace("random 1", "splat 0.5")
    return parse(text)


def test_nodes_and_edges(graph) -> None:
    found = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(found)
    assert {n: d["op"] for n, d in found.nodes(data=True)} == {
        "x": "Input", "conv": "Conv", "act": "Activation", "add": "Add", "y": "Output",
    }  # fmt: skip
    assert found.nodes["conv"]["macs"] == 8 * 4 * 9 * 16
    assert sorted((a, b, d["input"]) for a, b, d in found.edges(data=True)) == [
        ("act", "add", 1), ("add", "y", 0), ("conv", "act", 0), ("conv", "add", 0), ("x", "conv", 0),
    ]  # fmt: skip
    assert networkx.dag_longest_path_length(found) == 4


def test_constants_on_request(graph) -> None:
    found = graph.to_networkx(constants=True)
    assert found.nodes["w"]["op"] == "Constant"
    assert list(found.successors("w")) == ["conv"]


def test_every_format_can_store_it(graph) -> None:
    found = graph.to_networkx(constants=True)
    file = io.BytesIO()
    networkx.write_graphml(found, file)
    again = networkx.read_graphml(io.BytesIO(file.getvalue()), force_multigraph=True)
    assert dict(again.nodes(data=True)) == dict(found.nodes(data=True))


def test_names_that_occur_twice_stay_apart() -> None:
    graph = parse(TEXT.replace("random 1", "splat 0.5").replace('as "act"', 'as "conv"'))
    assert {"conv", "conv_1"} <= set(graph.to_networkx())


def test_without_networkx(graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingExtra, match=r"\[networkx\]"):
        graph.to_networkx()
