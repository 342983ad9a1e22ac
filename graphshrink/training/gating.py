"""Gates in the caller's own training loop: insert, penalise, schedule, read, and save what was learned."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..ir import MissingExtra, UsageError

if TYPE_CHECKING:
    import torch

    from ..hosts.torch.modules.gates import Gate, Switch


def insert_gates(
    model: Any,
    *,
    example_inputs: Any = None,
    sites: str | Sequence[str] = (),
    mode: Literal["soft", "top-k", "hard-concrete"] = "soft",
    tie: str | Sequence[str] = (),
    value: float = 1.0,
    max_kernel: int = 7,
    max_mac_growth: float = 2.0,
) -> Any:
    """Put gates on the activations of a torch model; it computes what it did until they are trained.

    Args:
        model: A ``GraphModule``, ``nn.Module`` or ``ExportedProgram`` in evaluation mode. It is not changed,
            but the result shares its parameters.
        example_inputs: A tuple of inputs, from which shapes are found.
        sites: Names of activations, or patterns with ``*`` and ``?``. Without them: the activations whose removal
            lets something merge, at a cost of at most ``max_mac_growth`` times the present one.
        mode: How the gates learn; see :mod:`graphshrink.nn`.
        tie: ``"block"`` ties activations that only together let something merge; a pattern such as
            ``"features.*"`` ties sites whose names begin alike.
        value: Where the gates start, 1 (open) to 0.
        max_kernel: The largest merged kernel that a site is chosen for.
        max_mac_growth: See ``sites``.

    Returns:
        A ``GraphModule`` with :class:`graphshrink.nn.Gate` modules under the names of the activations, in
        evaluation mode; call ``train()`` on it.

    Raises:
        UsageError: If the model is no torch model.
        PassError: If it has gates already, or no activation whose removal lets anything merge.
    """
    from ..api import is_torch, shrink_graph
    from ..passes import InsertGates

    if not is_torch(model):
        raise UsageError(
            f"gates are trained in torch: give a torch model, not a {type(model).__name__}"
        )
    try:
        step = InsertGates(
            sites=_words(sites), mode=mode, tie=_words(tie), value=value, max_kernel=max_kernel,
            max_mac_growth=max_mac_growth,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"insert_gates: {error}") from error
    return shrink_graph(model, step, example_inputs=example_inputs)


def gates(model: Any) -> dict[str, Gate]:
    """The gates of a model by the names of their sites; each has ``value``, ``kept`` and ``mode``.

    Args:
        model: A gated module; wrappers for distributed training and compiled modules are looked through.
    """
    from ..hosts.torch.modules.gates import Gate

    return {
        name: module
        for name, module in unwrapped(model).named_modules(remove_duplicate=True)
        if isinstance(module, Gate)
    }


def gate_penalty(model: Any, latency: Mapping[str, float] | None = None) -> torch.Tensor:
    """How much of what the gates could save is still spent, between 0 and 1; add it to the loss.

    ``sum(latency * g) / sum(latency)`` over the sites: closing a gate lowers it by that site's share of the time,
    so that slow sites are worth more. For hard-concrete gates ``g`` is the chance that the gate is not 0.

    Args:
        model: A gated module.
        latency: For each site, the time that removing it would save, in any unit; equal when not given.

    Returns:
        A tensor without dimensions, with a gradient.

    Raises:
        UsageError: If there are no gates, or ``latency`` does not fit them.
    """
    found = _gates_of(model)
    weights = _weights(found, latency)
    total = sum(weights.values())
    device = next(iter(found.values())).switch.score.device
    parts = [
        gate.switch.expected().to(device) * (weights[name] / total) for name, gate in found.items()
    ]
    import torch

    return torch.stack(parts).sum()


def keep_top(model: Any, keep: int) -> list[str]:
    """Keep exactly ``keep`` top-k gates over the whole network, those with the largest scores.

    Sites that share a switch count as one. Where scores are equal, the gate that comes first is kept.

    Returns:
        The names of the sites that are kept.

    Raises:
        UsageError: If the gates are not top-k gates, a score is not finite, or there are fewer.
    """
    groups = switches(model)
    wrong = next((n[0] for s, n in groups.items() if s.mode != "top-k"), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} is no top-k gate; insert gates with mode='top-k' to keep a number"
        )
    ranked = _ranked(groups, keep)
    for place, (switch, _) in enumerate(ranked):
        assert switch.open is not None
        switch.open.fill_(1.0 if place < keep else 0.0)
    kept = {name for _, names in ranked[:keep] for name in names}
    return [name for names in groups.values() for name in names if name in kept]


def kept_at(step: int, *, total: int, keep: int, steps: int, shape: str = "cosine") -> int:
    """How many of ``total`` gates are kept at ``step`` of a schedule that ends at ``keep`` after ``steps``.

    Args:
        step: The step, from 0 on.
        total: The number of gates.
        keep: The number at the end.
        steps: The number of steps; all gates are kept at step 0, ``keep`` of them from ``steps`` on.
        shape: ``"linear"``, or ``"cosine"``: slow at both ends.

    Raises:
        UsageError: If a number is out of range or the shape is not known.
    """
    if shape not in ("linear", "cosine"):
        raise UsageError(f"the shape of a schedule is 'linear' or 'cosine', not {shape!r}")
    if not 0 <= keep <= total:
        raise UsageError(f"cannot keep {keep} of {total} gates")
    if steps < 0 or step < 0:
        raise UsageError(f"a schedule has steps from 0 on, not {step} of {steps}")
    done = 1.0 if step >= steps else step / steps
    if shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return round(total - done * (total - keep))


class GateSchedule:
    """Lowers the number of top-k gates that are kept, from all to ``keep``.

    Call :meth:`step` after every optimizer step; the set is chosen anew each time, so that gates come back
    whose scores have grown.

    Args:
        model: A module with top-k gates.
        keep: How many gates are kept at the end.
        steps: After how many steps.
        shape: ``"cosine"`` or ``"linear"``; see :func:`kept_at`.

    Raises:
        UsageError: If the model has no top-k gates, or a number is out of range.
    """

    def __init__(self, model: Any, keep: int, steps: int, shape: str = "cosine") -> None:
        self.model = model
        self.options: dict[str, Any] = {
            "total": len(switches(model)), "keep": keep, "steps": steps, "shape": shape,
        }  # fmt: skip
        self.done = 0
        keep_top(model, self.kept)

    @property
    def kept(self) -> int:
        """How many gates are kept now."""
        return kept_at(self.done, **self.options)

    def step(self) -> int:
        """Go one step on and choose the gates anew; returns how many are kept."""
        self.done += 1
        keep_top(self.model, self.kept)
        return self.kept

    def state_dict(self) -> dict[str, int]:
        """Where the schedule is; which gates are kept is in the model's own state."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken; load the model's state first."""
        self.done = state["done"]
        keep_top(self.model, self.kept)


def save_removal_plan(
    model: Any,
    path: str | os.PathLike[str],
    *,
    keep: int | None = None,
    threshold: float | None = None,
    example_inputs: Any = None,
) -> None:
    """Write down which activations go by what gates have learned, for ``remove-activations{plan=...}``.

    Args:
        model: A gated ``GraphModule`` in evaluation mode.
        path: A ``.json`` file; written whole or not at all.
        keep: Keep this many gates, those with the largest values, by score where values are equal.
        threshold: Keep the gates from this value on; 0.5 when ``keep`` is not given either.
        example_inputs: A tuple of inputs: the plan then holds shapes too.

    Raises:
        UsageError: If there are no gates, a number is out of range, or the file cannot be written.
    """
    from ..api import load
    from ..cli.terminal import writable, write_json
    from ..passes import RemovalPlan
    from ..passes.depth.gate_sites import site_names

    writable(os.fspath(path), ".json")
    if keep is not None and threshold is not None:
        raise UsageError("give keep or threshold, not both")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"threshold must be between 0 and 1, not {threshold}")
    model = unwrapped(model)
    groups = switches(model)
    if keep is not None:
        stay = {name for _, names in _ranked(groups, keep)[:keep] for name in names}
    else:
        least = 0.5 if threshold is None else threshold
        stay = {n for s, names in groups.items() for n in names if float(s.number()) >= least}
    known = {name for names in groups.values() for name in names}
    graph, _ = load(model, example_inputs)
    decided = {
        site: node.name in stay for node, site in site_names(graph).items() if node.name in known
    }
    write_json(os.fspath(path), RemovalPlan.of(graph, decided).as_json())


def _words(given: str | Sequence[str]) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else tuple(given)


def unwrapped(model: Any) -> Any:
    """The module inside wrappers for distributed training and compilation."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("training gates", "torch", "torch") from error
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"gates are in torch modules, not in a {type(model).__name__}")
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def _gates_of(model: Any) -> dict[str, Gate]:
    found = gates(model)
    if not found:
        raise UsageError("the model has no gates; insert_gates puts them there")
    return found


