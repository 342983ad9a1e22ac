"""Gates as torch modules: what they compute, their gradients, and what torch can do with them."""

from __future__ import annotations

import copy
import io
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphshrink import UsageError
from graphshrink.nn import BETA, GAMMA, LIMIT, MARGIN, ZETA, Gate, Switch
from support.onnx_run import outputs_of

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(), "relu6": nn.ReLU6(), "silu": nn.SiLU(), "gelu": nn.GELU(), "hard_swish": nn.Hardswish(),
    "leaky_relu": nn.LeakyReLU(0.2), "prelu": nn.PReLU(8), "elu": nn.ELU(0.7), "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(), "mish": nn.Mish(), "gelu_tanh": nn.GELU("tanh"), "clip": nn.Hardtanh(-0.5, 0.75),
}  # fmt: skip
MODES = ("soft", "top-k", "hard-concrete")


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) * 2


def set_score(gate: Gate, score: float) -> Gate:
    gate.double()
    with torch.no_grad():
        gate.switch.score.fill_(score)
    return gate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_ends_are_exact(kind: str, mode: str) -> None:
    act = copy.deepcopy(ACTIVATIONS[kind]).double()
    x = inputs(3, 8, 5)
    opened = Gate(act, mode=mode).double().eval()
    closed = Gate(act, mode=mode, value=0.0).double().eval()
    assert torch.equal(opened(x), act(x))
    assert torch.equal(closed(x), x)
    assert (opened.value, opened.kept, closed.value, closed.kept) == (1.0, True, 0.0, False)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_soft_gates_against_finite_differences(kind: str) -> None:
    gate = set_score(Gate(copy.deepcopy(ACTIVATIONS[kind])), 0.3)
    x = inputs(2, 8).requires_grad_()
    score = gate.switch.score

    def run(x: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(gate, {"switch.score": score}, (x,))
        assert isinstance(out, torch.Tensor)
        return out

    assert torch.autograd.gradcheck(run, (x, score), eps=1e-6, atol=1e-8, rtol=1e-6)
    assert torch.allclose(gate(x), 0.3 * gate.activation(x) + 0.7 * x, atol=1e-14)


def test_hard_concrete_gradient_against_finite_differences() -> None:
    gate = set_score(Gate(nn.ReLU(), mode="hard-concrete"), 0.4)

    def run(score: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(11)  # The same noise each time.
        out = torch.func.functional_call(gate, {"switch.score": score}, (inputs(4, 4),))
        assert isinstance(out, torch.Tensor)
        return out

    torch.manual_seed(11)
    assert 0 < float(gate.switch().detach()) < 1
    assert torch.autograd.gradcheck(run, (gate.switch.score,), eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_straight_through_of_top_k(value: float) -> None:
    """As documented: sum(dL/dy * (act(x) - x)), for kept and removed gates alike."""
    gate = Gate(nn.ReLU(), mode="top-k", value=value).double()
    x, weight = inputs(4, 8), inputs(4, 8, seed=1)
    (gate(x) * weight).sum().backward()
    assert gate.switch.score.grad is not None
    assert torch.allclose(gate.switch.score.grad, (weight * (x.relu() - x)).sum(), rtol=1e-12)


@pytest.mark.parametrize("score", [-0.3, 0.0, 1.0, 1.4])
def test_straight_through_of_soft_gates_at_the_ends(score: float) -> None:
    gate = set_score(Gate(nn.ReLU()), score)
    for sign in (1, -1):
        gate.zero_grad()
        (sign * gate.switch()).backward()
        assert gate.switch.score.grad == sign


@pytest.mark.parametrize(("mode", "edge"), [("soft", 1 + MARGIN), ("hard-concrete", LIMIT)])
def test_scores_are_not_driven_away(mode: str, edge: float) -> None:
    gate = set_score(Gate(nn.ReLU(), mode=mode), edge + 0.01)
    gate.switch.expected().neg().backward()  # Descending would raise the score further.
    assert gate.switch.score.grad == 0
    gate.zero_grad()
    gate.switch.expected().backward()
    assert gate.switch.score.grad is not None
    assert gate.switch.score.grad > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_gate_comes_back(mode: str) -> None:
    """The network is closed against its data, and opens when it is trained on them."""
    torch.manual_seed(0)
    gate = Gate(nn.ReLU(), mode=mode, value=0.0)
    x = torch.randn(256, 4)
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.5)
    start = float(gate.switch.score)
    for _ in range(60):
        optimizer.zero_grad()
        ((gate(x) - x.relu()) ** 2).mean().backward()
        optimizer.step()
    assert float(gate.switch.score) > start + 0.5
    if mode == "soft":
        assert gate.value > 0.99


@pytest.mark.parametrize("score", [-2.0, -0.5, 0.0, 1.5])
def test_expected_l0_against_sampling(score: float) -> None:
    switch = Switch("hard-concrete").double()
    with torch.no_grad():
        switch.score.fill_(score)
    torch.manual_seed(3)
    draws = 40_000
    u = torch.rand(draws, dtype=torch.float64)
    s = torch.sigmoid((score + u.log() - (1 - u).log()) / BETA)
    by_hand = (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    want = float(switch.expected().detach())
    margin = 4 * math.sqrt(want * (1 - want) / draws)
    assert abs(float((by_hand > 0).double().mean()) - want) < margin
    ours = torch.stack([switch().detach() for _ in range(4000)])
    margin = 4 * math.sqrt(want * (1 - want) / 4000)
    assert abs(float((ours > 0).double().mean()) - want) < margin
    assert abs(float(ours.mean() - by_hand.mean())) < 4 * float(ours.std()) / math.sqrt(4000)


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, 1.0])
def test_hard_concrete_starts_where_it_is_told(value: float) -> None:
    assert Gate(nn.ReLU(), mode="hard-concrete", value=value).value == pytest.approx(
        value, abs=1e-6
    )


def test_inplace_activations_are_copied() -> None:
    act = nn.ReLU(inplace=True)
    x = inputs(4)
    kept = x.clone()
    Gate(act)(x)
    assert torch.equal(x, kept)
    assert act.inplace


@pytest.mark.parametrize(
    ("mode", "value"), [("hard", 1.0), ("soft", 1.5), ("soft", math.nan), ("top-k", 0.5)]
)
def test_wrong_use_is_one_line(mode: str, value: float) -> None:
    with pytest.raises(UsageError) as found:
        Gate(nn.ReLU(), mode=mode, value=value)
    assert "\n" not in str(found.value)


# What torch does with modules.


def net(mode: str) -> nn.Sequential:
    torch.manual_seed(0)
    shared = Switch(mode)
    return nn.Sequential(
        nn.Linear(4, 8),
        Gate(nn.GELU(), shared),
        nn.Linear(8, 8),
        Gate(nn.ReLU(), shared),
        nn.Linear(8, 2),
    )


@pytest.mark.parametrize("mode", MODES)
def test_state_dict_copies_and_pickles(mode: str) -> None:
    model = net(mode)
    with torch.no_grad():
        model[1].switch.score.fill_(0.25)
        if mode == "top-k":
            model[1].switch.open.fill_(0.0)
    other = net(mode)
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for found in (other, copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(found.eval()(x), model.eval()(x))
        assert found[1].switch is found[3].switch
    double = copy.deepcopy(model).double()
    assert double[1].switch is double[3].switch
    assert double[1].switch.number().dtype is torch.float64


@pytest.mark.parametrize("mode", MODES)
def test_export(mode: str) -> None:
    model = net(mode).eval()
    x = torch.randn(3, 4)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    traced = torch.jit.trace(model, (x,))
    assert torch.allclose(traced(x), model(x), atol=1e-6)


@pytest.mark.parametrize("mode", ["soft", "top-k"])
def test_compile(mode: str) -> None:
    """One graph without breaks, with equal outputs and gradients."""
    model, x = net(mode), torch.randn(3, 4)
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for found in (model, compiled):
        found(x).square().sum().backward()
    for (_, a), (_, b) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision(mode: str) -> None:
    model, x = net(mode), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        assert y.dtype is torch.bfloat16
        y.float().sum().backward()
    assert model[1].switch.score.grad is not None
    assert model[1].switch.score.dtype is torch.float32
    half = net(mode).to(torch.bfloat16)
    assert half(x.to(torch.bfloat16)).dtype is torch.bfloat16


COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler: install g++")
def test_compiled_for_real() -> None:
    """All modes in one graph of torch's own compiler; as evaluated, without noise."""
    torch.manual_seed(0)
    layers = [m for mode in MODES for m in (nn.Linear(4, 4), Gate(nn.SiLU(), mode=mode))]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    x = torch.randn(3, 4)
    model.eval()
    with torch.no_grad():
        made: Any = torch.compile(copy.deepcopy(model), fullgraph=True)
        assert torch.allclose(made(x), model(x), atol=1e-5)
    # Gradients by what torch traces, without what takes it a minute to compile.
    compiled: Any = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for found in (model, compiled):
        found(x).square().sum().backward()
    for (_, a), (_, b) in zip(model.named_parameters(), compiled.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_onnx(mode: str, tmp_path: Path) -> None:
    model = net(mode).eval()
    if mode != "top-k":
        model[1].switch.score.data.fill_(0.3)
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False, external_data=False
        )
    (found,) = outputs_of(tmp_path / "m.onnx", x.numpy())
    assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: pytest tests/hosts/torch/test_gate_modules.py -k cuda",
)
@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_on_cuda(mode: str) -> None:
    model, x = net(mode).cuda(), torch.randn(3, 4).cuda()
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        y = model(x)
    scaler.scale(y.float().sum()).backward()
    assert y.dtype is torch.float16
    assert model[1].switch.score.grad.isfinite()
