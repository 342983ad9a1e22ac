"""Gates end to end: inserted into torch networks, trained, read, removed; frozen gates in ONNX."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo.models import make

from graphshrink import (
    GateSchedule,
    ModelError,
    PassError,
    Pipeline,
    Rewriter,
    ShrinkResult,
    UsageError,
    gate_penalty,
    gates,
    insert_gates,
    keep_top,
    kept_at,
    removal_savings,
    save_removal_plan,
    shrink,
    shrink_graph,
)
from graphshrink.api import load
from graphshrink.data.calibration import calibrated
from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.frontends.torch.importer import from_fx, trace
from graphshrink.ir import ArrayTensor, Gate, Graph
from graphshrink.nn import Gate as GateModule
from graphshrink.nn import Scale
from graphshrink.passes import Context
from graphshrink.targets.onnx.emitter import to_onnx
from support.cli import fails, succeeds
from support.onnx_run import outputs_of

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(), "silu": nn.SiLU(), "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"), "hard_swish": nn.Hardswish(), "leaky_relu": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(8), "prelu1": nn.PReLU(), "elu": nn.ELU(0.7), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(),
    "mish": nn.Mish(), "softsign": nn.Softsign(), "hard_sigmoid": nn.Hardsigmoid(), "clip": nn.Hardtanh(),
}  # fmt: skip
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2


def net(act: Any, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), copy.deepcopy(act), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers).to(dtype).eval()


def set_gates(model: Any, *values: float) -> None:
    with torch.no_grad():
        for gate, value in zip(gates(model).values(), values, strict=True):
            gate.switch.score.fill_(value)
            if gate.mode == "top-k":
                gate.switch.open.fill_(value)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_activation(kind: str) -> None:
    model = net(ACTIVATIONS[kind])
    gated = insert_gates(model, example_inputs=(X,))
    assert list(gates(gated)) == ["1"]
    assert type(gates(gated)["1"].activation) is type(model[1])
    assert torch.equal(gated(X), model(X))
    set_gates(gated, 0.3)
    c = model[0](X)
    want = model[2](0.3 * model[1](c.clone()) + 0.7 * c)
    assert torch.allclose(gated(X), want, atol=1e-12)
    # Read back: the same gate, and a network that is what the gate's ends say.
    text = from_fx(gated, (X,)).text()
    assert text.count("Gate(") == 1
    off = shrink_graph(gated, "remove-activations,prune-dead", example_inputs=(X,))
    assert torch.equal(off(X), model[2](c))
    on = shrink_graph(gated, "remove-activations{threshold=0.2}", example_inputs=(X,))
    assert torch.equal(on(X), model(X))
    assert type(on.get_submodule("1")) is type(model[1])
    merged = shrink_graph(off, example_inputs=(X,))
    assert len(list(merged.modules())) < len(list(off.modules()))
    assert torch.allclose(merged(X), off(X), atol=1e-10)


@pytest.mark.parametrize("function", [F.relu, torch.tanh, lambda x: x * torch.sigmoid(x), "relu"])
def test_functions_and_methods(function: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            return self.b(getattr(y, function)() if isinstance(function, str) else function(y))

    model, x = Net().eval(), torch.randn(5, 4)
    gated = insert_gates(model, example_inputs=(x,))
    assert len(gates(gated)) == 1
    assert torch.allclose(gated(x), model(x), atol=1e-6)


def test_a_module_that_is_called_twice_gets_two_gates() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.c(self.act(self.b(self.act(self.a(x)))))

    model, x = Net().eval(), torch.randn(5, 4)
    gated = insert_gates(model, example_inputs=(x,))
    assert list(gates(gated)) == ["act_1", "act_2"]
    assert torch.equal(gated(x), model(x))
    off = shrink_graph(model, "remove-activations{names=act_2},prune-dead", example_inputs=(x,))
    assert torch.equal(off(x), model.c(model.b(model.a(x).relu())))


def test_prelu_keeps_its_parameter_and_scores_train_beside_weights() -> None:
    model = net(nn.PReLU(8))
    gated = insert_gates(model, example_inputs=(X,))
    assert gates(gated)["1"].activation.weight is model[1].weight
    assert gated.get_submodule("0").weight is model[0].weight
    assert dict(gated.named_parameters()).keys() == {
        "0.weight", "0.bias", "1.activation.weight", "1.switch.score", "2.weight", "2.bias"
    }  # fmt: skip
    assert gated.get_parameter("1.switch.score").dtype is torch.float64
    gated.train()
    gated(X).square().sum().backward()
    assert all(p.grad is not None for p in gated.parameters())


@pytest.mark.parametrize("mode", ["soft", "top-k", "hard-concrete"])
def test_networks_of_the_zoo(mode: Any) -> None:
    model = make("mobilenet_v2" if mode == "soft" else "resnet18", small=True).eval()
    x = torch.randn(1, 3, 32, 32)
    gated = insert_gates(model, example_inputs=(x,), mode=mode, tie="block")
    assert torch.equal(gated(x), model(x))
    assert all(g.mode == mode for g in gates(gated).values())
    assert len(gates(gated)) > 3
    for found in (pickle.loads(pickle.dumps(gated)), copy.deepcopy(gated), trace(gated)):
        assert torch.equal(found(x), model(x))
        switches = [{id(g.switch) for g in gates(m).values()} for m in (found, gated)]
        assert len(switches[0]) == len(switches[1])
    exported = torch.export.export(gated, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-5)


def test_nested_gates_stay_gates() -> None:
    gated = insert_gates(net(nn.ReLU()), example_inputs=(X,))
    outer = nn.Sequential(gated, nn.ReLU()).eval()
    graph = from_fx(trace(outer), (X,))
    assert any(isinstance(n.op, Gate) for n in graph.nodes)
    out = shrink_graph(outer, "remove-activations{names=0.1},prune-dead", example_inputs=(X,))
    assert torch.allclose(
        out(X), outer[0].get_submodule("2")(outer[0].get_submodule("0")(X)).relu()
    )


def test_tied_gates_read_back_as_tied() -> None:
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    model = nn.Sequential(nn.Sequential(*layers)).eval()
    x = torch.randn(2, 4)
    gated = insert_gates(model, example_inputs=(x,), tie="*")
    first, second = gates(gated).values()
    assert first.switch is second.switch
    numbers = {n.inputs[1] for n in from_fx(gated, (x,)).nodes if isinstance(n.op, Gate)}
    assert len(numbers) == 1


def test_random_gates_must_be_evaluated() -> None:
    gated = insert_gates(net(nn.ReLU()), example_inputs=(X,), mode="hard-concrete").train()
    with pytest.raises(ModelError, match="gate 1 draws random numbers in training mode"):
        shrink(gated, example_inputs=(X,))


# Reading, penalising, keeping.


def three(mode: Any = "soft") -> Any:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(4, 4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(4, 2)).eval()
    return insert_gates(model, example_inputs=(torch.randn(1, 4),), mode=mode)


def test_the_penalty_rewards_removing_what_is_slow() -> None:
    gated = three()
    set_gates(gated, 0.9, 0.5, 0.1)
    latency = {"1": 1.0, "3": 5.0, "5": 2.0}
    penalty = gate_penalty(gated, latency)
    assert penalty.item() == pytest.approx((0.9 * 1 + 0.5 * 5 + 0.1 * 2) / 8)
    penalty.backward()
    found = {name: gate.switch.score.grad.item() for name, gate in gates(gated).items()}
    # Descending closes every gate, and the slowest one fastest.
    assert found == pytest.approx({name: value / 8 for name, value in latency.items()})
    assert gate_penalty(gated).item() == pytest.approx(0.5)
    for mode, ends in (("soft", (1.0, 0.0)), ("top-k", (1.0, 0.0))):
        gated = three(mode)
        for end in ends:
            set_gates(gated, end, end, end)
            assert gate_penalty(gated, latency).item() == end


def test_the_penalty_of_hard_concrete_gates_is_the_chance_to_be_open() -> None:
    gated = three("hard-concrete")
    set_gates(gated, 1.0, -1.0, 0.0)
    want = [
        torch.sigmoid(torch.tensor(s - 2 / 3 * np.log(0.1 / 1.1))).item() for s in (1.0, -1.0, 0.0)
    ]
    assert gate_penalty(gated).item() == pytest.approx(sum(want) / 3, rel=1e-6)


@pytest.mark.parametrize(("latency", "said"), [
    ({"1": 1.0, "3": 1.0}, "has no entry for gate '5'"),
    ({"1": 1.0, "3": 1.0, "5": 1.0, "7": 1.0}, "names '7', which is not a gate"),
    ({"1": 1.0, "3": -1.0, "5": 1.0}, "the latency of '3' is -1.0"),
    ({"1": 1.0, "3": float("nan"), "5": 1.0}, "the latency of '3' is nan"),
    ({"1": 0.0, "3": 0.0, "5": 0.0}, "latency is 0 for every gate"),
])  # fmt: skip
def test_latencies_that_do_not_fit(latency: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gate_penalty(three(), latency)


def test_top_k_keeps_exactly_k_over_the_whole_network() -> None:
    gated = three("top-k")
    for scores, keep, kept in (
        ((0.1, 0.3, 0.2), 1, ["3"]), ((0.1, 0.3, 0.2), 2, ["3", "5"]), ((0.1, 0.3, 0.2), 0, []),
        ((0.1, 0.1, 0.1), 2, ["1", "3"]), ((-5.0, 7.0, -6.0), 3, ["1", "3", "5"]),
    ):  # fmt: skip
        with torch.no_grad():
            for gate, score in zip(gates(gated).values(), scores, strict=True):
                gate.switch.score.fill_(score)
        assert keep_top(gated, keep) == kept
        assert [name for name, gate in gates(gated).items() if gate.kept] == kept
        assert [gate.switch().item() for gate in gates(gated).values()].count(1.0) == keep


def test_a_removed_top_k_gate_comes_back_by_training() -> None:
    """The target needs the activation that was taken away."""
    torch.manual_seed(0)
    gated = three("top-k")
    target = copy.deepcopy(gated)
    set_gates(target, 0.0, 1.0, 0.0)
    set_gates(gated, 1.0, 0.9, 0.8)
    keep_top(gated, 1)
    assert [g.kept for g in gates(gated).values()] == [True, False, False]
    scores = [g.switch.score for g in gates(gated).values()]
    optimizer = torch.optim.Adam(scores, lr=0.05)
    for _ in range(60):
        x = torch.randn(64, 4)
        optimizer.zero_grad()
        (gated(x) - target(x)).square().mean().backward()
        optimizer.step()
        keep_top(gated, 1)
    assert [g.kept for g in gates(gated).values()] == [False, True, False]


def test_tied_gates_are_kept_together() -> None:
    model = nn.Sequential(
        *(m for i in range(4) for m in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 2)
    ).eval()
    named = nn.ModuleDict({"a": model[:4], "b": model[4:]})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = named

        def forward(self, x: torch.Tensor) -> Any:
            return self.parts["b"](self.parts["a"](x))

    gated = insert_gates(
        Net().eval(), example_inputs=(torch.randn(1, 4),), mode="top-k", tie="parts.*"
    )
    assert keep_top(gated, 1) == ["parts.a.1", "parts.a.3"]
    with pytest.raises(UsageError, match="cannot keep 3 of 2 gates"):
        keep_top(gated, 3)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedules(shape: str) -> None:
    kept = [kept_at(s, total=20, keep=4, steps=10, shape=shape) for s in range(13)]
    assert kept[0] == 20
    assert kept[10:] == [4, 4, 4]
    assert kept[5] == 12
    assert kept == sorted(kept, reverse=True)
    if shape == "linear":
        assert kept[:11] == [round(20 - 1.6 * s) for s in range(11)]
    else:
        assert kept[0] - kept[1] < kept[4] - kept[5]


def test_the_schedule_drives_the_gates_and_resumes() -> None:
    gated = three("top-k")
    set_gates(gated, 0.1, 0.3, 0.2)
    schedule = GateSchedule(gated, keep=1, steps=4, shape="linear")
    counts = [schedule.kept]
    for _ in range(3):
        counts.append(schedule.step())
        assert sum(g.kept for g in gates(gated).values()) == schedule.kept
    assert counts == [3, 2, 2, 2]
    state, weights = schedule.state_dict(), gated.state_dict()
    other = three("top-k")
    other.load_state_dict(weights)
    again = GateSchedule(other, keep=1, steps=4, shape="linear")
    again.load_state_dict(state)
    assert again.step() == schedule.step() == 1
    assert [g.kept for g in gates(other).values()] == [g.kept for g in gates(gated).values()]


def test_chosen_gates_fade_and_nothing_else_moves_them() -> None:
    gated, rows = three("soft").train(), torch.randn(8, 4)
    schedule = GateSchedule(gated, steps=4, shape="linear", kind="fade", sites=["1", "3"])
    values = [[g.value for g in gates(gated).values()]]
    optimizer = torch.optim.SGD([p for p in gated.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        gated(rows).square().mean().backward()
        optimizer.step()
        schedule.step()
        values.append([g.value for g in gates(gated).values()])
    first, second, third = np.array(values).T
    assert first == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
    assert (second == first).all()
    assert third[-1] not in (0, 1), "the gate that does not fade is trained as before"
    assert schedule.kept == 1
    gated.eval()
    small = shrink_graph(gated, "remove-activations{names=[1,3]}", example_inputs=(rows,))
    assert torch.allclose(small(rows), gated(rows))


@pytest.mark.parametrize("pipeline", ["remove-activations", "remove-activations{names=[1,3,5]}"])
def test_removal_in_the_middle_of_a_fade_is_noted(pipeline: str) -> None:
    gated, rows = three("soft"), torch.randn(8, 4)
    schedule = GateSchedule(gated, steps=4, shape="linear", kind="fade", sites=["1", "3"])
    schedule.step()
    result = shrink(gated, pipeline, example_inputs=(rows,))
    assert [note for note in result.report.notes if note.startswith("remove-activations")] == [
        "remove-activations: 2 gates had not come to 0 or 1 (1 at 0.75, 3 at 0.75): the outputs change; "
        "let a schedule run to its end first, or train afterwards"
    ]
    for _ in range(3):
        schedule.step()
    done = shrink(gated, pipeline, example_inputs=(rows,))
    assert not any(note.startswith("remove-activations") for note in done.report.notes)


def test_gates_fade_in_turn_and_in() -> None:
    gated = three("soft")
    schedule = GateSchedule(gated, steps=6, shape="linear", kind="fade", in_turn=True)
    seen = []
    for _ in range(6):
        schedule.step()
        seen.append([g.value for g in gates(gated).values()])
    wanted = [[0.5, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 1], [0, 0, 0.5], [0, 0, 0]]
    assert np.array(seen) == pytest.approx(np.array(wanted))
    back = GateSchedule(gated, steps=2, shape="linear", kind="fade", sites="3", to=1)
    back.step()
    assert [g.value for g in gates(gated).values()] == [0, 0.5, 0]
    back.step()
    assert [g.value for g in gates(gated).values()] == [0, 1, 0]


def test_fading_resumes_from_where_it_began() -> None:
    gated = three("soft")
    set_gates(gated, 1.0, 0.8, 1.0)
    schedule = GateSchedule(gated, steps=4, kind="fade")
    for _ in range(2):
        schedule.step()
    state, weights = schedule.state_dict(), gated.state_dict()
    other = three("soft")
    other.load_state_dict(weights)
    again = GateSchedule(other, steps=4, kind="fade")
    again.load_state_dict(state)
    for one in (schedule, again):
        one.step()
    assert [g.value for g in gates(other).values()] == [g.value for g in gates(gated).values()]
    assert 0 < gates(other)["3"].value < 0.8 / 2


@pytest.mark.parametrize(
    ("make_schedule", "text"),
    [
        (lambda: GateSchedule(three("top-k"), 1), "needs steps"),
        (lambda: GateSchedule(three("top-k"), steps=3), "needs keep"),
        (lambda: GateSchedule(three("top-k"), 1, 3, sites="1"), "options of kind='fade'"),
        (lambda: GateSchedule(three("soft"), 1, 3, kind="fade"), "options of kind='keep'"),
        (lambda: GateSchedule(three("top-k"), steps=3, kind="fade"), "insert gates with mode='soft'"),
        (lambda: GateSchedule(three("soft"), steps=3, kind="fade", sites="7"), "no gate '7'; the model has 1"),
        (lambda: GateSchedule(three("soft"), steps=3, kind="fade", to=2), "between 0 and 1"),
        (lambda: GateSchedule(three("soft"), steps=3, kind="slow"), "'keep' or 'fade'"),  # type: ignore[arg-type]
        (lambda: GateSchedule(three("soft"), steps=-3, kind="fade"), "steps from 0 on"),
    ],
)  # fmt: skip
def test_schedules_say_what_is_wrong(make_schedule: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make_schedule()


@pytest.mark.parametrize("call", [
    lambda: keep_top(three("soft"), 1), lambda: keep_top(net(nn.ReLU()), 1), lambda: gate_penalty(net(nn.ReLU())),
    lambda: keep_top(three("top-k"), 4), lambda: keep_top(three("top-k"), -1),
    lambda: GateSchedule(three("top-k"), 4, 10), lambda: GateSchedule(three("top-k"), 1, 10, "square"),
    lambda: insert_gates(three()), lambda: insert_gates("model.onnx"), lambda: gates("x"),
    lambda: insert_gates(net(nn.ReLU()), example_inputs=(X,), mode="hard"),  # type: ignore[arg-type]
    lambda: insert_gates(net(nn.Softmax(1)), example_inputs=(X,)),
])  # fmt: skip
def test_wrong_use_is_one_line(call: Any) -> None:
    with pytest.raises((UsageError, PassError)) as found:
        call()
    assert "\n" not in str(found.value)


def test_scores_that_diverged_are_an_error() -> None:
    gated = three("top-k")
    set_gates(gated, 0.0, float("nan"), 0.0)
    with pytest.raises(UsageError, match="score of gate 3 is nan"):
        keep_top(gated, 1)


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    import torch.distributed as dist

    gated = three("top-k").train()
    compiled: Any = torch.compile(gated, backend="eager")
    assert list(gates(compiled)) == ["1", "3", "5"]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    wrapped: Any = None
    try:
        wrapped = nn.parallel.DistributedDataParallel(gated)
        assert list(gates(wrapped)) == ["1", "3", "5"]
        keep_top(wrapped, 2)
        (wrapped(torch.randn(3, 4)).square().sum() + gate_penalty(wrapped)).backward()
        assert all(g.switch.score.grad is not None for g in gates(gated).values())
    finally:
        # Were the wrapper the last owner of the group, its end would wait, with Python's lock, for threads that may want this lock.
        del wrapped
        dist.destroy_process_group()


# Plans.


def test_a_plan_is_the_same_in_gated_and_plain_networks(tmp_path: Path) -> None:
    model = make("mobilenet_v2", small=True).eval()
    x = torch.randn(2, 3, 32, 32)
    gated = insert_gates(model, example_inputs=(x,), mode="top-k", tie="block")
    with torch.no_grad():
        for i, gate in enumerate(gates(gated).values()):
            gate.switch.score.fill_(float(np.sin(i)))
    path = tmp_path / "plan.json"
    save_removal_plan(gated, path, keep=3, example_inputs=(x,))
    kept = [site["name"] for site in json.loads(path.read_text())["sites"] if site["keep"]]
    assert kept == keep_top(gated, 3)
    pipeline = f"remove-activations{{plan={path}}},prune-dead"
    learned = shrink_graph(gated, "remove-activations,prune-dead", example_inputs=(x,))
    for other in (model, gated, trace(model)):
        assert torch.allclose(
            shrink_graph(other, pipeline, example_inputs=(x,))(x), learned(x), atol=1e-6
        )
    shrink_graph(model, pipeline)  # Without shapes it fits too.
    with pytest.raises(PassError, match="is for another network"):
        shrink_graph(make("resnet18", small=True).eval(), pipeline, example_inputs=(x,))
    for wrong in ({"keep": 99}, {"keep": 1, "threshold": 0.5}, {"threshold": 2.0}):
        with pytest.raises(UsageError):
            save_removal_plan(gated, path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"only \.json"):
        save_removal_plan(gated, tmp_path / "plan.txt")


# ONNX.


def exported(model: nn.Module, dtype: torch.dtype, path: Path) -> Any:
    import onnx

    torch.onnx.export(model, (X.to(dtype),), path, dynamo=True, verbose=False)
    return onnx.load(path)


def frozen(graph: Graph, value: float) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Gate):
            rw = Rewriter(graph)
            assert node.inputs[1] is not None
            dtype = node.inputs[1].type.dtype
            assert dtype is not None
            rw.set_input(node, 1, rw.constant(ArrayTensor(np.array([value], dtype.numpy)), "g"))


def line_of(act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """For each channel, the values of the straight line that fits an activation best."""
    made = torch.empty_like(x)
    for channel in range(x.shape[1]):
        given = x[:, channel].detach().double().numpy()
        found = act(x.clone())[:, channel].detach().double().numpy()
        a, b = np.polyfit(given.ravel(), found.ravel(), 1)
        made[:, channel] = torch.from_numpy(a * given + b)
    return made


def test_frozen_gates_in_onnx(tmp_path: Path) -> None:
    """One network with an output for every kind of activation (torch spells softsign out)."""
    kinds = {kind: act for kind, act in ACTIVATIONS.items() if kind != "softsign"}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3) for _ in kinds)
            self.acts = nn.ModuleList(copy.deepcopy(act) for act in kinds.values())

        def forward(self, x: torch.Tensor) -> Any:
            return [a(c(x)) for a, c in zip(self.acts, self.convs, strict=True)]

    torch.manual_seed(0)
    model = Net().eval()
    proto = exported(model, torch.float32, tmp_path / "m.onnx")
    x = X.float()
    for by, value in itertools.product(("identity", "affine"), (1.0, 0.0, 0.3)):
        graph = from_onnx(proto)
        ctx = Context(calibration=calibrated(graph, "onnx", x.numpy()))
        Pipeline(f"insert-gates{{sites=*,by={by}}}").run(graph, ctx)
        assert sum(isinstance(n.op, Gate) for n in graph.nodes) == len(kinds)
        frozen(graph, value)
        made = to_onnx(graph)
        ops = [n.op_type for n in made.graph.node]
        if (by, value) == ("identity", 0.3):
            assert (ops.count("LeakyRelu"), ops.count("PRelu"), ops.count("Relu")) == (2, 2, 0)
        found = outputs_of(made, x.numpy())
        for kind, act, conv, got in zip(kinds, model.acts, model.convs, found, strict=True):
            c = conv(x)
            rest = c if by == "identity" else line_of(act, c)
            want = (value * act(c.clone()) + (1 - value) * rest).detach().numpy()
            assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), (kind, by, value)


def test_the_command_line(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    exported(net(nn.ReLU(), torch.float32), torch.float32, source)
    import onnx

    [relu] = [n.name for n in onnx.load(source).graph.node if n.op_type == "Relu"]
    text = succeeds(
        source, out, "--passes", f'remove-activations{{names="{relu}"}},merge-linear,prune-dead'
    )
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Conv"]
    assert "approximate" in text or "out.onnx" in text
    succeeds(source, out, "--passes", "remove-activations{names=*},merge-linear,prune-dead")
    assert [n.op_type for n in onnx.load(out).graph.node] == ["Conv"]
    assert "is not an activation" in fails(
        source, out, "--passes", "remove-activations{names=conv}"
    )
    assert "no gates" in fails(source, out, "--passes", "remove-activations")
    missing = fails(source, out, "--passes", "remove-activations{plan=no.json}")
    assert "cannot read the plan no.json" in missing
    assert "insert-gates" in succeeds("passes")


# What removing would save.


def test_savings_are_measured_for_each_gate() -> None:
    """The block with eight times the channels saves more, tied sites share it, and the penalty takes it."""

    def block(channels: int) -> list[nn.Module]:
        wide = 6 * channels
        return [
            nn.Conv2d(channels, wide, 1), nn.ReLU6(), nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.ReLU6(),
            nn.Conv2d(wide, channels, 1),
        ]  # fmt: skip

    torch.manual_seed(0)
    model = nn.Sequential(
        *block(4), nn.Softmax(1), nn.Conv2d(4, 32, 1), nn.Softmax(1), *block(32), nn.Softmax(1)
    ).eval()
    x = torch.randn(2, 4, 24, 24)
    gated = insert_gates(model, example_inputs=(x,), mode="top-k", tie="block")
    assert list(gates(gated)) == ["1", "3", "9", "11"]
    timed = removal_savings(model, gated, example_inputs=(x,))
    assert timed["1"] == timed["3"] >= 0
    assert timed["9"] == timed["11"] >= 0

    def fewer_macs(before: ShrinkResult, after: ShrinkResult) -> float:
        sizes = before.report.after.macs, after.report.after.macs
        assert None not in sizes
        return float(sizes[0] - sizes[1])  # type: ignore[operator]

    saved = removal_savings(model, gated, example_inputs=(x,), measure=fewer_macs)
    assert saved["9"] == saved["11"] > 2 * saved["1"] == 2 * saved["3"] > 0
    assert gate_penalty(gated, saved).item() == pytest.approx(1.0)


def test_savings_by_another_measure_and_with_ops_of_torch_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.b(self.act(self.a(x))).flip(1)

    model, x = Net().eval(), torch.randn(64, 8)
    gated = insert_gates(model, example_inputs=(x,))
    counted = removal_savings(
        model, gated, example_inputs=(x,),
        measure=lambda a, b: float(a.report.after.macs - b.report.after.macs),
    )  # fmt: skip
    assert counted == {"act": 64 * (2 * 8 * 64 - 8 * 8)}
    assert removal_savings(model, gated, example_inputs=(x,)).keys() == {"act"}
    with pytest.raises(UsageError, match="has no gates"):
        removal_savings(model, model, example_inputs=(x,))


def residual_net() -> nn.Module:
    """A stem and three blocks that merge once their activations are gone, two of them beside a skip."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
            super().__init__()
            wide = 4 * fan_in
            self.skip = stride == 1
            self.body = nn.Sequential(
                nn.Conv2d(fan_in, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(),
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6(),
                nn.Conv2d(wide, fan_out, 1), nn.BatchNorm2d(fan_out),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.body(x) if self.skip else self.body(x)

    blocks = [Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6)]
    made = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), *blocks, *tail)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.bias)
    return made.double().eval()


