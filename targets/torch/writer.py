"""Writes calls, modules and constants into a new FX graph: the ``Writer`` that spellers work with."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ...hosts.torch.modules.gates import Switch
from ...hosts.torch.modules.masks import Constant
from ...ir import MaskedTensor, ModelError, Node, Tensor, Value
from .modules import ModuleTree
from .parameters import Parameters
from .speller import Results, Size


class GraphWriter:
    """Writes one graph.

    Attributes:
        out: The FX graph.
        tree: The modules, parameters and buffers.
        parameters: Makes tensors.
        training: Whether new modules are in training mode.
        nodes: The FX nodes of values.
    """

    def __init__(self, tree: ModuleTree, parameters: Parameters, training: bool) -> None:
        self.out = fx.Graph()
        self.tree, self.parameters, self._training = tree, parameters, training
        self.nodes: dict[Value, fx.Node] = {}
        self._constants: dict[Value, fx.Node] = {}

    # What spellers call.

    @property
    def training(self) -> bool:
        """Whether new modules are in training mode."""
        return self._training

    def value(self, value: Value) -> fx.Node:
        """The FX node that holds a value.

        Raises:
            ModelError: If nothing has made it yet.
        """
        if value in self.nodes:
            return self.nodes[value]
        if value.data is None:
            raise ModelError(f"%{value.name} is used before it is made")
        if value not in self._constants:
            self._constants[value] = self._constant(value, value.data)
        return self._constants[value]

    def as_sizes(self, value: Value) -> list[Size] | None:
        """The numbers of a vector of sizes, where the graph does not compute them as tensors."""
        return None

    def tensor(self, data: Tensor) -> torch.Tensor:
        """The numbers of a constant, the same tensor each time."""
        return self.parameters.tensor(data)

    def constant(self, value: Value) -> torch.Tensor:
        """The tensor of a constant that is no weight of a layer."""
        assert value.data is not None
        return self.tensor(value.data)

    def fill(self, made: nn.Module, name: str, data: Tensor) -> None:
        """Give a new module its parameter or buffer of this name."""
        self.parameters.fill(made, name, data)

    def buffer(self, name: str, made: torch.Tensor) -> fx.Node:
        """Numbers that a rule computes, as a buffer on the device of the host's tensors."""
        device = self.parameters.device
        name = self.tree.free(name.replace("/", ".").strip("."))
        return self.out.get_attr(self.tree.place(name, made.to(device)))

    def bare(self, value: Value | None) -> bool:
        """Whether a weight is that of a module of another kind, and no layer's own ``weight``."""
        return False

    def switch(self, number: Value, mode: str) -> Switch:
        """The switch of the gates that read a constant number."""
        return self.parameters.switch(number, mode)

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function, or of a method by name."""
        if isinstance(function, str):
            return self.out.call_method(function, args, kwargs)
        return self.out.call_function(function, args, kwargs)

    def module(self, name: str, made: nn.Module, *args: Any) -> fx.Node:
        """A call of a new module under a dotted name like ``name``."""
        made.train(self.training)
        return self.out.call_module(self.tree.place(self.tree.free(name), made), args)

    # What emitters call.

    def written(self, node: Node, made: Results) -> None:
        """Note the results of a node that was written."""
        for i, value in enumerate(node.outputs):
            if isinstance(made, list):
                self.nodes[value] = made[i]
            elif len(node.outputs) == 1:
                self.nodes[value] = made
            elif value.use_count:
                self.nodes[value] = self.call(operator.getitem, made, i)

    def _constant(self, value: Value, data: Tensor) -> fx.Node:
        if isinstance(data, MaskedTensor) and data.lasting:
            held = Constant(nn.Parameter(torch.empty(0), requires_grad=False))
            self.fill(held, "weight", data)
            return self.out.call_module(self.tree.place(self.tree.free(value.name), held))
        name, made = self._held(value, data)
        return self.out.get_attr(self.tree.place(name, made))

    def _held(self, value: Value, data: Tensor) -> tuple[str, torch.Tensor]:
        """The dotted name of a constant that is read by calls, and its tensor."""
        raise NotImplementedError


__all__ = ["GraphWriter"]
