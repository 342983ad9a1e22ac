"""What is traced is what the example inputs call, and the given module stays what it was."""

from __future__ import annotations

import copy
import functools
import random
import types
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphshrink import ModelError, shrink, shrink_graph
from graphshrink.frontends.torch.importer import StateError, from_fx
from graphshrink.frontends.torch.trace import trace

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A conv and a batch norm, then whatever a test does with them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("past", torch.zeros(4, 1, 1))
        for name, value in attributes.items():
            setattr(self, name, value)
        self.eval()

    def base(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


def net(forward: Callable[..., Any], **attributes: Any) -> Net:
    return type("Made", (Net,), {"forward": forward})(**attributes)


def same(model: nn.Module, result: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(result(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


# Arguments.


def by_default(self: Net, x: Any, raw: Any = None) -> Any:
    return self.base(x) if raw is not None else self.base(x).softmax(1)


def masked(self: Net, x: Any, mask: Any = None) -> Any:
    return self.base(x) if mask is None else self.base(x) * mask


def flagged(self: Net, x: Any, *, double: bool = True) -> Any:
    return self.base(x) * 2 if double is True else self.base(x)


def scaled(self: Net, x: Any, scale: Any = torch.full((1,), 3.0)) -> Any:  # noqa: B008
    return self.base(x) * scale


def listed(self: Net, x: Any, steps: Any = (1, 2)) -> Any:
    return sum(self.base(x) * s for s in steps)


def spread(self: Net, x: Any, *more: Any, **named: Any) -> Any:
    return sum(more, self.base(x)) if named.get("scale") is None else self.base(x) * named["scale"]


@pytest.mark.parametrize("forward", [by_default, masked, flagged, scaled, listed, spread])
@pytest.mark.parametrize("shaped", [True, False])
def test_left_out_arguments_are_as_by_default(forward: Any, shaped: bool) -> None:
    model = net(forward)
    result = shrink(model, example_inputs=(X,) if shaped else None)
    same(model, result.model, X)
    assert not norms(result.model)
    if forward is masked:
        assert any("mask=None" in note for note in result.report.notes)
        with pytest.raises(TypeError):
            result.model(X, X[:, :1])


def test_a_warning_names_arguments_that_the_result_lacks() -> None:
    with pytest.warns(
        UserWarning, match=r"Made: arguments that example_inputs .*mask=None"
    ) as shown:
        shrink_graph(net(masked), example_inputs=(X,))
    assert [w.filename for w in shown] == [__file__]  # Where the caller is, not inside the package.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        shrink_graph(net(masked), example_inputs=(X, X[:, :1]))


def test_given_arguments_stay_arguments() -> None:
    model, mask = net(masked), X[:, :1]
    result = shrink_graph(model, example_inputs=(X, mask))
    same(model, result, X, mask)
    with pytest.raises(TypeError):  # It would be computed as if it were given.
        result(X)
    model = net(lambda self, x, scale=2.0: self.base(x) * scale)
    result = shrink_graph(model, example_inputs=(X, 3.0))
    same(model, result, X, 5.0)
    same(model, result, X)
    model = net(spread)
    same(
        model,
        shrink_graph(model, example_inputs=(X, torch.ones(1), torch.ones(1))),
        X,
        X[:1, :1],
        X[:1, :1],
    )


@pytest.mark.parametrize(("given", "other"), [(None, X), (False, True), ("a", "b")])
def test_what_decides_is_held_to(given: Any, other: Any) -> None:
    model = net(
        lambda self, x, how: (
            self.base(x) if how in (None, "a") or how is False else self.base(x) * 2
        )
    )
    result = shrink_graph(model, example_inputs=(X, given))
    same(model, result, X, given)
    with pytest.raises((AssertionError, TypeError), match="how was"):
        result(X, other)


@pytest.mark.parametrize(
    ("inputs", "message"), [((X, X), "takes 1 of the 2"), ((), "also needs x")]
)
def test_inputs_that_do_not_fit_are_named(inputs: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shrink(Net(), example_inputs=inputs)


def test_a_trace_that_does_not_run_is_exported() -> None:
    # Nothing hides a proxy from who asks for one.
    model = net(lambda self, x: self.base(x)[..., 9] if isinstance(x, fx.Proxy) else self.base(x))
    result = shrink(model, example_inputs=(X,))
    same(model, result.model, X)
    assert any("does not run" in note and "torch.export" in note for note in result.report.notes)


# Hooks.


@pytest.mark.filterwarnings("error")
def test_hooks_of_the_model_itself() -> None:
    model = Net()
    model.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    model.register_forward_pre_hook(
        lambda m, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True
    )
    model.register_forward_hook(lambda m, args, kwargs, out: out.relu(), with_kwargs=True)
    model.register_full_backward_hook(lambda *_: None)
    for given in (model, fx.symbolic_trace(Net())):
        if given is not model:
            given.register_forward_hook(lambda m, args, out: out + 1)
        with (
            pytest.warns(UserWarning, match="hooks on gradients")
            if given is model
            else nullcontext()
        ):
            result = shrink(given, example_inputs=(X,))
        same(given, result.model, X)
        assert not norms(result.model)
    with pytest.warns(UserWarning, match="Net: hooks on gradients"):
        notes = shrink(model, example_inputs=(X,)).report.notes
    assert notes == ["hooks on gradients are not in the result: those of the model"]


def test_a_forward_of_its_own() -> None:
    model = Net()
    model.forward = types.MethodType(lambda self, x: self.base(x) * 3, model)  # type: ignore[method-assign]
    same(model, shrink_graph(model, example_inputs=(X,)), X)


SEEN: dict[str, Any] = {}


class Recorder:
    def __init__(self) -> None:
        self.last, self.all = None, []

    def __call__(self, module: Any, args: Any, out: Any) -> None:
        self.last = out
        self.all.append(out)


def test_hooks_that_record_keep_no_proxies() -> None:
    model, inner, held, recorder = Net(), [], {}, Recorder()
    model.conv.register_forward_hook(recorder)
    model.register_forward_hook(recorder.__call__)
    model.conv.register_forward_hook(lambda m, args, out: inner.append(out))
    model.register_forward_hook(lambda m, args, out: SEEN.update(out=out))
    model.register_forward_hook(
        functools.partial(lambda store, m, args, out: store.update(out=out), held)
    )
    result = shrink(model, example_inputs=(X,), check=True).model
    assert (inner, SEEN, held) == ([], {}, {})
    assert (recorder.last, recorder.all) == (None, [])
    same(model, result, X)
    assert len(inner) == 2  # The hook of the conv is still there.
    SEEN.clear()


# State.


def adds(self: Any, x: Any) -> Any:
    self.steps += 1
    return self.base(x) * self.steps


def copies(self: Any, x: Any) -> Any:
    y = self.base(x)
    self.past.copy_(y.mean((0, 2, 3))[:, None, None])
    return y - self.past


def averages(self: Any, x: Any) -> Any:
    y = self.base(x)
    self.past.mul_(0.9).add_(y.mean())
    return y - self.past


def writes_a_place(self: Any, x: Any) -> Any:
    y = self.base(x)
    self.past[0] = y.mean()
    return y - self.past


def writes_a_view(self: Any, x: Any) -> Any:
    y = self.base(x)
    self.past.view(4)[1:].add_(y.mean())
    return y - self.past


def writes_data(self: Any, x: Any) -> Any:
    self.past.data = self.past + 1
    return self.base(x) + self.past


def clamps(self: Any, x: Any) -> Any:
    self.conv.weight.data.clamp_(-0.1, 0.1)
    return self.base(x)


def reassigns(self: Any, x: Any) -> Any:
    y = self.base(x)
    self.past = 0.9 * self.past + y.mean()
    return y - self.past


def counts(self: Any, x: Any) -> Any:
    self.calls += 1
    return self.base(x) * self.calls


def remembers(self: Any, x: Any) -> Any:
    y = self.conv(x)
    if self.last is not None:
        y = y + self.last
    self.last = y
    return self.norm(y)


def gathers(self: Any, x: Any) -> Any:
    self.history.append(self.base(x))
    return sum(self.history)


CALLS = {"n": 0}


def counts_elsewhere(self: Any, x: Any) -> Any:
    CALLS["n"] += 1
    return self.base(x) * CALLS["n"]


STATE = [
    counts_elsewhere,
    adds,
    copies,
    averages,
    writes_a_place,
    writes_a_view,
    writes_data,
    clamps,
    reassigns,
    counts,
    remembers,
    gathers,
]


def state_of(model: nn.Module) -> Any:
    tensors = [*model.parameters(), *model.buffers()]
    places = [(id(t), t.data_ptr(), t.clone()) for t in tensors]
    plain = {k: copy.copy(v) for k, v in model.__dict__.items()}
    flags = [(m.training, dict(m._forward_hooks)) for m in model.modules()]
    return places, plain, flags


def unchanged(before: Any, after: Any) -> None:
    for (a, b, was), (c, d, now) in zip(before[0], after[0], strict=True):
        assert (a, b) == (c, d)
        assert torch.equal(was, now)
    assert before[1:] == after[1:]


@pytest.mark.parametrize("shaped", [True, False])
@pytest.mark.parametrize("forward", STATE)
def test_models_with_state_are_refused_and_stay_as_they_were(forward: Any, shaped: bool) -> None:
    if forward is reassigns and not shaped:
        pytest.skip("is exported, which takes inputs")
    model = net(forward, calls=0, last=None, history=[])
    before = state_of(model)
    with pytest.raises(ModelError, match=r"state an input and an output|sets .* and reads it"):
        shrink(model, example_inputs=(X,) if shaped else None)
    unchanged(before, state_of(model))
    assert CALLS == {"n": 0}


@pytest.mark.parametrize("forward", [copies, averages, writes_a_place, writes_a_view, clamps])
def test_traced_modules_with_state_are_refused(forward: Any) -> None:
    traced = fx.symbolic_trace(net(forward))
    for inputs in ((X,), None):
        with pytest.raises(
            StateError, match=r"writes to its own (past|conv.weight|_tensor_constant0)"
        ):
            from_fx(traced, inputs)


def exported_count(self: Any, x: Any) -> Any:
    if x.shape[1] != 3:
        raise ValueError
    self.calls += 1
    return self.base(x) * self.calls


def test_state_is_seen_where_torch_export_is_used() -> None:
    model = net(exported_count, calls=0)
    with pytest.raises(StateError, match="sets calls"):
        shrink(model, example_inputs=(X,))
    assert model.calls == 0


def shows(self: Any, x: Any) -> Any:
    self.shown = self.base(x)
    self.log.append("called")
    return self.shown


def fills(self: Any, x: Any) -> Any:
    if "mask" not in self.cache:
        self.cache["mask"] = self.past + 2 + torch.zeros_like(x[:1, :1])
    return self.base(x) * self.cache["mask"]


def fills_from_inputs(self: Any, x: Any) -> Any:
    if "mask" not in self.cache:
        self.cache["mask"] = self.past + 2 + 0 * x.mean()
    return self.base(x) * self.cache["mask"]


@pytest.mark.parametrize("forward", [shows, fills, fills_from_inputs])
def test_what_a_call_leaves_behind_stays_in_the_copy(forward: Any) -> None:
    model = net(forward, log=[], cache={})
    for _ in range(2):
        before = state_of(model)
        result = shrink_graph(model, example_inputs=(X,))
        unchanged(before, state_of(model))
        same(copy.deepcopy(model), result, X)
    model(X)  # No proxy is in its way.


def test_random_numbers_are_no_constants() -> None:
    def noisy(self: Any, x: Any) -> Any:
        return self.base(x) + torch.randn(1, 4, 1, 1)

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    result = shrink_graph(net(noisy), example_inputs=(X,))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])  # type: ignore[index]
    assert not torch.equal(result(X), result(X))


def test_parameters_buffers_and_modules_keep_their_identity() -> None:
    model = net(lambda self, x: self.norm(self.conv(x).relu()) + self.past)
    traced = trace(model, (X,))
    assert traced.conv is model.conv
    assert traced.norm is model.norm
    assert traced.past is model.past


def test_training_flags_of_the_given_module_stay() -> None:
    model = net(lambda self, x: self.norm(self.conv(x).relu())).train()
    model.norm.eval()  # As a frozen batch norm is.
    result = shrink_graph(model, example_inputs=(X,))
    assert [m.training for m in model.modules()] == [True, True, False]
    assert result.training
    assert not result.norm.training


def test_constants_of_a_trace_are_not_left_in_the_module() -> None:
    model = net(lambda self, x: self.base(x) + torch.arange(4.0)[:, None, None])
    result = shrink_graph(model, example_inputs=(X,))
    same(model, result, X)
    assert not [name for name in model.__dict__ if name.startswith("_tensor")]


def test_modules_that_cannot_be_copied_are_shared() -> None:
    model = net(lambda self, x: self.base(x), words=(w for w in "abc"))
    same(model, shrink_graph(model, example_inputs=(X,)), X)


def test_a_batch_norm_of_a_weight_is_not_in_training_mode() -> None:
    def standardised(self: Any, x: Any) -> Any:
        w = self.conv.weight
        w = F.batch_norm(w.reshape(1, 4, -1), None, None, training=True).reshape_as(w)
        return self.norm(F.conv2d(x, w, self.conv.bias))

    model = net(standardised)
    same(model, shrink_graph(model, example_inputs=(X,)), X)
    used = net(lambda self, x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True))
    with pytest.raises(ModelError, match="training mode"):
        shrink_graph(used, example_inputs=(X,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.pow(x, 2.0),
        lambda x: torch.remainder(x, 0.7),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.xlogy(x, 2.0),
        lambda x: torch.bitwise_and(x.int(), 3),
        lambda x: torch.isin(x, 2.0),
        lambda x: x + 1 if isinstance(x, torch.Tensor) and isinstance(x.T, torch.Tensor) else x,
    ],
)
def test_functions_that_also_take_a_number_first(function: Callable[[Any], Any]) -> None:
    """torch looks for a number in the place of the traced tensor before it looks for a tensor."""
    x = torch.rand(2, 4) + 0.1

    class Module(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    got = shrink(Module().eval(), example_inputs=(x,)).model(x)
    torch.testing.assert_close(got, function(x))
    assert not isinstance(3, torch.Tensor)
    assert isinstance.__module__ == "builtins"
