"""Distillation losses between a student and a teacher: on the logits, and on features (inner values).

Logits (Hinton et al., "Distilling the knowledge in a neural network", 2015): ``T^2 * KL(teacher / T || student / T)``
over the classes, averaged over all other axes. Features: the mean square of the difference divided by the mean square of the
teacher's feature, so that the loss does not depend on their scale or size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ...ir import UsageError
from ..gating import unwrapped

Loss = Callable[[Any, Any], torch.Tensor]


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence of the student's class probabilities from the teacher's.

    Args:
        student: Logits ``(N, C, ...)``.
        teacher: Logits of the same shape.
        temperature: The divisor of all logits.

    Returns:
        A scalar tensor.
    """
    given, wanted = student.float() / temperature, teacher.float() / temperature
    axis = min(1, given.dim() - 1)
    each = F.kl_div(
        given.log_softmax(axis), wanted.log_softmax(axis), reduction="none", log_target=True
    )
    return each.sum(axis).mean() * temperature**2


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean square of the difference, relative to the mean square of the teacher's feature."""
    wanted = teacher.float()
    return F.mse_loss(student.float(), wanted) / wanted.square().mean().clamp(min=1e-12)


class Teacher:
    """The teacher of a distillation; neither its parameters nor its batch norms change.

    Args:
        module: The teacher's module. It is copied if it shares parameters with the student, as a shrunk network
            does with the original.
        student: The module that is trained.
        features: The features to compare: names of the student's modules (or nodes of a ``GraphModule``), each with the
            teacher's name; a list if the names are the same.
        temperature: See :func:`distillation`.
        loss: A function of the outputs of student and teacher, in place of :func:`distillation`.
        device: The device to compute on.

    Raises:
        UsageError: If the teacher is the student, or a name is unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        student: nn.Module,
        features: Mapping[str, str] | Sequence[str],
        *,
        temperature: float,
        loss: Loss | None,
        device: torch.device,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise UsageError(f"the teacher must be a torch module, not a {type(module).__name__}")
        module = unwrapped(module)
        if module is student:
            raise UsageError("the teacher is the module itself: give copy.deepcopy of it")
        own = {id(tensor) for tensor in (*student.parameters(), *student.buffers())}
        if any(id(tensor) in own for tensor in (*module.parameters(), *module.buffers())):
            module = copy.deepcopy(module)
        self.module, self.temperature, self.loss = module, temperature, loss
        pairs = features if isinstance(features, Mapping) else {name: name for name in features}
        self.names = dict(pairs)
        self.tapped = Tapped(module, list(self.names.values()), "teacher").to(device)
        self.modes = {m: m.training for m in module.modules()}
        self.tapped.eval()

    def close(self) -> None:
        """Remove the hooks and restore the training modes of the module."""
        self.tapped.close()
        for module, training in self.modes.items():
            module.training = training

    def losses(
        self, inputs: Sequence[Any], outputs: Any, features: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The losses ``distillation`` and, if there are features, ``features``.

        Args:
            inputs: The inputs of both modules.
            outputs: The student's outputs.
            features: The student's features, in the order of the names.

        Raises:
            UsageError: If outputs or features of the two do not fit.
        """
        with torch.no_grad():
            try:
                wanted, wanted_features = self.tapped(*inputs)
            except (RuntimeError, TypeError) as error:
                reason = str(error).split("\n")[0]
                raise UsageError(
                    f"the teacher cannot run on the module's inputs: {reason}"
                ) from error
        if self.loss is not None:
            found = {"distillation": self.loss(outputs, wanted)}
        else:
            _check("outputs", wanted, outputs, "give distill_loss, a function of both")
            found = {"distillation": distillation(outputs, wanted, self.temperature)}
        parts = []
        for (name, theirs), given, goal in zip(
            self.names.items(), features, wanted_features, strict=True
        ):
            what = f"feature {theirs!r} beside {name!r}"
            _check(what, goal, given, "choose features of the same shape")
            parts.append(feature_loss(given, goal))
        if parts:
            found["features"] = torch.stack(parts).mean()
        return found


def _check(what: str, teacher: Any, student: Any, remedy: str) -> None:
    if isinstance(teacher, torch.Tensor) and isinstance(student, torch.Tensor):
        if teacher.shape == student.shape:
            return
        shapes = f"{list(teacher.shape)}, the module's {list(student.shape)}"
    else:
        shapes = f"a {type(teacher).__name__}, the module's a {type(student).__name__}"
    raise UsageError(f"the teacher's {what} do not fit: they are {shapes}; {remedy}")


class Tapped(nn.Module):
    """A module that returns its outputs and a list of features (inner values).

    Args:
        module: The module.
        names: Names of inner modules; in a ``GraphModule`` also names of nodes.
        whose: ``"module"`` or ``"teacher"``, for errors.

    Raises:
        UsageError: If a name is unknown.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], whose: str) -> None:
        super().__init__()
        self.names, self.whose = list(names), whose
        self.kept: dict[str, torch.Tensor] = {}
        inside = dict(unwrapped(module).named_modules())
        nodes = _nodes(module)
        for name in self.names:
            if name not in inside and name not in nodes:
                raise UsageError(
                    f"the {whose} has no module or node {name!r} to take a feature from"
                )
        self.hooks = [
            inside[name].register_forward_hook(self._keep(name))
            for name in set(self.names)
            if name in inside
        ]
        self.nodes = [name for name in self.names if name not in inside]
        self.module = _with_outputs(module, self.nodes) if self.nodes else module

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.kept[name] = output

        return hook

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def forward(self, *inputs: Any) -> tuple[Any, list[torch.Tensor]]:
        """Run the module; returns outputs and features."""
        self.kept.clear()
        outputs = self.module(*inputs)
        if self.nodes:
            outputs, extra = outputs
            self.kept.update(zip(self.nodes, extra, strict=True))
        for name in self.names:
            if not isinstance(self.kept.get(name), torch.Tensor):
                raise UsageError(f"feature {name!r} of the {self.whose} is not a tensor")
        found = [self.kept[name] for name in self.names]
        self.kept.clear()
        return outputs, found


def _nodes(module: nn.Module) -> dict[str, torch.fx.Node]:
    if not isinstance(module, torch.fx.GraphModule):
        return {}
    return {node.name: node for node in module.graph.nodes if node.op != "output"}


def _with_outputs(module: nn.Module, names: Sequence[str]) -> torch.fx.GraphModule:
    """A traced module that also returns the values of nodes; it shares the parameters of ``module``."""
    assert isinstance(module, torch.fx.GraphModule)
    graph, made = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    outputs = graph.graph_copy(module.graph, made)
    nodes = _nodes(module)
    graph.output((outputs, [made[nodes[name]] for name in names]))
    return torch.fx.GraphModule(module, graph)