def switches(model: Any) -> dict[Switch, list[str]]:
    """The switches of a model in order, each with the sites that it is for."""
    found: dict[Switch, list[str]] = {}
    for name, gate in _gates_of(model).items():
        found.setdefault(gate.switch, []).append(name)
    return found


def _ranked(groups: Mapping[Switch, list[str]], keep: int) -> list[tuple[Switch, list[str]]]:
    """Switches by value, then by score, then in order; there must be ``keep`` of them."""
    if not 0 <= keep <= len(groups):
        raise UsageError(f"cannot keep {keep} of {len(groups)} gates")
    keys: dict[Switch, tuple[float, float]] = {}
    for switch, names in groups.items():
        score = float(switch.score.detach())
        if not math.isfinite(score):
            raise UsageError(f"the score of gate {names[0]} is {score}: training has diverged")
        # What a top-k gate is at the moment says nothing about what it should be.
        value = 0.0 if switch.mode == "top-k" else float(switch.number())
        keys[switch] = (-value, -score)
    return sorted(groups.items(), key=lambda item: keys[item[0]])


def _weights(found: Mapping[str, Gate], latency: Mapping[str, float] | None) -> dict[str, float]:
    if latency is None:
        return dict.fromkeys(found, 1.0)
    missing = [name for name in found if name not in latency]
    unknown = [name for name in latency if name not in found]
    if missing or unknown:
        what = f"has nothing for gate {missing[0]!r}" if missing else f"is about {unknown[0]!r}"
        raise UsageError(f"latency {what}{'' if missing else ', which is no gate'}")
    made = {name: float(latency[name]) for name in found}
    for name, value in made.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"the latency of {name!r} is {value}; it must be finite, not negative")
    if not sum(made.values()):
        raise UsageError("latency is 0 for every gate")
    return made
