"""Pipelines: their text, the registry, and the observers that watch a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphshrink.ir import (
    UNKNOWN,
    Activation,
    DType,
    Exactness,
    Graph,
    Identity,
    Rewriter,
    Scale,
    SplatTensor,
    TensorType,
    parse,
)
from graphshrink.passes import (
    CALIBRATION_DATA,
    KNOWN_RANKS,
    NO_GATES,
    Check,
    CheckFailed,
    Condition,
    Context,
    Dump,
    FoldConstants,
    FunctionPass,
    MergeLinear,
    Pass,
    PassError,
    PassRecord,
    Pipeline,
    PruneDead,
    Repeat,
    Timing,
    Verify,
    known_passes,
    register,
    relative_error,
)
from graphshrink.passes.infra import registry as base
from graphshrink.passes.infra.repeat import MAX_ROUNDS
from support.evaluate import evaluate

TEXT = """graph g(%x: f64[1, 4]) {
  %s: f64[4] = dense [1.0, 2.0, 3.0, 4.0]
  %a: f64[1, 4] = Scale(%x, %s)
  %b: f64[1, 4] = Activation(%a) {kind="relu"}
  %c: f64[1, 4] = Identity(%b)
  return y=%c
}
"""


@pytest.fixture
def graph() -> Graph:
    return parse(TEXT)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that a test registers go away with it."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


@dataclass(frozen=True)
class Options(Pass):
    """Options of every kind."""

    name = "test-options"
    count: int = 3
    ratio: float = 0.5
    deep_copy: bool = False
    title: str = "plain"
    maybe: int | None = None
    label: str | None = "x"
    either: int | str = 0
    kind: Literal["soft", "hard"] = "soft"
    level: Literal[1, 2] = 1
    sizes: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        pass


WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["None", "true", "1", "1.5", "inf", "-3", "a,b", "a=b", 'q"', "\\", '\\"', " x ", "{", "]"]),
)  # fmt: skip
OPTIONS = st.builds(
    Options,
    count=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    deep_copy=st.booleans(),
    title=WORDS,
    maybe=st.none() | st.integers(),
    label=st.none() | WORDS,
    either=st.integers() | WORDS,
    kind=st.sampled_from(["soft", "hard"]),
    level=st.sampled_from([1, 2]),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    words=st.lists(WORDS, max_size=3).map(tuple),
    nested=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
)


@given(st.lists(OPTIONS, max_size=3))
def test_text_round_trips(steps: list[Options]) -> None:
    base._REGISTRY.setdefault(Options.name, Options)
    pipeline = Pipeline(["prune-dead", *steps])
    read = Pipeline.parse(str(pipeline))
    assert read == pipeline
    assert hash(read) == hash(pipeline)
    assert str(read) == str(pipeline)
    for ours, theirs in zip(pipeline.passes[1:], read.passes[1:], strict=True):
        for f in fields(Options):
            assert type(getattr(ours, f.name)) is type(getattr(theirs, f.name))


def test_ways_to_say_the_same() -> None:
    same = [
        Pipeline("merge-linear{max-kernel=5},prune-dead"),
        Pipeline(" merge-linear { max-kernel = 5 } ,\n prune-dead "),
        Pipeline([MergeLinear(max_kernel=5), PruneDead]),
        Pipeline(["merge-linear{max-kernel=5}", PruneDead()]),
        Pipeline(MergeLinear(max_kernel=5)) + "prune-dead",
        Pipeline([Pipeline("merge-linear{max-kernel=5}"), [["prune-dead"]]]),
    ]
    assert len({str(p) for p in same}) == len(set(same)) == 1
    assert str(same[0]) == "merge-linear{max-kernel=5},prune-dead"
    assert repr(same[0]) == "Pipeline('merge-linear{max-kernel=5},prune-dead')"
    assert [len(Pipeline(p)) for p in ("", " ", [], "prune-dead")] == [0, 0, 0, 1]
    # A default that is given is not printed.
    default = MergeLinear().max_kernel
    assert str(Pipeline(f"merge-linear{{max-kernel={default}}}")) == "merge-linear"
    assert Pipeline("prune-dead") != "prune-dead"


@pytest.mark.parametrize(("text", "message"), [
    ("prune-ded", "unknown pass 'prune-ded'; did you mean 'prune-dead'?"),
    ("zzz", "unknown pass 'zzz'; known are .*fold-constants.*prune-dead"),
    ("prune-dead,,prune-dead", "empty entry between commas"),
    ("prune-dead,", "empty entry between commas"),
    (",", "empty entry"),
    ("merge-linear{max-kernel=3", "do not match"),
    ("merge-linear}", "do not match"),
    ('test-options{title="a}', "do not match"),
    ("merge-linear{max-kernel=3}x", "is not a pass"),
    ("merge linear", "is not a pass"),
    ("{max-kernel=3}", "is not a pass"),
    ("merge-linear{kernel=3}", "no option 'kernel'; did you mean 'max-kernel'"),
    ("prune-dead{deep=true}", "'prune-dead' has no option 'deep'; there are none"),
    ("merge-linear{max-kernel=three}", "'max-kernel' takes int, at least 1, not 'three'"),
    ("merge-linear{max-kernel=3.5}", "takes int, at least 1, not '3.5'"),
    ("merge-linear{max-kernel}", "takes int, at least 1, not 'true'"),
    ("merge-linear{max-kernel=3,max-kernel=5}", "given twice"),
    ("fold-constants{max-growth=-1}", "must be at least 0, not -1"),
    ("test-options{deep-copy=yes}", "takes bool, not 'yes'"),
    ("test-options{kind=medium}", "is one of .*, not 'medium'"),
    ("test-options{sizes=3}", "takes .*, not '3'"),
    ("test-options{sizes=[a]}", "takes"),
    ("test-options{maybe=x}", "takes"),
])  # fmt: skip
def test_wrong_texts(text: str, message: str) -> None:
    register(Options)
    with pytest.raises(PassError, match=message):
        Pipeline(text)


def test_a_bare_option_is_true() -> None:
    register(Options)
    assert Pipeline("test-options{deep-copy}") == Pipeline(Options(deep_copy=True))


@pytest.mark.parametrize("step", [3, None, [3], int])
def test_what_is_no_pass(step: Any) -> None:
    with pytest.raises(PassError, match="not a"):
        Pipeline(step)


# The registry.


def make(name: str, **body: Any) -> type[Pass]:
    return type("Made", (Pass,), {"name": name, "run": lambda self, g, rw, ctx: None, **body})


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "two words", "-x", "x-", "a--b", 3])
def test_malformed_names(name: Any) -> None:
    with pytest.raises(PassError, match="is not a pass name"):
        register(make(name))


def test_names_are_taken_once() -> None:
    first = register(make("test-taken"))
    assert register(first) is first
    with pytest.raises(PassError, match=r"'test-taken' is taken by .*Made; rename far:Made"):
        register(make("test-taken", __module__="far"))
    with pytest.raises(PassError, match=r"'pivot' is taken by graphshrink.passes.blocks.pivot"):
        register(make("pivot"))
    assert known_passes()["test-taken"] is first


def test_a_class_that_is_defined_again_replaces_the_first_one() -> None:
    register(make("test-again"))
    second = register(make("test-again"))
    assert known_passes()["test-again"] is second


def test_ours_are_known() -> None:
    found = known_passes()
    assert found["merge-linear"] is MergeLinear
    assert found["fold-constants"] is FoldConstants
    assert list(found) == sorted(found)
    for cls in (MergeLinear, FoldConstants, PruneDead):
        assert cls.exactness is Exactness.EXACT
        assert cls.__doc__


def published(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str, Any]) -> None:
    """Let these entry points be installed: name, value, what loading gives or raises."""

    def load(what: Any) -> Callable[[], Any]:
        def found() -> Any:
            if isinstance(what, Exception):
                raise what
            return what

        return found

    made = [SimpleNamespace(name=n, value=v, load=load(w)) for n, v, w in points]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: made)
    monkeypatch.setattr(base, "_published", None)


def test_entry_points_are_loaded_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = make("far-pass")
    bad = ImportError("no module named gone")
    published(monkeypatch, ("far-pass", "far:Made", cls), ("broken-pass", "gone:Made", bad))
    assert Pipeline("far-pass").passes[0].name == "far-pass"
    with pytest.raises(PassError, match=r"'broken-pass' \(gone:Made\) does not load: no module"):
        Pipeline("broken-pass")
    with pytest.raises(PassError, match="did you mean 'far-pass'"):
        Pipeline("far-pas")


def test_an_entry_point_may_be_a_function(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    def relu_to_tanh(graph: Graph, rw: Rewriter) -> None:
        """Replace every ReLU."""
        for node in graph.nodes:
            if node.op == Activation("relu"):
                rw.replace(node, Activation("tanh"), node.inputs)

    published(monkeypatch, ("far-function", "far:relu_to_tanh", relu_to_tanh))
    (record,) = Pipeline("far-function").run(graph)
    assert record.exactness is Exactness.APPROXIMATE
    assert known_passes()["far-function"].__doc__ == "Replace every ReLU."
    assert any(n.op == Activation("tanh") for n in graph.nodes)


@pytest.mark.parametrize(("points", "name", "message"), [
    ([("prune-dead", "far:Prune", None)], "prune-dead2", "published by far:Prune but taken by"),
    ([("a-pass", "one:A", None), ("a-pass", "two:A", None)], "x", "published by two:A but taken by one:A"),
    ([("a-pass", "one:A", 3)], "a-pass", "is neither a Pass nor a function"),
    ([("a-pass", "one:A", int)], "a-pass", "is neither a Pass nor a function"),
    ([("a-pass", "one:A", make("b-pass"))], "a-pass", "is a pass named 'b-pass'"),
])  # fmt: skip
def test_entry_points_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, points: list[Any], name: str, message: str
) -> None:
    published(monkeypatch, *points)
    with pytest.raises(PassError, match=message):
        Pipeline(name)


def test_a_class_may_be_decorated_and_published(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = register(make("both-ways", __module__="far"))
    published(monkeypatch, ("both-ways", "far:Made", cls))
    assert known_passes()["both-ways"] is cls


# Conditions and repetition.


def test_conditions_are_checked_before_and_after(graph: Graph) -> None:
    asked: list[str] = []

    @dataclass(frozen=True)
    class Careful(Pass):
        name = "test-careful"
        requires = (Condition("sums", lambda g, ctx: "there is no sum", "add one"),)

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            asked.append("ran")

    with pytest.raises(PassError, match="pass test-careful needs sums: there is no sum; add one"):
        Pipeline(Careful()).run(graph)
    assert not asked

    class Promising(Careful):
        requires = ()
        ensures = (Condition("sums", lambda g, ctx: "there is no sum", "add one"),)

    with pytest.raises(PassError, match="test-careful promises sums, but there is no sum"):
        Pipeline(Promising()).run(graph)
    assert asked == ["ran"]


def test_known_conditions(graph: Graph) -> None:
    ctx = Context()
    assert KNOWN_RANKS.problem(graph, ctx) == ""
    assert NO_GATES.problem(graph, ctx) == ""
    assert CALIBRATION_DATA.problem(graph, ctx) == "none were given"
    next(iter(graph.nodes)).output.type = UNKNOWN
    assert "is not known" in KNOWN_RANKS.problem(graph, ctx)


def countdown(count: int) -> tuple[Callable[[Graph, Rewriter], None], list[int]]:
    """A pass that changes something so many times, and the list of its runs."""
    runs: list[int] = []

    def step(graph: Graph, rw: Rewriter) -> None:
        runs.append(len(runs))
        if len(runs) <= count:
            relu = next(n for n in graph.nodes if isinstance(n.op, Activation))
            with rw.rewrite("again", relu):
                rw.replace(relu, Activation("tanh" if len(runs) % 2 else "relu"), relu.inputs)

    return step, runs


def test_repeat_ends_when_nothing_changes(graph: Graph) -> None:
    step, runs = countdown(3)
    other, others = countdown(0)
    records = Pipeline(Repeat((FunctionPass(step), FunctionPass(other)))).run(graph)
    assert (len(runs), len(others), len(records)) == (4, 4, 8)
    assert not graph.notes


def test_repeat_that_never_ends_is_stopped_and_said(graph: Graph) -> None:
    step, runs = countdown(10**6)
    Pipeline(Repeat((FunctionPass(step),))).run(graph)
    assert len(runs) == MAX_ROUNDS
    assert "still changed something after 20 rounds" in graph.notes[-1]


def test_repeat_in_text() -> None:
    text = "fold-constants,repeat{merge-linear{max-kernel=5},repeat{prune-dead}}"
    assert str(Pipeline(text)) == text
    assert Pipeline(text).passes[1].exactness is Exactness.EXACT
    for wrong in ("repeat", "repeat{}", "repeat{merge-linear", "repeat{max-kernel=5}"):
        with pytest.raises(PassError):
            Pipeline(wrong)


# Observers.


@dataclass(frozen=True)
class Doubles(Pass):
    """Multiplies by a factor and claims to be exact."""

    name = "test-doubles"
    factor: float = 2.0
    exactness = Exactness.EXACT

    def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
        relu = next(n for n in graph.nodes if isinstance(n.op, Activation))
        with rw.rewrite("double", relu):
            by = rw.constant(SplatTensor((1,), DType.F64, self.factor))
            made = rw.insert(Scale(1), [relu.output, by], after=relu)
            rw.replace_uses(relu.output, made.output)
            rw.set_input(made, 0, relu.output)


def runner(graph: Graph) -> list[Any]:
    return evaluate(graph)


def broken_order(graph: Graph, rw: Rewriter) -> None:
    first = next(iter(graph.nodes))
    rw.set_input(first, 0, graph.value("b"))


def lost_use(graph: Graph, rw: Rewriter) -> None:
    graph.value("a")._uses.clear()


def renamed_output(graph: Graph, rw: Rewriter) -> None:
    graph.output_names[0] = "other"


def new_input(graph: Graph, rw: Rewriter) -> None:
    graph.add_input("more")


def other_input_type(graph: Graph, rw: Rewriter) -> None:
    graph.inputs[0].type = TensorType(DType.F64, ("n", 4))


def other_output_type(graph: Graph, rw: Rewriter) -> None:
    small = parse(
        "graph h(%x: f64[1, 4]) {\n  %y: f64[4] = Squeeze(%x) {axes=[0]}\n  return y=%y\n}"
    )
    graph.adopt(small)


def fails(graph: Graph, rw: Rewriter) -> None:
    raise KeyError("missing")


@pytest.mark.parametrize(("step", "message"), [
    (broken_order, "pass broken-order left a broken graph: a reads %b before it is defined"),
    (lost_use, "pass lost-use left a broken graph: the use list of %a is wrong"),
    (renamed_output, "pass renamed-output changed the inputs or the names of the outputs"),
    (new_input, "pass new-input changed the inputs"),
    (other_input_type, "pass other-input-type changed the inputs"),
    (other_output_type, r"pass other-output-type changed output y from f64\[1, 4\] to f64\[4\]"),
    (fails, "pass fails failed: KeyError: 'missing'"),
])  # fmt: skip
def test_a_pass_that_breaks_something_is_named(
    graph: Graph, step: Callable[[Graph, Rewriter], None], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        Pipeline(["prune-dead", step]).run(graph)


def test_types_may_become_known(graph: Graph) -> None:
    graph.outputs[0].type = TensorType()
    Pipeline("prune-dead").run(graph)
    assert graph.outputs[0].type == TensorType(DType.F64, (1, 4))


def test_a_wrong_number_is_caught(graph: Graph) -> None:
    with pytest.raises(CheckFailed, match=r"pass test-doubles .*moved by 1\.00e\+00 .*rewrote b$"):
        Pipeline(["prune-dead", Doubles()]).run(graph, observers=[Check(runner)])


def test_a_wrong_number_is_rolled_back(graph: Graph) -> None:
    before = graph.clone()
    check = Check(runner, "rollback")
    records = Pipeline([Doubles(), "prune-dead", Doubles(1.0)]).run(graph, observers=[check])
    assert [r.rolled_back for r in records] == [True, False, False]
    assert records[0].error == pytest.approx(1.0)
    assert records[2].error == 0.0
    for want, got in zip(evaluate(before), evaluate(graph), strict=True):
        np.testing.assert_array_equal(want, got)
    # What was rolled back is gone, what came after is there.
    assert [n.op.name for n in graph.nodes] == ["Scale", "Activation", "Scale"]
    graph.verify()


def test_what_is_announced_as_approximate_passes(graph: Graph) -> None:
    @dataclass(frozen=True)
    class Rough(Doubles):
        exactness = Exactness.APPROXIMATE

    records = Pipeline([Rough(), "prune-dead"]).run(graph, observers=[Check(runner)])
    assert records[0].error == pytest.approx(1.0)
    assert records[0].exactness is Exactness.APPROXIMATE
    # The next pass is held against the new outputs.
    assert records[1].error == 0.0


@pytest.mark.parametrize(("factor", "tolerance", "passes"), [
    (1 + 1e-11, None, True), (1 + 1e-9, None, False), (1 + 1e-9, 1e-8, True), (1 + 1e-7, 1e-8, False),
])  # fmt: skip
def test_tolerance(graph: Graph, factor: float, tolerance: float | None, passes: bool) -> None:
    check = Check(runner, tolerance=tolerance)
    if passes:
        Pipeline([Doubles(factor)]).run(graph, observers=[check])
    else:
        with pytest.raises(CheckFailed):
            Pipeline([Doubles(factor)]).run(graph, observers=[check])


def test_a_model_that_amplifies_rounding_is_held_to_what_rounding_does(graph: Graph) -> None:
    """A cancelling network: one rounding unit of an input is a hundredth of its output."""

    def off_by(error: float) -> Callable[[Graph], list[Any]]:
        return lambda g: [y * (1 + error) for y in runner(g)]

    def check(*moves: float) -> Check:
        return Check(runner, nudged=lambda: [off_by(move) for move in moves])

    rough = Doubles(1.03)
    records = Pipeline([rough]).run(graph.clone(), observers=[check(0.0, 0.01, 0.004)])
    assert records[0].error == pytest.approx(0.03)
    with pytest.raises(CheckFailed, match=r"moved by 3\.00e-02 .*\(allowed 0\.02\)"):
        Pipeline([rough]).run(graph.clone(), observers=[check(0.005, 0.002)])
    # Chaos excuses nothing.
    with pytest.raises(CheckFailed):
        Pipeline([Doubles(1.2)]).run(graph.clone(), observers=[check(0.9)])
    # Who gives a tolerance means it.
    strict = Check(runner, tolerance=1e-3, nudged=lambda: [off_by(0.01)])
    with pytest.raises(CheckFailed):
        Pipeline([rough]).run(graph.clone(), observers=[strict])


def test_what_rounding_excuses_is_noted(graph: Graph) -> None:
    check = Check(runner, nudged=lambda: [lambda g: [y * 1.01 for y in runner(g)]])
    Pipeline([Doubles(1.03)]).run(graph, observers=[check])
    assert graph.notes[-1].startswith("test-doubles{factor=1.03} moved the outputs by 3.0e-02")


def test_checking_runs_the_graph_no_more_than_it_must(graph: Graph) -> None:
    runs = []

    def counted(graph: Graph) -> list[Any]:
        runs.append(1)
        return evaluate(graph)

    def nothing(graph: Graph, rw: Rewriter) -> None:
        pass

    Pipeline([nothing, "prune-dead", nothing]).run(graph, observers=[Check(counted)])
    assert len(runs) == 2


def test_timing_is_the_time_of_the_pass(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25, 20.0, 21.0])
    monkeypatch.setattr("graphshrink.passes.infra.observers.time.perf_counter", lambda: next(clock))
    records = Pipeline("prune-dead,prune-dead").run(graph, observers=[Timing()])
    assert [r.seconds for r in records] == [0.25, 1.0]
    assert Pipeline("prune-dead").run(parse(TEXT))[0].seconds is None


def test_dumps_are_readable_graphs(graph: Graph, tmp_path: Path) -> None:
    before = graph.text()

    def odd_name(graph: Graph, rw: Rewriter) -> None:
        rw.replace(graph.value("b").producer, Identity(), [graph.value("a")], name="é\n名")

    odd_name.__name__ = "odd/../name"
    Pipeline([odd_name, "prune-dead"]).run(graph, observers=[Dump(tmp_path / "d")])
    found = sorted((tmp_path / "d").iterdir())
    assert [p.name for p in found] == ["00-input.txt", "01-odd-name.txt", "02-prune-dead.txt"]
    texts = [p.read_text(encoding="utf-8") for p in found]
    assert texts[0] == before
    assert texts[2] == graph.text()
    assert all(parse(t).text() == t for t in texts)
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


def test_an_observer_sees_every_pass(graph: Graph) -> None:
    seen: list[tuple[str, str, int]] = []

    class Watch:
        def before(self, step: Pass, graph: Graph) -> None:
            seen.append(("before", step.name, len(graph)))

        def after(self, step: Pass, graph: Graph, record: PassRecord) -> None:
            seen.append(("after", record.text, len(graph)))

    Pipeline("prune-dead,fold-constants").run(graph, observers=[Watch(), Verify()])
    assert seen == [
        ("before", "prune-dead", 3), ("after", "prune-dead", 2),
        ("before", "fold-constants", 2), ("after", "fold-constants", 2),
    ]  # fmt: skip


def test_records_say_what_was_done(graph: Graph) -> None:
    def refuses(graph: Graph, rw: Rewriter) -> None:
        rw.skip(next(iter(graph.nodes)), "not today")

    records = Pipeline([refuses, "prune-dead"]).run(graph)
    assert [(r.node, r.op, r.reason) for r in records[0].refusals] == [("a", "Scale", "not today")]
    assert not records[0].rewrites
    assert [r.what for r in records[1].rewrites] == ["bypass Identity", "remove unused Identity"]


def test_the_random_generator_is_seeded() -> None:
    drawn: list[float] = []

    @dataclass(frozen=True)
    class Draws(Pass):
        name = "draws"

        def run(self, graph: Graph, rw: Rewriter, ctx: Context) -> None:
            drawn.append(ctx.rng.random())

    for seed in (1, 1, 2):
        Pipeline([Draws()]).run(parse(TEXT), Context(seed=seed))
    assert drawn[0] == drawn[1] != drawn[2]


A = np.array


@pytest.mark.parametrize(("want", "got", "error"), [
    ([A([1.0, 2.0])], [A([1.0, 2.0])], 0.0),
    ([A([1.0, -2.0])], [A([1.5, -2.0])], 0.25),
    ([A([1.0]), A([4.0])], [A([1.0]), A([3.0])], 0.25),
    ([A([np.nan, 1.0])], [A([np.nan, 1.0])], 0.0),
    ([A([np.nan, 1.0])], [A([0.0, 1.0])], np.inf),
    ([A([1.0])], [A([np.nan])], np.inf),
    ([A([1.0, np.inf])], [A([1.0, -np.inf])], np.inf),
    ([A([1.0])], [A([np.inf])], np.inf),
    ([A([1.0])], [A([[1.0]])], np.inf),
    ([A([1.0])], [A([1.0], np.float32)], np.inf),
    ([A([1.0])], [], np.inf),
    ([A([1, 2])], [A([1, 3])], np.inf),
    ([A([1, 2])], [A([1, 2])], 0.0),
    ([A([True])], [A([False])], np.inf),
    ([A(["a"])], [A(["b"])], np.inf),
    ([A([1 + 1j])], [A([1 + 1j])], 0.0),
    ([A([3 + 4j])], [A([3 + 3j])], 0.2),
    ([A([])], [A([])], 0.0),
    ([A([0.0])], [A([0.0])], 0.0),
    ([], [], 0.0),
    ([A([np.nan])], [A([np.nan])], 0.0),
])  # fmt: skip
def test_relative_error(want: list[Any], got: list[Any], error: float) -> None:
    assert relative_error(want, got) == pytest.approx(error)


def test_half_precision_outputs_are_compared_as_numbers() -> None:
    import ml_dtypes

    want, got = A([1.0, 2.0], ml_dtypes.bfloat16), A([1.0, 2.5], ml_dtypes.bfloat16)
    assert relative_error([want], [got]) == 0.25
    assert relative_error([want.astype(np.float16)], [got.astype(np.float16)]) == 0.25


def test_passes_and_ir_import_no_framework() -> None:
    import subprocess

    code = (
        "import sys, graphshrink.passes, graphshrink.ir.analysis\n"
        "print(*({'torch', 'onnx', 'onnxruntime', 'networkx', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_outputs_that_are_sequences_are_compared_item_by_item() -> None:
    want = [[np.ones(2), np.ones(3)]]
    assert relative_error(want, [[np.ones(2), np.ones(3)]]) == 0.0
    assert relative_error(want, [[np.ones(2), np.full(3, 1.5)]]) == 0.5
    assert relative_error(want, [[np.ones(2)]]) == float("inf")