@pytest.mark.parametrize("side", [16, 17])
def test_what_fades_with_hoisted_padding_merges_exactly(side: int) -> None:
    x = torch.randn(3, 3, side, side, dtype=torch.float64)
    gated = insert_gates(residual_net(), example_inputs=(x,), ending="relu6", max_mac_growth=1)
    sites = [name for name in gates(gated) if not name.endswith("ending")]
    assert len(sites) == 6
    assert [g.value for n, g in gates(gated).items() if n not in sites] == [0, 0, 0]
    assert torch.allclose(gated(x), residual_net()(x)), "closed endings change nothing"
    through = f"hoist-padding{{through=[{','.join(sites)}]}}"
    hoisted = shrink_graph(gated, through, example_inputs=(x,))
    inside = [m.padding for n, m in hoisted.named_modules() if isinstance(m, nn.Conv2d)][1:]
    assert inside == [(1, 1), (0, 0), (0, 0)] * 3
    # The border alone differs from before: each of three blocks reaches one position further in.
    plain = shrink_graph(residual_net(), "hoist-padding", example_inputs=(x,))
    assert torch.allclose(plain(x), residual_net()(x)), "with activations in place nothing moves"
    fading = GateSchedule(hoisted, steps=2, kind="fade", sites=sites)
    coming = GateSchedule(hoisted, steps=2, kind="fade", sites="*ending", to=1)
    for schedule in (fading, coming, fading, coming):
        schedule.step()
    last = hoisted(x)
    merged = shrink_graph(hoisted, "remove-activations,merge-linear,prune-dead", example_inputs=(x,))  # fmt: skip
    assert torch.allclose(merged(x), last, atol=1e-12)
    convs = [m for m in merged.modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in convs] == [(3, 3)] * 4
    assert sum(isinstance(m, nn.ReLU6) for m in merged.modules()) == 4


