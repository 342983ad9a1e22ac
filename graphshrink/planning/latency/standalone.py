"""Copies of graphs without a host model and with random weights: these are timed for a signature.

A copy has no origins, so that every target writes it from its ops, whether it came from ONNX or from torch. Float weights
are replaced by random numbers, because zeros, infinities and subnormal numbers can change the latency.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ir import ArrayTensor, DType, Graph, MaskedTensor, Tensor, TensorType, Value
from .signature import check_measurable, finished


def standalone(graph: Graph, *, own_weights: bool = False) -> Graph:
    """Copy what the outputs of a graph depend on, without its host.

    Args:
        graph: The graph.
        own_weights: Keep the numbers of its weights.

    Raises:
        ModelError: If the shape of an input is not known, or the graph has ops that the IR does not express.
    """
    check_measurable(graph)
    needed = {v for v in finished(graph) if v.data is None}
    made = Graph("timed")
    values: dict[Value, Value] = {}
    rng = np.random.default_rng(0)
    for value in graph.inputs:
        if value in needed:
            values[value] = made.add_input(f"x{len(made.inputs)}", value.type)

    def read(value: Value | None) -> Value | None:
        if value is None:
            return None
        if value not in values:
            assert value.data is not None
            data = value.data if own_weights else _weight(value.data, rng)
            values[value] = made.add_constant(data, f"w{len(values)}")
        return values[value]

    for node in graph.nodes:
        if not any(v in needed for v in node.outputs):
            continue
        types = [v.type for v in node.outputs]
        names = [f"v{len(values) + i}" for i in range(len(types))]
        copied = made.append(
            node.op, [read(v) for v in node.inputs], name=names[0], types=types, output_names=names
        )
        values.update(zip(node.outputs, copied.outputs, strict=True))
    for i, value in enumerate(graph.outputs):
        returned = read(value)
        assert returned is not None
        made.add_output(returned, f"y{i}")
    return made


def _weight(data: Tensor, rng: np.random.Generator) -> Tensor:
    """Random weights that keep activations at an ordinary magnitude; masked tensors, single numbers and integers are unchanged."""
    if isinstance(data, MaskedTensor) or not data.dtype.is_wide_float or data.size < 2:
        return data
    if len(data.shape) < 2:  # Scales and biases.
        array = rng.uniform(0.5, 1.0, data.shape)
    else:
        array = rng.standard_normal(data.shape) / math.sqrt(max(1, data.size // data.shape[0]))
    return ArrayTensor(array.astype(data.dtype.numpy))


def with_torch_host(graph: Graph) -> Graph:
    """Give a standalone graph an empty torch module as its host, so that the torch target can write it."""
    import torch
    from torch import fx, nn

    from ...hosts.torch.origins import FxHost

    host = fx.Graph()
    for value in graph.inputs:
        value.host = host.placeholder(value.name).name
    # Only the names of the results are used: these calls are not copied.
    stubs = [host.call_function(torch.empty, (0,)) for _ in graph.outputs]
    host.output(tuple(stubs))
    module = fx.GraphModule(nn.Module(), host).eval()
    graph.output_names[:] = [stub.name for stub in stubs]
    graph.host = FxHost(module, None, {n.name: n for n in module.graph.nodes}, frozenset())
    return graph


def reference() -> Graph:
    """The reference graph, which is timed in turn with every other graph: two convolutions with a ReLU between them."""
    from ...ir import Activation, Conv

    graph = Graph("reference")
    rng = np.random.default_rng(0)

    def convolution(x: Value, out: int) -> Value:
        size = x.type.dim(1)
        assert size is not None
        weight = (rng.standard_normal((out, size, 3, 3)) / math.sqrt(9 * size)).astype(np.float32)
        held = graph.add_constant(ArrayTensor(weight), "w")
        return graph.append(Conv((1, 1), (1, 1, 1, 1), (1, 1)), [x, held]).output

    x = graph.add_input("x", TensorType(DType.F32, (1, 16, 28, 28)))
    hidden = graph.append(Activation("relu"), [convolution(x, 32)]).output
    graph.add_output(convolution(hidden, 16), "y")
    return graph


def random_array(type_: TensorType, rng: np.random.Generator) -> Any:
    """A random array of a type: normally distributed floats, otherwise zeros and ones; unknown sizes become 1."""
    dtype = type_.dtype
    assert dtype is not None
    shape = tuple(d if isinstance(d, int) else 1 for d in type_.shape or ())
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    return rng.integers(0, 2, shape).astype(dtype.numpy)
