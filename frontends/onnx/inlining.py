"""Inlining: replaces calls of local functions by their nodes, and each If with a known condition by its branch.

Both hide linear layers: layers inside a body or a function can neither be merged with layers outside nor be reordered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, helper

from ...hosts.onnx.operators import DOMAINS
from ...hosts.onnx.scopes import all_nodes, bodies, rename
from ...ir.errors import listed

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
"""A function is inlined if it contains one of these operators."""

_MOST_BYTES = 1 << 30
"""Functions of larger models are not inlined, because onnx copies the whole model for that."""


def linear_functions(model: ModelProto) -> list[tuple[str, str]]:
    """The local functions, by domain and name, that contain linear layers, directly or in functions that they call."""
    inside = {
        (f.domain, f.name): {(n.domain, n.op_type) for n in all_nodes(f.node)}
        for f in model.functions
    }
    found: set[tuple[str, str]] = set()
    grows = True
    while grows:
        grown = {
            key
            for key, kinds in inside.items()
            if not kinds.isdisjoint(found) or any(d in DOMAINS and k in _LINEAR for d, k in kinds)
        }
        grows, found = grown != found, grown
    return [key for key in inside if key in found]


def inline_functions(model: ModelProto) -> tuple[ModelProto, str]:
    """Inline the functions that contain linear layers.

    Args:
        model: The model; it is not changed.

    Returns:
        A model without these functions, and a note that names them. The given model if there are none, if it is too large
        to be copied, or if the functions cannot be inlined: then the note says why.
    """
    functions = linear_functions(model) if model.functions else []
    if not functions or model.ByteSize() > _MOST_BYTES:
        return model, ""
    from onnx import inliner

    names = listed([name for _, name in functions])
    imports = _imports(model)
    if imports is None:
        return model, f"calls of {names} stay: local functions use other opsets than the model"
    if any(f.overload for f in model.functions):
        return model, f"calls of {names} stay: local functions are overloaded"
    made: ModelProto = inliner.inline_selected_functions(_with_defaults(model), functions)
    stated = {o.domain for o in made.opset_import}
    made.opset_import.extend(
        helper.make_opsetid(d, v) for d, v in imports.items() if d not in stated
    )
    return (
        made,
        f"calls of {len(functions)} local functions with linear layers were inlined: {names}",
    )


def _imports(model: ModelProto) -> dict[str, int] | None:
    """The opsets of a model and its functions; ``None`` if they disagree, because nodes are moved as they are."""
    found: dict[str, int] = {}
    for item in (model, *model.functions):
        for opset in item.opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            if found.setdefault(domain, opset.version) != opset.version:
                return None
    return found


def _with_defaults(model: ModelProto) -> ModelProto:
    """A model whose calls state all attributes that their functions have defaults for: onnx's inliner drops the defaults."""
    defaults = {(f.domain, f.name): f.attribute_proto for f in model.functions if f.attribute_proto}
    if not defaults:
        return model
    made: ModelProto = ModelProto.FromString(model.SerializeToString())
    graphs: list[Iterable[NodeProto]] = [made.graph.node, *(f.node for f in made.functions)]
    for nodes in graphs:
        for node in all_nodes(nodes):
            stated = {a.name for a in node.attribute}
            found = defaults.get((node.domain, node.op_type), ())
            node.attribute.extend(a for a in found if a.name not in stated)
    return made


def inline_branches(
    model: ModelProto, decided: Mapping[str, bool], reserved: Iterable[str] = ()
) -> None:
    """Replace each If with a known condition by the branch that it takes, in place.

    Args:
        model: The model. Results inside the branch keep their names if these are unique.
        decided: The known conditions, by the name of the If's first result.
        reserved: Names that new values must not take.
    """
    graph = model.graph
    defined = Counter(_definitions(graph))
    for name in reserved:
        defined.setdefault(name, 0)
    names = {node.name for node in graph.node}
    stated = {v.name for v in (*graph.input, *graph.output, *graph.value_info)}
    nodes: list[NodeProto] = []
    for node in graph.node:
        taken = decided.get(first_result(node)) if node.op_type == "If" else None
        if taken is None:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
            continue
        wanted = "then_branch" if taken else "else_branch"
        (body,) = (a.g for a in node.attribute if a.name == wanted)
        body = GraphProto.FromString(body.SerializeToString())
        made = _branch(model, node, body, defined)
        graph.value_info.extend(info for info in body.value_info if info.name not in stated)
        stated.update(info.name for info in body.value_info)
        _rename_nodes(made, names)
        nodes += made
    del graph.node[:]
    graph.node.extend(nodes)


def first_result(node: NodeProto) -> str:
    """The first result name of a node that is not empty; an empty text if there is none."""
    return next(filter(None, node.output), "")


def _branch(
    model: ModelProto, node: NodeProto, body: GraphProto, defined: Counter[str]
) -> list[NodeProto]:
    """The nodes of a branch, renamed for the outer graph; the branch's constants are added to the model."""
    mapping: dict[str, str] = {}
    tensors = [t.name for t in body.initializer] + [s.values.name for s in body.sparse_initializer]
    made = [name for inner in body.node for name in inner.output if name]
    for name in (*tensors, *made):
        if defined[name] > 1:
            mapping[name] = _unique(name, defined)
    hidden = set(_definitions(body))
    copies: list[NodeProto] = []
    given: set[str] = set()
    for result, name in zip([v.name for v in body.output], node.output, strict=True):
        if not name:
            continue
        if result in made and result not in given and name not in hidden:
            mapping[result] = name
            given.add(result)
        else:
            copies.append(helper.make_node("Identity", [mapping.get(result, result)], [name]))
    for inner in body.node:
        rename(inner, mapping)
    for tensor in body.initializer:
        tensor.name = mapping.get(tensor.name, tensor.name)
    for sparse in body.sparse_initializer:
        sparse.values.name = mapping.get(sparse.values.name, sparse.values.name)
    for info in body.value_info:
        info.name = mapping.get(info.name, info.name)
    model.graph.initializer.extend(body.initializer)
    model.graph.sparse_initializer.extend(body.sparse_initializer)
    return [*body.node, *copies]


def _rename_nodes(nodes: Iterable[NodeProto], taken: set[str]) -> None:
    """Make the names of nodes unique: onnxruntime refuses a graph with two nodes of one name."""
    for node in nodes:
        name, count = node.name, 0
        while node.name and node.name in taken:
            count += 1
            node.name = f"{name}_{count}"
        taken.add(node.name)


def _unique(name: str, defined: Counter[str]) -> str:
    count = 1
    while f"{name}_{count}" in defined:
        count += 1
    defined[f"{name}_{count}"] += 1
    return f"{name}_{count}"


def _definitions(graph: GraphProto) -> Iterator[str]:
    """Every name that a graph or one of its subgraphs defines, once for each definition."""
    yield from (v.name for v in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (s.values.name for s in graph.sparse_initializer)
    for node in graph.node:
        yield from filter(None, node.output)
        for body in bodies(node):
            yield from _definitions(body)


__all__ = ["first_result", "inline_branches", "inline_functions", "linear_functions"]