def test_gates_with_lines_train_and_merge() -> None:
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    gated = insert_gates(
        residual_net(), example_inputs=(x,), by="affine", calibration=x.numpy(), max_mac_growth=1
    )
    assert torch.allclose(gated(x), residual_net()(x))
    sites = list(gates(gated))
    assert all(gate.line is not None for gate in gates(gated).values())
    hoisted = shrink_graph(
        gated, f"hoist-padding{{through=[{','.join(sites)}]}}", example_inputs=(x,)
    )
    schedule = GateSchedule(hoisted, steps=2, kind="fade")
    hoisted.train()
    for _ in range(2):
        schedule.step()
        hoisted(x).square().mean().backward()
    hoisted.eval()
    last = hoisted(x)
    state = {k: v.clone() for k, v in hoisted.state_dict().items()}
    assert any(k.endswith("line.scale") for k in state), "lines are part of the network's state"
    hoisted.load_state_dict(state)
    merged = shrink_graph(hoisted, "remove-activations,merge-linear,prune-dead", example_inputs=(x,))  # fmt: skip
    assert torch.allclose(merged(x), last, atol=1e-12)
    assert sum(isinstance(m, nn.Conv2d) for m in merged.modules()) == 3
    assert not any(isinstance(m, GateModule | Scale) for m in merged.modules())
    identity = insert_gates(residual_net(), example_inputs=(x,), max_mac_growth=1)
    for model in (gated, identity):
        set_gates(model, *[0.0] * len(sites))
    want = residual_net()(x)
    assert (gated(x) - want).square().mean() < 0.5 * (identity(x) - want).square().mean()


