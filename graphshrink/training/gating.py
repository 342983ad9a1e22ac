"""Gates for the caller's own training loop: insert them, penalise them, schedule them, read them, save a removal plan.

A *gate* multiplies an activation in: ``g * act(x) + (1 - g) * line(x)``. Training it to 0 removes the activation. A *site* is the
place of a gate, named like the activation; gates that are tied share one *switch*, which holds the value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..ir import MissingExtra, UsageError
from ..ir.errors import counted

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
    by: Literal["identity", "affine"] = "identity",
    calibration: Any = None,
    ending: str = "",
    max_kernel: int = 7,
    max_mac_growth: float = 2.0,
) -> Any:
    """Put gates on the activations of a torch model; its outputs stay equal until the gates are trained.

    Args:
        model: A ``GraphModule``, ``nn.Module`` or ``ExportedProgram`` in evaluation mode. It is not changed,
            but it shares its parameters with the result, so that training changes both.
        example_inputs: A tuple of inputs, for the shapes.
        sites: Names of activations, or patterns with ``*`` and ``?``. If not given: the activations whose removal
            lets layers merge, at a cost of at most ``max_mac_growth`` times the present one.
        mode: How the gates learn; see :mod:`graphshrink.nn`.
        tie: ``"block"`` ties activations that must all go before layers can merge; a pattern such as
            ``"features.*"`` ties sites whose names match up to the ``*``.
        value: The initial value of the gates, from 1 (open) to 0.
        by: What a closed gate computes: ``"identity"``, or ``"affine"``, for each channel the straight line that fits the
            activation best on ``calibration``; it goes on as a scale that merges into its neighbours.
        calibration: Samples for ``by="affine"``; see :class:`CalibrationData`.
        ending: A kind of activation, such as ``"relu6"``, for closed gates behind the parts that merge once the gated activations are gone;
            their names end in ``ending``. It needs ``mode="soft"``; a :class:`GateSchedule` opens these gates.
        max_kernel: The largest kernel that a merge may make for a site to be chosen.
        max_mac_growth: See ``sites``.

    Returns:
        A ``GraphModule`` with :class:`graphshrink.nn.Gate` modules under the names of the activations, in
        evaluation mode; call ``train()`` on it.

    Raises:
        UsageError: If the model is not a torch model.
        PassError: If it has gates already, no removal of an activation lets layers merge, or lines lack samples to fit them.
    """
    from ..api import is_torch, shrink_graph
    from ..passes import InsertGates

    if not is_torch(model):
        raise UsageError(
            f"gates are trained in torch: give a torch model, not a {type(model).__name__}"
        )
    try:
        step = InsertGates(
            sites=_texts(sites), mode=mode, tie=_texts(tie), value=value, by=by, ending=ending,
            max_kernel=max_kernel, max_mac_growth=max_mac_growth,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"insert_gates: {error}") from error
    return shrink_graph(model, step, example_inputs=example_inputs, calibration=calibration)


def gates(model: Any) -> dict[str, Gate]:
    """The gates of a model by the names of their sites; each has ``value``, ``kept`` and ``mode``.

    Args:
        model: A gated module; it may be inside wrappers of distributed training or compilation.
    """
    from ..hosts.torch.modules.gates import Gate

    return {
        name: module
        for name, module in unwrapped(model).named_modules(remove_duplicate=True)
        if isinstance(module, Gate)
    }


def gate_penalty(model: Any, latency: Mapping[str, float] | None = None) -> torch.Tensor:
    """A penalty between 0 and 1 for open gates, weighted by latency; add it to the loss.

    It is ``sum(latency * g) / sum(latency)`` over the sites. Closing a gate lowers it by the site's share of the latency,
    so that slow sites count more. For hard-concrete gates ``g`` is the probability that the gate is not 0.

    Args:
        model: A gated module.
        latency: The time that removing each site would save, by site, in any unit; equal times if not given.

    Returns:
        A scalar tensor with a gradient.

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
    """Open the ``keep`` top-k gates with the largest scores of the whole network, and close the others.

    Sites that share a switch count as one. Of equal scores, the first in the network wins.

    Returns:
        The names of the sites that are kept.

    Raises:
        UsageError: If the gates are not top-k gates, a score is not finite, or there are fewer than ``keep``.
    """
    groups = switches(model)
    wrong = next((n[0] for s, n in groups.items() if s.mode != "top-k"), None)
    if wrong is not None:
        raise UsageError(
            f"{wrong} is not a top-k gate; insert gates with mode='top-k' to keep a given number"
        )
    ranked = _ranked(groups, keep)
    for place, (switch, _) in enumerate(ranked):
        assert switch.open is not None
        switch.open.fill_(1.0 if place < keep else 0.0)
    kept = {name for _, names in ranked[:keep] for name in names}
    return [name for names in groups.values() for name in names if name in kept]


