"""Reports: sizes against numbers worked out by hand, JSON, tables; latency ratios and their intervals."""

from __future__ import annotations

import io
import json
import math
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from graphshrink import shrink
from graphshrink.cli.terminal import show
from graphshrink.ir import Activation, Graph, Rewriter, parse
from graphshrink.passes import Context, Pass, PassRecord
from graphshrink.report import SCHEMA, Report, Size, size_table
from graphshrink.running.latency import median_interval, paired_latency, paired_latency_for


class Tied(nn.Module):
    """One convolution twice, and two dense layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.down.weight = self.up.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(torch.relu(self.conv(x)))).mean((2, 3))
        return self.down(torch.relu(self.up(x)))


def test_sizes() -> None:
    model = Tied().eval()
    before = shrink(model, example_inputs=(torch.zeros(2, 4, 8, 8),)).report.before
    assert before.nodes == 8
    assert before.ops == {"Activation": 3, "Conv": 2, "Linear": 2, "Reduce": 1}
    assert before.parameters == sum(p.numel() for p in model.parameters()) == 4 * 4 * 9 + 4 + 16
    assert before.bytes == 4 * before.parameters
    assert before.macs == 2 * (2 * 4 * 4 * 9 * 64) + 2 * (2 * 4 * 4)


def test_a_symbolic_batch_counts_as_one() -> None:
    text = """graph g(%%x: f32[%s]) {
      %%w: f32[6, 3, 5, 5] = random 0
      %%y: f32[%s] = Conv(%%x, %%w) {strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], groups=1}
      return y=%%y
    }"""
    assert Size.of(parse(text % ("batch, 3, 9, 9", "batch, 6, 5, 5"))).macs == 6 * 75 * 25
    unknown = Size.of(parse(text % ("1, 3, h, w", "1, 6, ?, ?")))
    assert unknown.macs is None
    assert unknown.notes == ["MACs are unknown, because the shapes at Conv y are unknown"]


def test_without_shapes_the_report_says_what_was_missed() -> None:
    report = shrink(Tied().eval()).report
    assert report.before.macs is None
    assert any("no shapes are known: give example_inputs" in note for note in report.notes)
    assert any("MACs are unknown" in note for note in report.notes)
    assert report.to_dict()["before"]["macs"] is None


class Odd(Pass):
    """Changes one thing, refuses another, has brackets in its texts."""

    name = "odd"

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        first, second = graph.nodes
        with rw.rewrite("[swap]", first):
            rw.replace(first, Activation("tanh"), first.inputs)
        rw.skip(second, "it has [bold]two[/bold] users")


TEXT = """graph g(%x: f32[1, 4]) {
  %y: f32[1, 4] = Activation(%x) {kind="relu"}
  %z: f32[1, 4] = Identity(%y)
  return z=%z
}"""


def odd_report() -> Report:
    from graphshrink.passes import Pipeline

    graph = parse(TEXT)
    before = Size.of(graph)
    records = Pipeline([Odd()]).run(graph)
    return Report("odd", before, Size.of(graph), records, ["a [note]"])


def test_json_says_everything_and_is_valid() -> None:
    report = odd_report()
    report.passes.append(PassRecord("other", error=math.inf, rolled_back=True, problem="moved"))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["schema"] == SCHEMA == 1
    assert found["pipeline"] == "odd"
    assert found["before"]["ops"] == {"Activation": 1, "Identity": 1}
    assert found["passes"] == [
        {
            "pass": "odd", "exactness": "exact", "seconds": None, "error": None,
            "rolled_back": False, "problem": "",
            "rewrites": [
                {"what": "[swap]", "nodes": ["y"], "exactness": "exact", "measures": {}}
            ],
            "refusals": [
                {"node": "z", "op": "Identity", "reason": "it has [bold]two[/bold] users"}
            ],
        },
        {
            "pass": "other", "exactness": "exact", "seconds": None, "error": "infinite",
            "rolled_back": True, "problem": "moved", "rewrites": [], "refusals": [],
        },
    ]  # fmt: skip
    assert found["notes"] == ["a [note]"]
    assert report.failed
    assert report.changed
    assert not Report("", report.before, report.after).changed


def rendered(report: Report, *, terminal: bool = False, verbose: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=terminal, color_system=None)
    report.render(console, verbose=verbose)
    return out.getvalue()


def test_refusals_are_shown_when_asked_for_and_texts_are_no_markup() -> None:
    report = odd_report()
    short, long = rendered(report), rendered(report, verbose=True)
    assert "-v shows them with the reasons" in short
    assert "two" not in short
    assert "odd: [swap] (exact): y" in long
    assert "odd: left Identity z: it has [bold]two[/bold] users" in long
    assert "note: a [note]" in long


def test_rules_on_a_terminal_and_plain_columns_elsewhere() -> None:
    report = odd_report()
    assert "┃" in rendered(report, terminal=True)
    plain = rendered(report)
    assert plain.isascii()
    row = next(line for line in plain.splitlines() if "Activation" in line)
    assert row.split() == ["Activation", "1", "1"]


def test_names_in_tables_are_no_markup() -> None:
    out = io.StringIO()
    size = Size(1, {"onnx:[red]Op": 1}, 0, 0, 0)
    show(Console(file=out, width=100), size_table(size, size, ("[a].onnx", "b[/].onnx")))
    assert "onnx:[red]Op" in out.getvalue()
    assert "[a].onnx" in out.getvalue()


# Latency.


@pytest.mark.parametrize("n", [6, 7, 13, 30, 61])
def test_the_interval_holds_the_median_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(size=n))
        hits += low <= math.log(2) <= high
    # 95 % or more by construction; three standard deviations of 2,000 draws are 1.5 %.
    assert hits / 2000 >= 0.935
    inner = np.sort(rng.exponential(size=n))
    low, high = median_interval(inner)
    if n >= 13:  # And not wider than it must be.
        assert low > inner[0]
        assert high < inner[-1]


def test_few_samples_give_their_range() -> None:
    assert median_interval(np.array([3.0])) == (3.0, 3.0)
    assert median_interval(np.array([3.0, 1.0, 2.0, 5.0])) == (1.0, 5.0)


def test_pairs_alternate_and_the_ratio_is_right() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("a")
        time.sleep(0.006)

    def fast() -> None:
        calls.append("b")
        time.sleep(0.002)

    found = paired_latency(slow, fast, pairs=8, warm_up=2)
    assert "".join(calls) == "abba" * 5
    assert 1.5 < found.speedup < 4
    assert found.interval[0] <= found.speedup <= found.interval[1]
    assert found.milliseconds[0] > 5.9
    assert "95 % interval" in str(found)


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, 9), (1e9, 21), (0.1, None)])
def test_pairs_for_some_seconds(seconds: float, calls: int | None) -> None:
    count = 0

    def wait() -> None:
        nonlocal count
        count += 1
        time.sleep(0.002)

    paired_latency_for(seconds, wait, lambda: None, least=9, most=21)
    # Two to see how long a pair takes, and three to warm up.
    timed = count - 5
    assert timed == calls if calls is not None else 9 <= timed <= 21