@pytest.mark.parametrize("given", ["both", "scale", "shift"])
def test_lines_of_modules_are_read(given: str) -> None:
    scale = torch.randn(8, dtype=torch.float64) if given != "shift" else None
    shift = torch.randn(8, dtype=torch.float64) if given != "scale" else None
    model = net(GateModule(nn.PReLU(8), value=0.25, line=Scale(scale, shift, 2)))
    graph, _ = load(model, (X,))
    assert [n.op.name for n in graph.nodes] == ["Conv", "Gate", "Conv"]
    again = shrink_graph(model, "prune-dead", example_inputs=(X,))
    assert torch.allclose(again(X), model(X), atol=1e-12)
    closed = shrink_graph(model, "remove-activations{threshold=0.5},prune-dead", example_inputs=(X,))  # fmt: skip
    set_gates(model, 0.0)
    assert torch.allclose(closed(X), model(X), atol=1e-12)


def test_padding_is_hoisted_through_named_activations_only() -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    model = residual_net()
    made = shrink_graph(model, "hoist-padding{through=[2.*]}", example_inputs=(x,))
    convs = [m.padding for n, m in made.named_modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(1, 1), (1, 1), (0, 0), (0, 0), (0, 0), (1, 1), (0, 0), (0, 0), (1, 1), (0, 0)]
    # Compared with torch: the depthwise convolution reads what the expansion makes of padded zeros.
    block = model[2].body
    wide = block[2](block[1](block[0](F.pad(model[1](model[0](x)), [1] * 4))))
    filtered = F.conv2d(wide, block[3].weight, block[3].bias, groups=32)
    wanted = model[3:](model[1](model[0](x)) + block[6:](block[5](block[4](filtered))))
    assert torch.allclose(made(x), wanted)
    with pytest.raises(PassError, match="hoist-padding: through 'nothing' is not an activation"):
        shrink_graph(model, "hoist-padding{through=[nothing]}", example_inputs=(x,))