def kept_at(step: int, *, total: int, keep: int, steps: int, shape: str = "cosine") -> int:
    """The number of gates that a schedule keeps at a step.

    Args:
        step: The step, from 0 on.
        total: The number of gates, which are all kept at step 0.
        keep: The number that is kept from step ``steps`` on.
        steps: The number of steps.
        shape: ``"linear"``, or ``"cosine"``, which changes slowly at both ends.

    Raises:
        UsageError: If a number is out of range or the shape is unknown.
    """
    if not 0 <= keep <= total:
        raise UsageError(f"cannot keep {keep} of {total} gates")
    if step < 0:
        raise UsageError(f"a schedule has steps from 0 on, not {step} of {steps}")
    return round(total - progress_at(step, steps, shape) * (total - keep))


def progress_at(step: float, steps: float, shape: str = "cosine") -> float:
    """The part of a schedule that is done at a step, from 0 to 1.

    Args:
        step: The step; before 0 nothing is done.
        steps: The number of steps.
        shape: ``"linear"``, or ``"cosine"``, which changes slowly at both ends.

    Raises:
        UsageError: If the number of steps is negative, or the shape is unknown.
    """
    if shape not in ("linear", "cosine"):
        raise UsageError(f"the shape of a schedule is 'linear' or 'cosine', not {shape!r}")
    if steps < 0:
        raise UsageError(f"a schedule has steps from 0 on, not {step:g} of {steps:g}")
    if step >= steps:
        return 1.0
    done = max(0.0, step / steps)
    return (1 - math.cos(math.pi * done)) / 2 if shape == "cosine" else done


