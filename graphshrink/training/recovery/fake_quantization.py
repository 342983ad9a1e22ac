"""Training of models in Q/DQ form: what is quantised is rounded in the forward pass, and gradients pass as if it were not.

The rounding of weights and of activations is that of the file, with the scales of the file, so that the trained weights become exactly the integers that
the training saw. Where a number is clipped, it gets no gradient (the straight-through estimator of Bengio et al., "Estimating or propagating
gradients through stochastic neurons", 2013, as Jacob et al. use it in "Quantization and training of neural networks", 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ...ir import Dequantize, DType, Graph, Node, Quantize, Value
from ...targets.torch.names import host_name
from ...targets.torch.trainable import Steps, Trainable


def rounded(
    x: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """The nearest of the numbers ``q * scale`` with whole ``q`` from ``low`` to ``high``; the gradient is that of clipping alone."""
    steps = torch.clamp(x / scale, low, high)
    # The sum must give the rounded number itself, or the file would have other numbers.
    return (steps - steps.detach() + steps.detach().round()) * scale


class _Rounded(nn.Module):
    """A parametrization: a weight as the integers of its file stand for it."""

    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, steps: Steps, like: torch.Tensor) -> None:
        super().__init__()
        for name, array in (
            ("scale", steps.scale), ("low", steps.low - steps.zero), ("high", steps.high - steps.zero),
        ):  # fmt: skip
            self.register_buffer(name, torch.tensor(array, dtype=like.dtype), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return rounded(weight, self.scale, self.low, self.high)


@dataclass(frozen=True)
class Differentiable:
    """What became of a module whose quantisation has gradients.

    Attributes:
        names: The new names of parameters that are rounded, by the old ones.
        stopped: The names of quantised values that gradients do not pass.
    """

    names: dict[str, str]
    stopped: list[str]


def make_differentiable(trainable: Trainable) -> Differentiable:
    """Let gradients pass the quantisation in a module, and round its weights as their file does.

    Args:
        trainable: The module of a model in Q/DQ form; it is changed.

    Gradients do not pass where something else than a dequantisation reads the integers.
    """
    stopped: list[str] = []
    calls = {call.name: call for call in trainable.module.graph.nodes}
    for node in trainable.graph.nodes:
        if isinstance(node.op, Quantize) and node.output.data is None:
            stopped += _pass_gradients(node, trainable, calls)
    # Rounding to integers and back, which nothing reads any more.
    trainable.module.graph.eliminate_dead_code()
    trainable.module.graph.lint()
    trainable.module.recompile()
    return Differentiable(_round_weights(trainable), list(dict.fromkeys(stopped)))


def is_quantised(graph: Graph) -> bool:
    """Whether a graph has values or weights in Q/DQ form."""
    return any(isinstance(n.op, Quantize | Dequantize) for n in graph.nodes)


def zeros_of(floats: Graph, trainable: Trainable) -> dict[str, torch.Tensor]:
    """Which weights were not zero before they were quantised: rounding makes others zero, which may become larger again.

    Args:
        floats: The graph before ``quantize``, whose nodes have the same names.
        trainable: The module of the quantised graph, before :func:`make_differentiable`.

    Returns:
        Masks by the names of the module's parameters.
    """
    layers = {n.name: n for n in floats.nodes}
    stored = {}
    for node in trainable.graph.nodes:
        before = layers.get(node.name)
        for i, value in enumerate(node.inputs):
            maker = None if value is None else value.producer
            if maker is None or before is None or not isinstance(maker.op, Dequantize):
                continue
            numbers = _data(before.input(i)) if i < len(before.inputs) else None
            if numbers is not None:
                stored[host_name(maker.required(0))] = numbers != 0
    places = {id(t): place for t, place in trainable.places}
    found = {}
    for name in trainable.steps:
        parameter = trainable.module.get_parameter(name)
        place = places[id(parameter)]
        kept = stored.get(place.name)
        if kept is not None and kept.ndim == parameter.dim():
            mask = kept.transpose(place.axes)
            if mask.shape == tuple(parameter.shape):
                found[name] = torch.tensor(mask)
    return found


def _pass_gradients(node: Node, trainable: Trainable, calls: dict[str, fx.Node]) -> Iterator[str]:
    """Replace a quantisation and the dequantisations behind it by one call that has a gradient, which is added to ``calls``."""
    graph, values = trainable.module.graph, trainable.values
    source = calls.get(values.get(host_name(node.required(0)), ""))
    for reader in node.output.users:
        made = calls.get(values.get(host_name(reader.outputs[0]), ""))
        if source is None or made is None or not _undone_by(node, reader):
            yield host_name(node.required(0))
            continue
        with graph.inserting_before(made):
            arguments = [
                graph.get_attr(name) for name in _buffers(node, trainable.module, made.name)
            ]
            passed = graph.call_function(rounded, (source, *arguments))
        made.replace_all_uses_with(passed)
        calls[passed.name] = passed
        values[host_name(reader.outputs[0])] = passed.name


def _undone_by(node: Node, reader: Node) -> bool:
    """Whether a node dequantises with the constant scale and zero point with which another one quantised."""
    scale = _data(node.input(1))
    if not isinstance(reader.op, Dequantize) or reader.op.block or scale is None:
        return False
    assert isinstance(node.op, Quantize)
    if scale.size > 1 and node.op.axis != reader.op.axis:
        return False
    return all(_equal(node.input(i), reader.input(i)) for i in (1, 2))


def _equal(one: Value | None, other: Value | None) -> bool:
    a, b = _data(one), _data(other)
    return one is other or (a is not None and b is not None and np.array_equal(a, b))


def _data(value: Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    return None if value is None or value.data is None else value.data.numpy()


def _buffers(node: Node, module: fx.GraphModule, name: str) -> list[str]:
    """Buffers with the scale, the least and the largest number of steps."""
    assert isinstance(node.op, Quantize)
    scale, zero = _data(node.input(1)), _data(node.input(2))
    assert scale is not None
    rank = node.required(0).type.rank
    shape = [1] * (rank or 0)
    if scale.size > 1:
        shape[node.op.axis] = -1
    zeros = np.zeros(()) if zero is None else zero.astype(np.float64)
    limits = np.iinfo(DType(node.op.dtype).numpy)
    made = []
    for what, array in (
        ("scale", scale), ("low", limits.min - zeros), ("high", limits.max - zeros),
    ):  # fmt: skip
        buffer = f"_{name}_{what}"
        shaped = np.asarray(array).reshape(shape if np.size(array) > 1 else ())
        module.register_buffer(buffer, torch.tensor(shaped, dtype=torch.float32), persistent=False)
        made.append(buffer)
    return made


def _round_weights(trainable: Trainable) -> dict[str, str]:
    """Round the weights, whose parameters get new names; biases have steps that are too small to matter."""
    names = {}
    for name, steps in trainable.steps.items():
        if steps.dtype == np.int32:
            continue
        path, _, attribute = name.rpartition(".")
        owner = trainable.module.get_submodule(path)
        parameter = getattr(owner, attribute)
        parametrize.register_parametrization(
            owner, attribute, _Rounded(steps, parameter), unsafe=True
        )
        names[name] = f"{path}.parametrizations.{attribute}.original".removeprefix(".")
    return names


__all__ = ["is_quantised", "make_differentiable", "rounded", "zeros_of"]