def test_gates_with_an_unknown_ending_are_an_error() -> None:
    with pytest.raises(UsageError, match="ending must be one of"):
        insert_gates(residual_net(), ending="prelu")


def test_all_endings_of_one_module_match_the_pattern() -> None:
    def block() -> list[nn.Module]:
        wide = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        return [nn.Conv2d(4, 16, 1), nn.ReLU6(), wide, nn.ReLU6(), nn.Conv2d(16, 4, 1)]

    # Blocks that are no modules of their own, so that their endings have the same parent.
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)]
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), *block(), *block(), *tail)
    x = torch.randn(2, 3, 15, 15)
    gated = insert_gates(flat.eval(), example_inputs=(x,), ending="relu6", max_mac_growth=1)
    closed = [name for name, gate in gates(gated).items() if not gate.value]
    assert len(closed) == 2
    assert all(name.endswith("ending") for name in closed)
    GateSchedule(gated, steps=1, kind="fade", sites="*ending", to=1).step()
    assert all(gate.value == 1 for gate in gates(gated).values())


def test_endings_are_soft_gates() -> None:
    # The schedule of top-k gates would open them at its first step.
    with pytest.raises(UsageError, match="ending needs gates of mode soft, not top-k"):
        insert_gates(residual_net(), ending="relu6", mode="top-k")