class GateSchedule:
    """Closes gates step by step. Call :meth:`step` after every optimizer step, or give the schedule to ``recover`` as a callback.

    ``kind="keep"`` lowers the number of open top-k gates from all to ``keep``. Each step chooses the gates again, so that a closed
    gate opens if its score has grown.

    ``kind="fade"`` moves the values of chosen soft gates from what they are to 0, so that their activations fade to the identity, or to
    the lines of gates that have them, ``y = (1 - t) * act(x) + t * x`` with ``t`` from 0 to 1, and the network learns to do without them while they go (Chen et al.,
    "VanillaNet: the Power of Minimalism in Deep Learning", NeurIPS 2023). With ``to=1`` activations fade in. These gates
    are not trained: the schedule alone moves them. What has faded to 0 merges exactly.

    Args:
        model: A module with gates: top-k gates for ``"keep"``, soft ones for ``"fade"``.
        keep: For ``"keep"``: the number of gates that are kept at the end.
        steps: The number of steps until then.
        shape: ``"cosine"`` or ``"linear"``; see :func:`kept_at`.
        kind: ``"keep"`` or ``"fade"``.
        sites: For ``"fade"``: the gates to close: names of sites, or patterns with ``*`` and ``?``; all gates if not given.
        in_turn: For ``"fade"``: move one gate after the other, from the input on, each in an equal part of the steps;
            gates that share a switch are one.
        to: For ``"fade"``: the value of the gates at the end.

    Raises:
        UsageError: If the model has no such gates, or an option is out of range, missing or of the other kind.
    """

    def __init__(
        self,
        model: Any,
        keep: int | None = None,
        steps: int | None = None,
        shape: Literal["cosine", "linear"] = "cosine",
        *,
        kind: Literal["keep", "fade"] = "keep",
        sites: str | Sequence[str] = (),
        in_turn: bool = False,
        to: float = 0.0,
    ) -> None:
        if kind not in ("keep", "fade"):
            raise UsageError(f"the kind of a schedule is 'keep' or 'fade', not {kind!r}")
        if steps is None or (kind == "keep" and keep is None):
            missing = "steps" if steps is None else "keep, the number of gates that are kept"
            raise UsageError(f"a schedule of kind {kind!r} needs {missing}")
        if not 0 <= to <= 1:
            raise UsageError(f"to is the value of gates, between 0 and 1, not {to}")
        wrong = (sites or in_turn or to) if kind == "keep" else keep is not None
        if wrong:
            what = "sites, in_turn and to" if kind == "keep" else "keep"
            other = "fade" if kind == "keep" else "keep"
            raise UsageError(f"{what}: these are options of kind={other!r}, not of kind={kind!r}")
        self.model, self.kind, self.in_turn, self.to, self.done = model, kind, in_turn, to, 0
        self.fading: dict[Switch, float] = {}
        """The switches that fade, each with the value that it had at the start."""
        if kind == "fade":
            self.fading = {switch: float(switch.number()) for switch in _chosen(model, sites)}
            for switch in self.fading:
                switch.score.requires_grad_(False)
        self.options: dict[str, Any] = {
            "total": len(switches(model)), "keep": keep, "steps": steps, "shape": shape,
        }  # fmt: skip
        self._apply()

    @property
    def kept(self) -> int:
        """The number of gates that are kept now: for ``"fade"``, those that are not closed entirely."""
        if self.kind == "keep":
            return kept_at(self.done, **self.options)
        return sum(float(switch.number()) > 0 for switch in switches(self.model))

    def step(self) -> int:
        """Go one step further and set the gates; returns the number that is kept."""
        self.done += 1
        self._apply()
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule, which gates it moves, and where they started; the model's own state says what they are now."""
        return {"done": self.done, "from": list(self.fading.values()), "sites": self._sites()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; load the model's state first.

        Raises:
            UsageError: If the state is of a schedule that moves other gates.
        """
        started = state.get("from", [])
        if len(started) != len(self.fading):
            raise UsageError(
                f"the state is of a schedule for {counted(len(started), 'gate')}, this one moves {len(self.fading)}"
            )
        own = self._sites()
        for was, now in zip(state.get("sites", own), own, strict=True):
            if was != now:
                raise UsageError(f"the state is of a schedule for gate {was}, this one moves {now}")
        self.done = int(state["done"])
        self.fading = dict(zip(self.fading, map(float, started), strict=True))
        self._apply()

    def _sites(self) -> list[str]:
        """The first site of each switch that fades."""
        names = switches(self.model)
        return [names[switch][0] for switch in self.fading]

    def _apply(self) -> None:
        """Set the gates to where they are at this step."""
        if self.kind == "keep":
            keep_top(self.model, self.kept)
            return
        import torch

        with torch.no_grad():
            for switch, value in self._values().items():
                switch.score.fill_(value)

    def _values(self) -> dict[Switch, float]:
        """The value of each fading switch at this step."""
        steps, count = self.options["steps"], len(self.fading)
        made: dict[Switch, float] = {}
        for place, (switch, start) in enumerate(self.fading.items()):
            # In whole numbers, so that each gate is at its end exactly when its part of the steps is done.
            done = self.done * count - place * steps if self.in_turn else self.done
            gone = progress_at(done, steps, self.options["shape"])
            made[switch] = start + (self.to - start) * gone
        return made


def _chosen(model: Any, sites: str | Sequence[str]) -> list[Switch]:
    """The soft switches of the named sites, in the order of the network.

    Raises:
        UsageError: If a name matches no gate, a gate is not soft, or a switch is shared with a site that is not named.
    """
    from ..passes.depth.gate_sites import matches

    groups = switches(model)
    patterns = [sites] if isinstance(sites, str) else list(sites)
    known = [name for names in groups.values() for name in names]
    chosen: set[str] = set() if patterns else set(known)
    for pattern in patterns:
        hits = matches(pattern, known)
        chosen.update(hits)
        if not hits:
            raise UsageError(
                f"there is no gate {pattern!r}; the model has {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
            )
    found = []
    for switch, names in groups.items():
        hits = [name for name in names if name in chosen]
        if hits and len(hits) < len(names):
            (other, *_) = [name for name in names if name not in hits]
            raise UsageError(f"the gate {hits[0]} is tied to {other}: name both")
        if hits and switch.mode != "soft":
            raise UsageError(
                f"{hits[0]} is a {switch.mode} gate; insert gates with mode='soft' to fade them"
            )
        found += [switch] if hits else []
    return found


def save_removal_plan(
    model: Any,
    path: str | os.PathLike[str],
    *,
    keep: int | None = None,
    threshold: float | None = None,
    example_inputs: Any = None,
) -> None:
    """Write a plan of the activations to remove, from the values of trained gates, for ``remove-activations{plan=...}``.

    Args:
        model: A gated ``GraphModule`` in evaluation mode.
        path: A ``.json`` file; written whole or not at all.
        keep: Keep this number of gates: those with the largest values, and of equal values those with the largest scores.
        threshold: Keep the gates with at least this value; 0.5 if ``keep`` is not given either.
        example_inputs: A tuple of inputs; with it, the plan also records shapes.

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


def _texts(given: str | Sequence[str]) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else tuple(given)


def unwrapped(model: Any) -> Any:
    """The module inside wrappers of distributed training and compilation."""
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
        raise UsageError("the model has no gates; insert_gates inserts them")
    return found


def switches(model: Any) -> dict[Switch, list[str]]:
    """The switches of a model in order, each with the names of its sites."""
    found: dict[Switch, list[str]] = {}
    for name, gate in _gates_of(model).items():
        found.setdefault(gate.switch, []).append(name)
    return found


def _ranked(groups: Mapping[Switch, list[str]], keep: int) -> list[tuple[Switch, list[str]]]:
    """The switches sorted by value, then by score, then by order in the network.

    Raises:
        UsageError: If there are fewer than ``keep``, or a score is not finite.
    """
    if not 0 <= keep <= len(groups):
        raise UsageError(f"cannot keep {keep} of {counted(len(groups), 'gate')}")
    keys: dict[Switch, tuple[float, float]] = {}
    for switch, names in groups.items():
        score = float(switch.score.detach())
        if not math.isfinite(score):
            raise UsageError(f"the score of gate {names[0]} is {score}: training has diverged")
        # The present value of a top-k gate is a result of an earlier choice; only its score counts.
        value = 0.0 if switch.mode == "top-k" else float(switch.number())
        keys[switch] = (-value, -score)
    return sorted(groups.items(), key=lambda item: keys[item[0]])


def _weights(found: Mapping[str, Gate], latency: Mapping[str, float] | None) -> dict[str, float]:
    if latency is None:
        return dict.fromkeys(found, 1.0)
    missing = [name for name in found if name not in latency]
    unknown = [name for name in latency if name not in found]
    if missing or unknown:
        what = (
            f"has no entry for gate {missing[0]!r}"
            if missing
            else f"names {unknown[0]!r}, which is not a gate"
        )
        raise UsageError(f"latency {what}")
    made = {name: float(latency[name]) for name in found}
    for name, value in made.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"the latency of {name!r} is {value}; it must be finite, not negative")
    if not sum(made.values()):
        raise UsageError("latency is 0 for every gate")
    return made
