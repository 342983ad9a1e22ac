"""What merges cost and what they may cost: limits on both sides, links of links, weights that stay for others."""

from __future__ import annotations

from typing import Any

import pytest

from graphshrink.ir import Conv, Graph, Node, Rewriter, parse
from graphshrink.passes import Context
from graphshrink.passes.merge.algebra.affine import Affine
from graphshrink.passes.merge.chain import (
    Link,
    MissedMerge,
    added_bytes,
    lift,
    plan,
    segment_as_link,
    split_by_domain,
)
from graphshrink.passes.merge.merge_linear import MergeLinear
from graphshrink.passes.merge.preview import preview

VALID = "{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]}"

STRIDED = f"""graph g(%x: f64[1, 2, 9, 9]) {{
  %w: f64[4, 2, 3, 3] = random 1
  %v: f64[2, 4, 1, 1] = random 2
  %s: f64[2] = random 3
  %a: f64[1, 4, 4, 4] = Conv(%x, %w) {VALID.replace("[1, 1], pads", "[2, 2], pads")}
  %i: f64[1, 4, 4, 4] = Identity(%a)
  %b: f64[1, 2, 4, 4] = Conv(%i, %v, %s) {VALID}
  %c: f64[1, 2, 4, 4] = Scale(%b, %s, none)
  return y=%c
}}"""


def links_of(graph: Graph) -> list[Link]:
    missed: list[MissedMerge] = []
    (run,) = split_by_domain(list(graph.nodes), missed)
    (links,) = lift(run, missed)
    assert missed == []
    return links


def test_links_say_where_they_are_and_what_they_cost() -> None:
    links = links_of(parse(STRIDED))
    assert [len(link.nodes) for link in links] == [2, 1, 1]
    assert [(link.before, link.after) for link in links] == [(81.0, 16.0), (16.0, 16.0), (16.0, 16.0)]  # fmt: skip
    written = [4.0 * 4 * 16, 4.0 * 2 * 16, 4.0 * 2 * 16]
    assert [link.macs for link in links] == [72 * 16.0, 8 * 16.0, 0.0]
    assert [link.cost - link.macs for link in links] == written


def test_a_segment_is_a_link_that_costs_what_its_map_costs() -> None:
    links = links_of(parse(STRIDED))
    (segment,) = plan(links, MergeLinear())
    assert segment.is_merge
    assert segment.parts == links
    made = segment_as_link(segment, MergeLinear())
    assert (made.before, made.after) == (81.0, 16.0)
    assert (made.macs, made.cost) == (36 * 16.0, 36 * 16.0 + 4.0 * 2 * 16)
    assert made.parts == links
    # Where nothing was merged the costs are those of the parts.
    segment.affine = links[0].affine
    dear = segment_as_link(segment, MergeLinear(max_growth_mb=-1.0))
    assert (dear.macs, dear.cost) == (80 * 16.0, sum(link.cost for link in links))


def test_a_link_of_links_begins_with_the_first_and_ends_with_the_last() -> None:
    options = MergeLinear(force=True)
    links = links_of(parse(PAIR))
    assert [(link.before, link.after) for link in links] == [(81.0, 49.0), (49.0, 25.0)]
    (segment,) = plan(links, options)
    made = segment_as_link(segment, options)
    assert (made.before, made.after, made.macs) == (81.0, 25.0, 100 * 25.0)


def nodes_and_map(text: str) -> tuple[list[Node], Affine]:
    graph = parse(text)
    (segment,) = plan(links_of(graph), MergeLinear())
    return segment.nodes, segment.affine


def test_weights_that_others_read_stay_in_the_model() -> None:
    made = 2 * 2 * 9 * 8 + 2 * 8
    own = (4 * 2 * 9 + 2 * 4) * 8
    # The vector has two readers, and so stays.
    assert added_bytes(*nodes_and_map(STRIDED)) == made - own
    text = STRIDED.replace("Scale(%b, %s, none)", "Scale(%b, none, %t)")
    text = text.replace("%a:", "%t: f64[2] = random 4\n  %a:", 1)
    assert added_bytes(*nodes_and_map(text)) == made - own - 2 * 2 * 8


PAIR = f"""graph g(%x: f64[1, 2, 9, 9]) {{
  %w: f64[2, 2, 3, 3] = random 1
  %v: f64[2, 2, 3, 3] = random 2
  %a: f64[1, 2, 7, 7] = Conv(%x, %w) {VALID}
  %b: f64[1, 2, 5, 5] = Conv(%a, %v) {VALID}
  return y=%b
}}"""


