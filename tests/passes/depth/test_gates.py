"""Which activations get gates, how they are tied, and what removing them leaves: text before and after."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphshrink.ir import (
    ArrayTensor,
    Exactness,
    Gate,
    Graph,
    Identity,
    Rewriter,
    UsageError,
    parse,
)
from graphshrink.passes import (
    ActivationStats,
    Context,
    InsertGates,
    PassError,
    Pipeline,
    RemovalPlan,
    RemoveActivations,
)
from graphshrink.passes.depth.gate_sites import site_names, survey_activations
from graphshrink.passes.depth.removal_plan import read_plan
from support.calibration import Oracle
from support.evaluate import evaluate
from support.work import work

ONE = "strides=[1, 1], dilations=[1, 1]"
P0, P1 = f"{{{ONE}, pads=[0, 0, 0, 0]}}", f"{{{ONE}, pads=[1, 1, 1, 1]}}"
RELU = '{kind="relu"}'


def graph_of(body: str, size: str = "1, 4, 8, 8", **shapes: str) -> Graph:
    """A graph of f64 values; random constants are given as ``w="8x3x3x3"``."""
    made = [
        f"%{name}: f64[{shape.replace('x', ', ')}] = random {i + 1}"
        for i, (name, shape) in enumerate(shapes.items())
    ]
    text = re.sub(r"(%[\w.]+) = ", r"\1: ?[*] = ", body)
    return parse("\n".join([f"graph g(%x: f64[{size}]) {{", *made, text, "}"]))


def chain(*kernels: str, size: str = "1, 4, 8, 8") -> Graph:
    """Convolutions of these shapes with a relu between every two: ``a1``, ``a2``, ..."""
    lines, last = [], "x"
    for i, shape in enumerate(kernels):
        pads = P0 if shape.endswith("1x1") else P1
        lines.append(f"%c{i} = Conv(%{last}, %w{i}) {pads}")
        last = f"c{i}"
        if i + 1 < len(kernels):
            lines.append(f"%a{i} = Activation(%c{i}) {RELU}")
            last = f"a{i}"
    given = {f"w{i}": shape for i, shape in enumerate(kernels)}
    return graph_of("\n".join([*lines, f"return y=%{last}"]), size, **given)


def reasons(graph: Graph, **options: Any) -> dict[str, str]:
    return {s.name: s.reason for s in survey_activations(graph, InsertGates(**options).merging())}


def run(graph: Graph, step: Any) -> Rewriter:
    rw = Rewriter(graph, exactness=step.exactness)
    step.run(graph, rw, Context())
    graph.verify()
    return rw


def test_inserting_changes_nothing() -> None:
    graph = chain("4x4x3x3", "4x4x3x3", "4x4x3x3")
    before = evaluate(graph)
    rw = run(graph, InsertGates(mode="top-k"))
    assert [n.op for n in graph.nodes if n.name in ("a0", "a1")] == [Gate("relu", mode="top-k")] * 2
    assert rw.worst is Exactness.EXACT
    assert [r.what for r in rw.rewrites] == ["gate relu", "gate relu"]
    assert np.array_equal(evaluate(graph)[0], before[0])
    again = parse(graph.text(full=True))
    assert again.text() == graph.text()
    numbers = {n.inputs[1] for n in graph.nodes if isinstance(n.op, Gate)}
    assert len(numbers) == 2


def test_text_before_and_after() -> None:
    graph = parse(f"""graph g(%x: f32[1, 2, 4, 4]) {{
      %w: f32[2, 2, 1, 1] = elided
      %c: f32[1, 2, 4, 4] = Conv(%x, %w) {P0}
      %s: f32[2] = dense [0.5, 0.25]
      %a: f32[1, 2, 4, 4] = PRelu(%c, %s) as "block.act"
      %d: f32[1, 2, 4, 4] = Conv(%a, %w) {P0}
      return y=%d
    }}""")
    run(graph, InsertGates(value=0.5))
    gate = parse(f"""graph g(%x: f32[1, 2, 4, 4]) {{
      %w: f32[2, 2, 1, 1] = elided
      %s: f32[2] = dense [0.5, 0.25]
      %block.act.gate: f32[1] = dense [0.5]
      %c: f32[1, 2, 4, 4] = Conv(%x, %w) {P0}
      %a: f32[1, 2, 4, 4] = Gate(%c, %block.act.gate, %s) {{kind="prelu"}} as "block.act"
      %d: f32[1, 2, 4, 4] = Conv(%a, %w) {P0}
      return y=%d
    }}""")
    assert graph.text() == gate.text()
    run(graph, RemoveActivations())
    assert '%a: f32[1, 2, 4, 4] = PRelu(%c, %s) as "block.act"' in graph.text()
    run(gate, RemoveActivations(threshold=0.6))
    assert '%a: f32[1, 2, 4, 4] = Identity(%c) as "block.act"' in gate.text()


def test_a_soft_gate_is_what_it_says() -> None:
    graph = chain("4x4x1x1", "4x4x1x1")
    plain, gone = graph.clone(), graph.clone()
    run(graph, InsertGates(value=0.3))
    rest = next(n for n in gone.nodes if n.name == "a0")
    Rewriter(gone).replace(rest, Identity(), rest.inputs)
    for g in (graph, plain, gone):
        # What the gated activation itself computes.
        g._set_output(0, next(n for n in g.nodes if n.name == "a0").output)
    gated, act, x = (evaluate(g)[0] for g in (graph, plain, gone))
    assert np.abs(gated - (0.3 * act + 0.7 * x)).max() < 1e-12


# Which sites.


def test_both_activations_of_an_inverted_residual_are_tied_as_a_block() -> None:
    body = f"""%a = Conv(%x, %w0) {P0}
    %s1 = Scale(%a, %v, %v)
    %r1 = Activation(%s1) {{kind="relu6"}}
    %b = Conv(%r1, %w1) {{{ONE}, pads=[1, 1, 1, 1], groups=96}}
    %s2 = Scale(%b, %v, %v)
    %r2 = Activation(%s2) {{kind="relu6"}}
    %c = Conv(%r2, %w2) {P0}
    %y = Add(%x, %c)
    return y=%y"""
    shapes = {"w0": "96x16x1x1", "w1": "96x1x3x3", "w2": "16x96x1x1", "v": "96"}
    graph = graph_of(body, "1, 16, 8, 8", **shapes)
    found = survey_activations(graph, InsertGates().merging())
    assert [(s.name, s.reason, s.group) for s in found] == [("r1", "", 0), ("r2", "", 0)]
    run(graph, InsertGates(tie="block"))
    gates = [n for n in graph.nodes if isinstance(n.op, Gate)]
    assert gates[0].inputs[1] is gates[1].inputs[1]
    assert gates[0].inputs[1] is not None
    assert gates[0].inputs[1].name == "r1.gate"
    # What was promised happens: the whole block is one convolution once padding does not matter.
    Pipeline("remove-activations{threshold=1.0},merge-linear{allow-border},prune-dead").run(graph)
    assert [n.op.name for n in graph.nodes].count("Gate") == 0
    other = graph_of(body, "1, 16, 8, 8", **shapes)
    Pipeline("remove-activations{names=[r1,r2]},merge-linear{allow-border},prune-dead").run(other)
    assert next(n.op.name for n in other.nodes) == "Conv"
    assert len(other) <= 2  # A bias map may follow.


def test_a_skip_is_merged_before_what_follows_is_judged() -> None:
    body = f"""%a = Conv(%x, %w) {P0}
    %r = Activation(%a) {RELU}
    %b = Conv(%r, %w) {P0}
    %s = Add(%x, %b)
    %q = Activation(%s) {RELU}
    %c = Conv(%q, %w) {P0}
    return y=%c"""
    assert reasons(graph_of(body, w="4x4x1x1")) == {"r": "", "q": ""}


@pytest.mark.parametrize(("body", "reason"), [
    (f"%r = Activation(%x) {RELU}\n%c = Conv(%r, %w) {P0}\nreturn y=%c", "there is nothing before it"),
    (f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\nreturn y=%r", "its result is an output"),
    (f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\n%d = Conv(%r, %w) {P0}\n%y = Mul(%c, %d)\nreturn y=%y",
     "its input has other users"),
    (f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\n%d = Conv(%r, %w) {P0}\n%y = Mul(%r, %d)\nreturn y=%y",
     "its result has several users"),
    (f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\n%d = Mul(%r, %x)\nreturn y=%d",
     "the op after it (Mul) is not linear"),
    (f"%c = Mul(%x, %x)\n%r = Activation(%c) {RELU}\n%d = Conv(%r, %w) {P0}\nreturn y=%d",
     "the op before it (Mul) is not linear"),
    (f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\n%d = Linear(%r, %v)\nreturn y=%d",
     "they work along different axes"),
])  # fmt: skip
def test_reasons(body: str, reason: str) -> None:
    assert reasons(graph_of(body, w="4x4x1x1", v="8x8")) == {"r": reason}


def test_costs_and_kernels_decide() -> None:
    narrow = chain("2x64x1x1", "64x2x1x1", size="1, 64, 8, 8")
    assert reasons(narrow) == {"a0": "one 1x1 kernel would cost 16.00x the MACs"}
    assert reasons(narrow, max_mac_growth=16.0) == {"a0": ""}
    # Together with its neighbour it wins.
    longer = chain("2x64x1x1", "64x2x1x1", "2x64x1x1", size="1, 64, 8, 8")
    found = survey_activations(longer, InsertGates().merging())
    assert [(s.reason, s.group) for s in found] == [("", 0), ("", 0)]
    seven = chain(*["4x4x3x3"] * 2)
    assert "max-kernel=4" in reasons(seven, max_kernel=4)["a0"]


def test_no_site_is_one_error_with_reasons() -> None:
    graph = graph_of(
        f"%c = Conv(%x, %w) {P0}\n%r = Activation(%c) {RELU}\nreturn y=%r", w="4x4x1x1"
    )
    with pytest.raises(PassError, match=r"no activation whose removal.*r: its result is an output"):
        run(graph, InsertGates())
    run(graph, InsertGates(sites="r"))  # By name it goes anywhere.
    with pytest.raises(
        PassError, match="needs no gates: r is a gate; remove gates by remove-activations first"
    ):
        Pipeline(InsertGates()).run(graph)
    with pytest.raises(PassError, match="no activations"):
        run(graph_of(f"%c = Conv(%x, %w) {P0}\nreturn y=%c", w="4x4x1x1"), InsertGates())


def test_names_and_patterns() -> None:
    graph = chain(*["4x4x1x1"] * 4)
    run(graph, InsertGates(sites=("a0", "?2")))
    assert [n.name for n in graph.nodes if isinstance(n.op, Gate)] == ["a0", "a2"]
    with pytest.raises(PassError, match="'a9' is not an activation of this graph; known are a0"):
        run(chain("4x4x1x1", "4x4x1x1"), InsertGates(sites="a9"))


def test_names_are_unique() -> None:
    graph = chain(*["4x4x1x1"] * 4)
    for node in graph.nodes:
        if node.name in ("a0", "a1"):
            node.name = "act"
    assert list(site_names(graph).values()) == ["act_1", "act_2", "a2"]


@pytest.mark.parametrize(("tie", "groups"), [
    ((), 4), ("f.*", 2), (("f.0", "f.*"), 2), ("f.*.*", 4), ("*", 1), ("block", 4),
])  # fmt: skip
def test_ties_by_name(tie: Any, groups: int) -> None:
    graph = chain(*["4x4x1x1"] * 5)
    names = iter(["f.0.a", "f.0.b", "f.1.a", "f.1.b"])
    for node in graph.nodes:
        if node.op.name == "Activation":
            node.name = next(names)
    run(graph, InsertGates(tie=tie))
    assert len({n.inputs[1] for n in graph.nodes if isinstance(n.op, Gate)}) == groups
    noted = "insert-gates: tie f.*.* ties none of the 4 sites" in "".join(graph.notes)
    assert noted == (tie == "f.*.*")


def test_a_tie_that_ties_nothing() -> None:
    with pytest.raises(PassError, match="tie 'g' matches none of the gated sites"):
        run(chain("4x4x1x1", "4x4x1x1"), InsertGates(tie="g"))


@pytest.mark.parametrize("text", [
    "insert-gates{value=2}", "insert-gates{mode=hard}", "insert-gates{mode=top-k,value=0.5}",
    "insert-gates{max-kernel=0}", "remove-activations{threshold=2}", "remove-activations{keep=-1}",
    "remove-activations{keep=1,names=a}", "remove-activations{plan=p,threshold=0.1}",
])  # fmt: skip
def test_wrong_options(text: str) -> None:
    with pytest.raises(PassError):
        Pipeline(text)


@pytest.mark.parametrize("text", [
    "insert-gates{sites=[a*,b],mode=top-k,tie=block}", "remove-activations{names=[a,b]}",
    "remove-activations{names=a}", "remove-activations{keep=3}", "remove-activations{plan=p.json}",
])  # fmt: skip
def test_pipeline_texts(text: str) -> None:
    assert str(Pipeline(text)) == text


# Removing.


def gated(*values: float, tie: tuple[int, ...] = ()) -> Graph:
    """A chain with gates of these values; those in ``tie`` read the value of the first of them."""
    graph = chain(*["4x4x1x1"] * (len(values) + 1))
    run(graph, InsertGates(sites="*"))
    gates = [n for n in graph.nodes if isinstance(n.op, Gate)]
    rw = Rewriter(graph)
    for i, (node, value) in enumerate(zip(gates, values, strict=True)):
        shared = gates[tie[0]].inputs[1] if i in tie[1:] else None
        number = (
            parse(f"graph g() {{\n%g: f64[1] = dense [{value}]\nreturn y=%g\n}}").outputs[0].data
        )
        assert number is not None
        rw.set_input(node, 1, shared if shared is not None else rw.constant(number, "g"))
    return graph


def kinds(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if n.name.startswith("a")]


@pytest.mark.parametrize(("options", "want"), [
    ({}, ["Activation", "Identity", "Activation", "Identity"]),
    ({"threshold": 0.9}, ["Activation", "Identity", "Identity", "Identity"]),
    ({"threshold": 0.0}, ["Activation"] * 4),
    ({"keep": 3}, ["Activation", "Activation", "Activation", "Identity"]),
    ({"keep": 0}, ["Identity"] * 4),
    ({"keep": 4}, ["Activation"] * 4),
    ({"names": "a0"}, ["Identity", "Gate", "Gate", "Gate"]),
    ({"names": ("a?",)}, ["Identity"] * 4),
])  # fmt: skip
def test_by_gates_and_by_name(options: Any, want: list[str]) -> None:
    graph = gated(1.0, 0.3, 0.8, 0.0)
    run(graph, RemoveActivations(**options))
    assert kinds(graph) == want


def test_each_rewrite_says_how_exact_it_is() -> None:
    graph = gated(1.0, 0.3, 0.8, 0.0)
    before = evaluate(gated(1.0, 0.0))
    rw = run(graph, RemoveActivations())
    assert [(r.what, str(r.exactness)) for r in rw.rewrites] == [
        ("keep relu (gate 1)", "exact"), ("remove relu (gate 0.3)", "approximate"),
        ("keep relu (gate 0.8)", "approximate"), ("remove relu (gate 0)", "exact"),
    ]  # fmt: skip
    assert rw.worst is Exactness.APPROXIMATE
    sure = gated(1.0, 0.0)
    assert run(sure, RemoveActivations()).worst is Exactness.EXACT
    assert np.array_equal(evaluate(sure)[0], before[0])


def test_removing_plain_activations_is_approximate() -> None:
    graph = chain("4x4x1x1", "4x4x1x1")
    assert run(graph, RemoveActivations("a0")).worst is Exactness.APPROXIMATE
    [record] = Pipeline("remove-activations{names=a0}").run(chain("4x4x1x1", "4x4x1x1"))
    assert record.exactness is Exactness.APPROXIMATE


def test_tied_gates_count_once() -> None:
    graph = gated(0.9, 0.5, 0.1, 0.4, tie=(0, 2))
    run(graph, RemoveActivations(keep=2))
    assert kinds(graph) == ["Activation", "Activation", "Activation", "Identity"]


def test_a_cut_between_equal_gates_is_refused() -> None:
    graph = gated(1.0, 1.0, 0.0)
    with pytest.raises(
        PassError, match=r"keep=1 would keep a0 and remove a1, but both gates are 1"
    ):
        run(graph, RemoveActivations(keep=1))
    run(graph, RemoveActivations(keep=2))
    with pytest.raises(PassError, match="only 3 gates"):
        run(gated(1.0, 1.0, 0.0), RemoveActivations(keep=4))


def test_what_cannot_be_removed() -> None:
    with pytest.raises(PassError, match="the graph has no gates"):
        run(chain("4x4x1x1", "4x4x1x1"), RemoveActivations())
    with pytest.raises(PassError, match="name 'conv' is not an activation"):
        run(chain("4x4x1x1", "4x4x1x1"), RemoveActivations("conv"))
    with pytest.raises(PassError, match=r"gate a0 is 1\.5, not between 0 and 1"):
        run(gated(1.5), RemoveActivations())


# Plans.


def plan(path: Path, graph: Graph, **keep: bool) -> Path:
    path.write_text(json.dumps(RemovalPlan.of(graph, keep).as_json()))
    return path


def test_plans_fit_gated_and_plain_networks(tmp_path: Path) -> None:
    graph = gated(1.0, 0.0, 0.0)
    path = str(plan(tmp_path / "p.json", graph, a0=True, a1=False))
    rw = run(graph, RemoveActivations(plan=path))
    assert kinds(graph) == ["Activation", "Identity", "Gate"]
    assert [(r.node, r.reason) for r in rw.refusals] == [
        ("a2", "the gate stays: it is neither named nor in the plan")
    ]
    plain = chain(*["4x4x1x1"] * 4)
    run(plain, RemoveActivations(plan=path))
    assert kinds(plain) == ["Activation", "Identity", "Activation"]


def test_a_plan_fits_other_batch_sizes_and_unknown_ones(tmp_path: Path) -> None:
    graph = chain("4x4x1x1", "4x4x1x1")
    path = plan(tmp_path / "p.json", graph, a0=False)
    for size in ("7, 4, 8, 8", "N, 4, H, 8", "?, 4, ?, ?"):
        other = parse(
            re.sub(r"%(\w+): f64\[1, 4, 8, 8\]", rf"%\1: f64[{size}]", graph.text()).replace(
                "1, 4, 8, 8", size
            )
        )
        run(other, RemoveActivations(plan=str(path)))


@pytest.mark.parametrize(("kernels", "said"), [
    (["4x4x1x1"], "there is no activation 'a0' (relu [?, 4, 8, 8]) here"),
    (["8x4x1x1", "4x8x1x1"], "'a0' is [?, 4, 8, 8] in the plan and [?, 8, 8, 8] here"),
    (["4x4x1x1"] * 3, "it has 1 activations, this network has 2"),
])  # fmt: skip
def test_a_plan_for_another_network(kernels: list[str], said: str, tmp_path: Path) -> None:
    path = plan(tmp_path / "p.json", chain("4x4x1x1", "4x4x1x1"), a0=False)
    with pytest.raises(PassError) as found:
        run(chain(*kernels), RemoveActivations(plan=str(path)))
    assert str(found.value).startswith("remove-activations: ")
    assert said in str(found.value)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_another_kind_is_another_network(tmp_path: Path) -> None:
    graph = chain("4x4x1x1", "4x4x1x1")
    path = plan(tmp_path / "p.json", graph, a0=False)
    other = parse(graph.text().replace('"relu"', '"silu"'))
    with pytest.raises(PassError, match="'a0' is relu in the plan and silu here"):
        run(other, RemoveActivations(plan=str(path)))


def test_damaged_plans(tmp_path: Path) -> None:
    path = plan(tmp_path / "p.json", chain("4x4x1x1", "4x4x1x1"), a0=False)
    good = json.loads(path.read_text())
    damage: list[Any] = [
        [], {}, {**good, "version": 2}, {**good, "digest": "sha256:0"}, {**good, "sites": 3},
        {**good, "activations": "x"}, {**good, "activations": 5}, {**good, "sites": [{}]},
        {**good, "sites": [{**good["sites"][0], "name": "b"}]},
        {**good, "sites": [{**good["sites"][0], "keep": 1}]},
        {**good, "sites": [{**good["sites"][0], "shape": "x"}]},
    ]  # fmt: skip
    texts = [json.dumps(data).encode() for data in damage]
    for text in [*texts, b"", b"\xff\xfe", b"[" * 200_000, path.read_bytes()[:40]]:
        path.write_bytes(text)
        with pytest.raises(UsageError) as found:
            read_plan(str(path))
        assert "p.json" in str(found.value)
    # What is decided may be edited.
    good["sites"][0]["keep"] = True
    path.write_text(json.dumps(good))
    assert read_plan(str(path)).sites[0].keep
    with pytest.raises(UsageError, match=r"cannot read the plan .*No such file"):
        read_plan(str(tmp_path / "missing.json"))


# Endings.


def ops(graph: Graph) -> list[str]:
    return [n.op.kind if n.op.name == "Activation" else n.op.name for n in graph.nodes]  # type: ignore[attr-defined]


def test_a_stretch_ends_in_an_activation_of_its_own() -> None:
    block = f"""%a{{0}} = Conv(%x{{0}}, %w0) {P0}
    %r{{0}} = Activation(%a{{0}}) {RELU}
    %b{{0}} = Conv(%r{{0}}, %w1) {P0}
    %s{{0}} = Scale(%b{{0}}, %v)
    %x{{1}} = Add(%s{{0}}, %x{{0}})"""
    blocks = [block.replace("{0}", str(i)).replace("{1}", str(i + 1)) for i in range(2)]
    body = "\n".join(["%x0 = Identity(%x)", *blocks, f"%y = Conv(%x2, %w0) {P0}\nreturn y=%y"])
    shapes = {"w0": "16x4x1x1", "w1": "4x16x1x1", "v": "4"}
    graph = graph_of(body, **shapes)
    run(graph, RemoveActivations(names=("r0", "r1"), ending="relu6"))
    stretch = ["Conv", "Identity", "Conv", "Scale", "Add", "relu6"]
    assert ops(graph) == ["Identity", *stretch, *stretch, "Conv"]
    # Everybody reads the ending, the skip of the next block too.
    first = next(n for n in graph.nodes if n.op.name == "Activation")
    assert {n.op.name for n in first.output.users} == {"Conv", "Add"}
    Pipeline("merge-linear,prune-dead").run(graph)
    assert ops(graph) == ["Conv", "relu6", "Conv", "relu6", "Conv"]
    # An activation that stands there already is enough.
    other = chain(*["4x4x1x1"] * 4)
    run(other, RemoveActivations(names="a0", ending="relu6"))
    assert ops(other) == ["Conv", "Identity", "Conv", "relu", "Conv", "relu", "Conv"]
    with pytest.raises(PassError, match="ending must be one of relu, relu6"):
        Pipeline("remove-activations{ending=elu}")


# Straight lines.


def sample(graph: Graph, x: Any) -> dict[str, tuple[Any, Any]]:
    """What goes into every activation and what comes out of it ungated, as (channels, samples)."""
    found = {}
    for name in ("a0", "a1"):
        twin = graph.clone()
        node = next(n for n in twin.nodes if n.name == name)
        assert node.inputs[0] is not None
        twin._set_output(0, node.inputs[0])
        [before] = evaluate(twin, [x])
        rows = before.swapaxes(0, 1).reshape(before.shape[1], -1)
        found[name] = rows, np.maximum(rows, 0)
    return found


@pytest.mark.parametrize("gate", [None, 0.4])
def test_the_best_line_is_that_of_least_squares(gate: float | None) -> None:
    x = np.random.default_rng(5).standard_normal((1, 4, 8, 8))
    graph = chain("4x4x1x1", "4x4x3x3", "4x4x1x1") if gate is None else gated(gate, gate)
    found = sample(graph, x)
    step = RemoveActivations(names="a0", by="affine")
    rw = Rewriter(graph)
    step.run(graph, rw, Context(calibration=Oracle([x])))
    graph.verify()
    assert rw.worst is Exactness.APPROXIMATE
    assert "a line for each channel" in rw.rewrites[0].what
    node = next(n for n in graph.nodes if n.name == "a0")
    assert node.op.name == "Scale"
    slope, offset = (v.data.float64() for v in node.inputs[1:] if v is not None and v.data)
    g = 1.0 if gate is None else gate
    for channel, (xs, ys) in enumerate(zip(*found["a0"], strict=True)):
        a, b = np.polyfit(xs, g * ys + (1 - g) * xs, 1)
        assert (slope[channel], offset[channel]) == pytest.approx((a, b), rel=1e-9)


def test_gates_with_lines_close_to_them() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 8, 8))
    plain = chain("4x4x1x1", "4x4x3x3", "4x4x1x1", size="3, 4, 8, 8")
    ctx = Context(calibration=Oracle([x]))
    fitted = plain.clone()
    Pipeline("remove-activations{names=*,by=affine}").run(fitted, ctx)
    graph = plain.clone()
    rewrites = Pipeline("insert-gates{sites=*,by=affine}").run(graph, ctx)
    assert {r.exactness for r in rewrites} == {Exactness.EXACT}
    assert np.array_equal(evaluate(graph, [x])[0], evaluate(plain, [x])[0])
    again = parse(graph.text(full=True))
    assert again.text() == graph.text()
    for node in graph.nodes:
        if isinstance(node.op, Gate):
            rw = Rewriter(graph)
            rw.set_input(node, 1, rw.constant(ArrayTensor(np.array([0.0])), "closed"))
    assert np.allclose(evaluate(graph, [x])[0], evaluate(fitted, [x])[0], rtol=0, atol=1e-12)
    # What is closed goes exactly, and the lines merge.
    removed = Pipeline("remove-activations,hoist-padding,merge-linear,prune-dead")
    want = evaluate(graph, [x])[0]
    removed.run(graph, Context())
    assert [n.op.name for n in graph.nodes] == ["Conv"]
    inner = (..., slice(1, -1), slice(1, -1))
    assert np.allclose(evaluate(graph, [x])[0][inner], want[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("by", ["identity", "affine"])
def test_half_open_gates_with_lines(by: Any) -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 8, 8))
    graph = chain("4x4x1x1", "4x4x3x3", "4x4x1x1", size="3, 4, 8, 8")
    found = sample(graph, x)["a0"]
    ctx = Context(calibration=Oracle([x]))
    Pipeline("insert-gates{sites=a0,value=0.25,by=affine}").run(graph, ctx)
    node = next(n for n in graph.nodes if n.name == "a0")
    lines = [np.polyfit(xs, ys, 1) for xs, ys in zip(*found, strict=True)]
    for place in (0, 1):
        value = node.required(3 + place)
        assert value.data is not None
        assert value.data.float64() == pytest.approx([line[place] for line in lines], rel=1e-9)
    # The line of the activation, measured through the gate, is the gate's own: so is any mixture of the two.
    Pipeline(f"remove-activations{{names=a0,by={by}}}").run(graph, ctx)
    node = next(n for n in graph.nodes if n.name == "a0")
    for place in (0, 1):
        value = node.required(1 + place)
        assert value.data is not None
        assert value.data.float64() == pytest.approx([line[place] for line in lines], rel=1e-9)


def test_kept_gates_with_lines_are_plain_activations() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 8, 8))
    graph = chain("4x4x1x1", "4x4x1x1", size="3, 4, 8, 8")
    want = evaluate(graph, [x])[0]
    Pipeline("insert-gates{by=affine},remove-activations,prune-dead").run(
        graph, Context(calibration=Oracle([x]))
    )
    assert [n.op.name for n in graph.nodes] == ["Conv", "Activation", "Conv"]
    assert np.array_equal(evaluate(graph, [x])[0], want)


def test_lines_of_gates_need_data() -> None:
    with pytest.raises(PassError, match="needs calibration data: none were given"):
        Pipeline("insert-gates{by=affine}").run(chain("4x4x1x1", "4x4x1x1"))


def test_lines_are_better_than_identities_and_merge() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 8, 8))
    errors = []
    for by in ("affine", "identity"):
        graph = chain("4x4x1x1", "4x4x1x1", "4x4x1x1", size="3, 4, 8, 8")
        [want] = evaluate(graph, [x])
        ctx = Context(calibration=Oracle([x]))
        Pipeline(f"remove-activations{{names=*,by={by}}},merge-linear,prune-dead").run(graph, ctx)
        assert [n.op.name for n in graph.nodes] == ["Conv"]
        errors.append(np.square(evaluate(graph, [x])[0] - want).mean())
    assert errors[0] < 0.5 * errors[1]


def test_lines_need_sound_moments() -> None:
    step = RemoveActivations(names="a0", by="affine")
    with pytest.raises(PassError, match="needs calibration data: none were given"):
        Pipeline(step).run(chain("4x4x1x1", "4x4x1x1"))
    ones = np.ones(4)
    for bad in (
        ActivationStats(1, ones, ones, -ones, ones),
        ActivationStats(1, ones, ones * np.nan, ones, ones),
    ):
        graph = chain("4x4x1x1", "4x4x1x1")
        with pytest.raises(PassError, match="a0 has no best line"):
            step.run(graph, Rewriter(graph), Context(calibration=Fixed(bad)))
    # A channel that never varies keeps its mean.
    graph = chain("4x4x1x1", "4x4x1x1")
    flat = ActivationStats(1, 2 * ones, 3 * ones, 0 * ones, 0 * ones)
    step.run(graph, Rewriter(graph), Context(calibration=Fixed(flat)))
    node = next(n for n in graph.nodes if n.name == "a0")
    slope, offset = (v.data.float64() for v in node.inputs[1:] if v is not None and v.data)
    assert (list(slope), list(offset)) == ([1.0] * 4, [1.0] * 4)
    graph = chain("4x4x1x1", "4x4x1x1")
    node = next(n for n in graph.nodes if n.name == "a0")
    node.output.type = node.output.type.with_shape((None, None, 5, 5))
    with pytest.raises(PassError, match="number of channels of a0 is not known"):
        step.run(graph, Rewriter(graph), Context(calibration=Fixed(flat)))


class Fixed(Oracle):
    """The same moments whatever is asked."""

    def __init__(self, moments: ActivationStats) -> None:
        super().__init__()
        self.moments = moments

    def collect(self, graph: Graph, requests: Any) -> Any:
        return dict.fromkeys(requests, self.moments)


def test_a_closed_gate_needs_no_line() -> None:
    graph = gated(0.0, 0.4)
    x = np.random.default_rng(5).standard_normal((1, 4, 8, 8))
    rw = Rewriter(graph)
    step = RemoveActivations(threshold=0.5, by="affine")
    step.run(graph, rw, Context(calibration=Oracle([x])))
    assert [n.op.name for n in graph.nodes if n.name in ("a0", "a1")] == ["Identity", "Scale"]


def test_choosing_sites_is_linear() -> None:
    counts = []
    for n in (20, 40, 80):
        graph = chain(*["4x4x3x3"] * n)
        counts.append(work(lambda graph=graph: survey_activations(graph, InsertGates().merging())))
    assert counts[2] - counts[1] < 2.3 * (counts[1] - counts[0])
