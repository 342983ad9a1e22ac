"""Graphs that did not come from torch as torch modules: every node is written anew.

The result is a ``GraphModule`` of ordinary modules under dotted names that follow the model's own (:mod:`.names`). Weights are
parameters, the running statistics of batch norms and other constants are buffers. What cannot be written is one error that names
every such node.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import NodeProto
from torch import fx, nn

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.origins import OnnxHost, OnnxOrigin
from ...hosts.torch.origins import FxHost
from ...hosts.torch.pickled import ShrunkModule
from ...ir import Graph, Identity, ModelError, Node, Opaque, Scale, Tensor, Value, check_masks
from ..emitted import Readers
from ..refusals import Refusal, live_nodes, op_name, reason_of, refusal_text
from .batch_norms import is_norm, made_norm
from .emitter import to_fx
from .modules import ModuleTree
from .names import arguments, constant_name, host_name, module_name
from .onnx_operators import OPERATORS, Operator
from .parameters import Parameters
from .sizes import Sizes
from .spell import spell
from .spell.arithmetic import scale_calls
from .speller import TORCH_DTYPES, Results, Size, Speller
from .writer import GraphWriter


def to_module(graph: Graph, readers: Readers | None = None) -> fx.GraphModule:
    """Emit any graph as a module in evaluation mode; one from torch as :func:`.emitter.to_fx` does.

    Args:
        graph: The graph.
        readers: Reads an ONNX model again if it has operators that cannot be written; without it, they are an error.

    Raises:
        ModelError: If there are nodes that torch cannot express; it names all of them.
    """
    if isinstance(graph.host, FxHost):
        return to_fx(graph)
    return written_anew(graph, readers).assembled()


def written_anew(graph: Graph, readers: Readers | None = None) -> Anew:
    """The finished writer of a graph that did not come from torch, which knows what became of values and weights.

    Raises:
        ModelError: If there are nodes that torch cannot express; it names all of them.
    """
    check_masks(graph)
    first = Anew(graph)
    first.write()
    if not first.refusals:
        return first
    refused = first.refusals
    # In another reading, a batch norm that a pass added would be arithmetic, which does not train as one.
    again = () if readers is None or _has_new_norm(graph) else readers.again(graph)
    for _, other in again:
        if len(other.inputs) != len(graph.inputs) or len(other.outputs) != len(graph.outputs):
            continue
        second = Anew(other)
        second.write()
        if not second.refusals:
            return second
        # The error names what is left in the reading that comes closest.
        refused = min(refused, second.refusals, key=len)
    raise ModelError(refusal_text(refused, "a torch module", most=len(refused)))


def best_reading(graph: Graph, readers: Readers) -> Graph:
    """A graph from ONNX, or another reading of it if it has operators without a rule that the other has not.

    Passes run on the reading that is written: what they add is not read again.
    """
    if not isinstance(graph.host, OnnxHost) or not _lacks_rules(graph):
        return graph
    for _, other in readers.again(graph):
        alike = len(other.inputs) == len(graph.inputs) and len(other.outputs) == len(graph.outputs)
        if alike and not _lacks_rules(other):
            other.notes[:0] = graph.notes
            return other
    return graph


def _lacks_rules(graph: Graph) -> bool:
    return any(
        isinstance(node.op, Opaque) and node.op.kind.removeprefix("onnx:") not in OPERATORS
        for node in live_nodes(graph)
    )


def _has_new_norm(graph: Graph) -> bool:
    """Whether a pass added a batch norm, or moved one."""
    return any(
        node.origin is None and isinstance(node.op, Scale) and is_norm(node) for node in graph.nodes
    )


class Anew(GraphWriter):
    """Writes one graph that did not come from torch.

    Attributes:
        refusals: The nodes, inputs and outputs that cannot be written.
        norms: The batch norms among the nodes, each with its module.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(ModuleTree(), Parameters(), training=False)
        self.graph = graph
        self.host = graph.host if isinstance(graph.host, OnnxHost) else None
        self.refusals: list[Refusal] = []
        self.norms: list[tuple[Node, nn.Module]] = []
        self.sizes = Sizes(self.call, self.value)
        self._node: Node | None = None
        self._anchor = next((v for v in graph.inputs if v.type.dtype is not None), None)
        self._names = arguments(host_name(v) for v in graph.inputs)

    def write(self) -> None:
        """Write all that outputs depend on; ``refusals`` lists what cannot be written."""
        for value, name in zip(self.graph.inputs, self._names, strict=True):
            self.nodes[value] = self.out.placeholder(name)
            dtype = value.type.dtype
            if dtype is not None and dtype not in TORCH_DTYPES:
                reason = f"torch has no element type {dtype.value}"
                self.refusals.append(Refusal("input", value.name, reason))
        for node in live_nodes(self.graph):
            self._write(node)
        if not self.refusals:
            self._outputs()

    def assembled(self) -> fx.GraphModule:
        """The module of the finished FX graph."""
        for made in reversed(self.out.nodes):
            if not made.users and made.op not in ("placeholder", "output"):
                self.out.erase_node(made)
        self.out.lint()
        module = ShrunkModule(self.tree.root, self.out, "GraphModule")
        given = [host_name(v) for v in self.graph.inputs]
        module.meta["inputs"] = dict(zip(self._names, given, strict=True))
        module.meta["outputs"] = list(self.graph.output_names)
        return module.eval()

    # What spellers call.

    def module(self, name: str, made: nn.Module, *args: Any) -> fx.Node:
        """A call of a new module under a dotted name that follows the model's own."""
        assert self._node is not None
        return super().module(self._module_name(self._node), made, *args)

    def _module_name(self, node: Node) -> str:
        """The dotted name of the module of a node; a batch norm that a pass added is named after its layer."""
        source = node.inputs[0]
        if isinstance(node.op, Scale) and node.origin is None and source is not None:
            layer = source.producer
            if layer is not None and node.name == f"{layer.name}_norm":
                return f"{self._module_name(layer)}_norm"
        return module_name(node, self._proto(node))

    def _proto(self, node: Node) -> NodeProto | None:
        """The ONNX node that a node was read from, the last one if they are several."""
        origin = node.origin
        if self.host is None or not isinstance(origin, OnnxOrigin) or not origin.nodes:
            return None
        found: NodeProto = self.host.model.graph.node[origin.nodes[-1]]
        return found

    def as_sizes(self, value: Value) -> list[Size] | None:
        """The numbers of a vector of sizes."""
        return self.sizes.of(value)

    def constant(self, value: Value) -> torch.Tensor:
        """The tensor of a constant that is no weight of a layer: a parameter if it may be a weight."""
        assert value.data is not None
        learns = self._learns(value, value.data)
        return self.tensor(value.data) if learns else self.parameters.made(value.data)

    def _held(self, value: Value, data: Tensor) -> tuple[str, torch.Tensor]:
        return self.tree.free(constant_name(value)), self.constant(value)

    def _learns(self, value: Value, data: Tensor) -> bool:
        """Whether a constant may be a weight: floats that the model stores, more than one, none as large as in a mask."""
        if not data.dtype.is_float or data.size <= 1 or value.producer is not None:
            return False
        if self.host is not None and not self._is_stored(value):
            return False
        numbers = data.numpy()  # Extrema need no copy; those of NaN are in no range.
        return bool(numbers.min() > -_MASKED and numbers.max() < _MASKED)

    def _is_stored(self, value: Value) -> bool:
        """Whether a constant is an initializer, or derived from some."""
        assert self.host is not None
        names = [v.host for v in (value, *value.bases) if isinstance(v.host, str)]
        return any(name not in self.host.constant_nodes for name in names)

    # Nodes.

    def _write(self, node: Node) -> None:
        self._node = node
        try:
            made = self._spelled(node)
        except ModelError as error:
            reason = str(error).removeprefix(f"{node.name}: ")
            self.refusals.append(Refusal(op_name(node), node.name, reason))
            self._stub(node)
            return
        except Exception:
            # Behind a refused node, results are only placeholders.
            if not self.refusals:
                raise
            self._stub(node)
            return
        self.written(node, made)
        self.sizes.see(node)

    def _stub(self, node: Node) -> None:
        """Placeholders stand in for the results of a refused node, so that nodes behind it are tried too."""
        for value in node.outputs:
            self.nodes[value] = self.call(torch.empty, ())

    def _spelled(self, node: Node) -> Results:
        if isinstance(node.op, Opaque):
            return self._operator(node)
        rate = self._dropped(node)
        if rate is not None:
            return self.module(node.name, nn.Dropout(rate), self.value(node.required(0)))
        if isinstance(node.op, Scale):
            # Plain arithmetic, so that vectors keep their names and nothing but torch is needed.
            norm = made_norm(node, self.tensor)
            if norm is None:
                return scale_calls(Speller(node, self), node.op)
            self.norms.append((node, norm))
            return self.module(node.name, norm, self.value(node.required(0)))
        return spell(node, self)

    def _operator(self, node: Node) -> Results:
        """Write an ONNX operator that has no op in the IR."""
        assert isinstance(node.op, Opaque)
        rule, proto = OPERATORS.get(node.op.kind.removeprefix("onnx:")), self._proto(node)
        doubtful = node.op.reason.startswith("the types that the file states")
        if rule is None or self.host is None or proto is None or doubtful:
            raise ModelError(reason_of(node, ""))
        try:
            return rule(Operator(node, self, proto, self.host.opset, self.sizes, self._anchor))
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"torch cannot write this form of it ({error})") from error

    def _dropped(self, node: Node) -> float | None:
        """The rate of the dropout that an Identity was read from."""
        proto = self._proto(node) if isinstance(node.op, Identity) else None
        if proto is None or proto.op_type != "Dropout" or proto.domain not in DOMAINS:
            return None
        rates = [a.f for a in proto.attribute if a.name == "ratio"]
        if len(proto.input) > 1 and proto.input[1]:
            stored = {v.host: v.data for v in self.graph.constants}
            data = stored.get(proto.input[1])
            rates = [] if data is None else [float(data.float64().reshape(-1)[0])]
        return min(max(rates[0], 0.0), 1.0) if rates else 0.5

    def _outputs(self) -> None:
        made = []
        for name, value in zip(self.graph.output_names, self.graph.outputs, strict=True):
            try:
                made.append(self.value(value))
            except ModelError as error:
                self.refusals.append(Refusal("output", name, str(error)))
        if not self.refusals:
            self.out.output(made[0] if len(made) == 1 else tuple(made))


_MASKED = 1e4
"""Numbers of this size and above are those of a mask that is added, not of weights."""


__all__ = ["Anew", "best_reading", "to_module", "written_anew"]