def left(text: str, **options: Any) -> tuple[int, list[str]]:
    graph = parse(text)
    rw = Rewriter(graph)
    MergeLinear(**options).run(graph, rw, Context())
    return len(graph), [r.reason for r in rw.refusals]


def test_the_largest_kernel_that_a_merge_may_make() -> None:
    assert left(PAIR, force=True, max_kernel=5) == (1, [])
    count, (why,) = left(PAIR, force=True, max_kernel=4)
    assert count == 2
    assert why.endswith("the merged kernel would be 5x5, beyond max-kernel=4")


def test_how_much_more_a_merge_may_cost() -> None:
    """100 numbers at 25 places and 50 elements written, for 36 at 49 and 25 places and 148 elements."""
    new, old = 100 * 25 + 4 * 50, 36 * (49 + 25) + 4 * (98 + 50)
    assert new < old
    assert left(PAIR, max_mac_growth=new / old)[0] == 1
    count, (why,) = left(PAIR, max_mac_growth=new / old - 1e-4)
    assert count == 2
    assert "one 5x5 kernel would cost 0.94x the MACs" in why


def test_how_many_bytes_a_merge_may_add() -> None:
    added = (100 - 72) * 8 / 2**20
    assert left(PAIR, max_growth_mb=added)[0] == 1
    count, (why,) = left(PAIR, max_growth_mb=added * 0.99)
    assert count == 2
    assert why.endswith("MiB to the model")


def test_reasons_name_the_node_in_front() -> None:
    text = PAIR.replace("%a, %v) {strides=[1, 1], pads=[0, 0, 0, 0]", "%a, %v) {strides=[1, 1], pads=[0, -1, 0, 0]")  # fmt: skip
    text = text.replace("[1, 2, 5, 5]", "[*]").replace("%b: f64[*] = Conv(", "%b: f64[*] = Conv(")
    graph = parse(text)
    rw = Rewriter(graph)
    MergeLinear().run(graph, rw, Context())
    first, second = graph.nodes
    (refusal,) = rw.refusals
    assert refusal.node == second.name
    assert refusal.reason == f"not merged with {first.name}: a negative padding does not merge"


def test_previews_come_in_the_order_of_the_graph() -> None:
    """Two chains side by side: the one that ends first comes first, whichever began first."""
    text = f"""graph g(%x: f64[1, 2, 5, 5], %z: f64[1, 2, 5, 5]) {{
      %w: f64[2, 2, 1, 1] = random 1
      %a: f64[1, 2, 5, 5] = Conv(%x, %w) {VALID} as "a"
      %p: f64[1, 2, 5, 5] = Conv(%z, %w) {VALID} as "p"
      %q: f64[1, 2, 5, 5] = Conv(%p, %w) {VALID} as "q"
      %b: f64[1, 2, 5, 5] = Conv(%a, %w) {VALID} as "b"
      %c: f64[1, 2, 5, 5] = Conv(%b, %w) {VALID} as "c"
      %r: f64[1, 2, 5, 5] = Conv(%q, %w) {VALID} as "r"
      return y=%c, z=%r
    }}"""
    graph = parse(text)
    found = preview(graph, MergeLinear())
    assert [[n.name for n in m.nodes] for m in found.merged] == [["a", "b", "c"], ["p", "q", "r"]]
    assert [m.source.name for m in found.merged] == ["x", "z"]
    assert found.reasons == {}
    assert all(isinstance(n.op, Conv) for n in graph.nodes)
    assert len(graph) == 6


@pytest.mark.parametrize("cost", [None, 1e-3])
def test_previews_give_reasons_of_nodes_that_stay(cost: float | None) -> None:
    graph = parse(PAIR)
    options = MergeLinear() if cost is None else MergeLinear(max_mac_growth=cost)
    found = preview(graph, options)
    assert len(found.merged) == (cost is None)
    assert [n.name for n in found.reasons] == ([] if cost is None else [graph.value("b").producer.name])  # type: ignore[union-attr]  # fmt: skip


def test_previews_know_no_nodes_that_a_merge_would_make() -> None:
    text = PAIR.replace("return y=%b", "%s: f64[2] = random 3\n  %c: f64[1, 2, 5, 5] = Scale(%b, %s, none)\n  return y=%c")  # fmt: skip
    graph = parse(text)
    found = preview(graph, MergeLinear(max_kernel=4, force=True))
    assert [[n.op.name for n in m.nodes] for m in found.merged] == [["Conv", "Scale"]]
    assert all(n.graph is graph for n in found.reasons)