def test_gates_that_fade_in_turn_end_at_zero_at_the_last_step() -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for steps in (7, 10):
        gated = insert_gates(residual_net(), example_inputs=(x,), max_mac_growth=1)
        schedule = GateSchedule(gated, steps=steps, kind="fade", in_turn=True, shape="linear")
        assert [schedule.step() for _ in range(steps)][-1] == 0
        assert [gate.value for gate in gates(gated).values()] == [0.0] * 6


def test_the_state_of_a_schedule_is_for_its_own_gates() -> None:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    gated = insert_gates(residual_net(), example_inputs=(x,), max_mac_growth=1)
    first, second = list(gates(gated))[:2]
    one, other = (GateSchedule(gated, steps=4, kind="fade", sites=site) for site in (first, second))
    one.step()
    with pytest.raises(UsageError, match=f"for gate {first}, this one moves {second}"):
        other.load_state_dict(one.state_dict())
    assert gates(gated)[second].value == 1


def test_a_name_with_brackets_is_no_pattern() -> None:
    both = nn.ModuleDict({"g[1]": GateModule(nn.ReLU()), "g1": GateModule(nn.ReLU())})
    GateSchedule(both, steps=1, kind="fade", sites="g[1]").step()
    assert {name: gate.value for name, gate in gates(both).items()} == {"g[1]": 0, "g1": 1}
