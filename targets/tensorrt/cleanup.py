"""Clean-up by onnx-graphsurgeon: folds constants, removes dead nodes, inlines ``If`` nodes with a constant condition.

NVIDIA's parser needs shapes, axes and conditions as constants; graphsurgeon computes them, folding constants with onnxruntime and
shapes by itself. Quantize and Dequantize nodes stay. The model's functions are inlined, and so are ONNX operators that TensorRT lacks
and that ONNX defines by a function of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from ...hosts.onnx.operators import DOMAINS, function_schema, write_defaults
from ...hosts.onnx.scopes import captures, has_bodies, unique_name
from ...hosts.onnx.tensors import is_external
from ...ir import DerivedTensor, DType, MissingExtra, ModelError, Tensor
from .draft import Draft, all_graphs, all_nodes, attributes
from .formalities import complete, require_shapes
from .lint import lint
from .operators import Operators

_FOLD_BYTES = 1 << 24
"""The largest constant, in bytes, that folding may make."""
_SIZED = ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range")
"""Operators with a number as input that is the size of the result."""


def require() -> Any:
    """Return the module ``onnx_graphsurgeon``.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise MissingExtra("the target tensorrt", "tensorrt", "onnx-graphsurgeon") from error
    return onnx_graphsurgeon


def clean(draft: Draft, operators: Operators, allowed: frozenset[str] = frozenset()) -> None:
    """Clean up a draft in place.

    Args:
        draft: The model.
        operators: The operators of the TensorRT version; others are inlined if ONNX defines them by a function.
        allowed: Operators that are not inlined even so, because a plugin provides them.

    Raises:
        ModelError: If graphsurgeon cannot read the model, or the rank of an output is unknown.
    """
    draft.name_nodes()
    _fix_constants(draft)
    complete(draft)
    _inline(draft, operators, allowed)
    _full_shapes(draft)
    _separate_outputs(draft)
    _fold(draft, operators, allowed)
    _dequantize_biases(draft)
    _rename_branch_results(draft)
    draft.name_nodes()


def _fix_constants(draft: Draft) -> None:
    """Remove initializers from the inputs: there, a caller could replace their values."""
    graph = draft.model.graph
    constants = {p.name for p in graph.initializer}
    inputs = [v for v in graph.input if v.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    draft.model.ir_version = max(draft.model.ir_version, 4)


def _inline(draft: Draft, operators: Operators, allowed: frozenset[str]) -> None:
    """Inline the model's functions, and operators that TensorRT lacks and ONNX defines by a function."""
    from onnx import inliner

    if draft.model.functions:
        try:
            draft.model = inliner.inline_local_functions(draft.model)
        except Exception as error:
            raise ModelError(f"onnx cannot inline the model's functions: {error}") from error
    # The inliner needs types, those of constants included.
    typed, lacking = _typed(draft), set()
    for proto in typed.graph.initializer:
        typed.graph.value_info.append(
            onnx.helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims)
        )
    for node in all_nodes(typed.graph):
        schema = None
        if node.domain in DOMAINS and node.op_type not in {*operators.taken, *allowed}:
            schema = function_schema(node.op_type, draft.opset)
        if schema is not None:
            lacking.add(("", node.op_type))
            write_defaults(node, schema)
    for name in sorted(lacking):
        try:
            done = inliner.inline_selected_functions(typed, [name], False, True)
            replace(draft, model=done).checked()
        except Exception:
            continue  # The operator stays, and the lint refuses it by its name.
        # A function with If or Loop nodes that depend on shapes would not help TensorRT.
        if _count_bodies(done) == _count_bodies(typed):
            draft.model = typed = done


def _count_bodies(model: ModelProto) -> int:
    """Return the number of nodes with bodies."""
    return sum(has_bodies(node) for node in all_nodes(model.graph))


def _full_shapes(draft: Draft) -> None:
    """Replace a Shape of some axes by a Slice of the full shape: graphsurgeon ignores its ``start`` and ``end``."""
    taken = {name for node in all_nodes(draft.model.graph) for name in (*node.input, *node.output)}
    for graph in list(all_graphs(draft.model.graph)):
        if not any(n.op_type == "Shape" and n.attribute for n in graph.node):
            continue
        nodes: list[NodeProto] = []
        for node in graph.node:
            found = attributes(node) if node.op_type == "Shape" and node.domain in DOMAINS else {}
            if not found:
                nodes.append(NodeProto.FromString(node.SerializeToString()))
                continue
            (result,) = node.output
            whole, start, end = (unique_name(f"{result}_{part}", taken) for part in _SLICED)
            bounds = (found.get("start", 0), found.get("end", _END))
            nodes.append(onnx.helper.make_node("Shape", node.input, [whole], name=node.name))
            nodes += [
                onnx.helper.make_node("Constant", [], [name], value_ints=[bound])
                for name, bound in zip((start, end), bounds, strict=True)
            ]
            nodes.append(onnx.helper.make_node("Slice", [whole, start, end], [result]))
        del graph.node[:]
        graph.node.extend(nodes)


_SLICED = ("whole", "start", "end")
_END = 2**31 - 1


def _separate_outputs(draft: Draft) -> None:
    """Give constants that are outputs another name where bodies read them: graphsurgeon renames what an inlined branch reads."""
    graph = draft.model.graph
    outputs = {v.name for v in graph.output}
    captured = {name for node in graph.node if has_bodies(node) for name in captures(node)}
    clash = {p.name for p in graph.initializer if p.name in outputs & captured}
    if not clash:
        return
    taken = {name for node in all_nodes(graph) for name in (*node.input, *node.output)}
    fresh = {name: unique_name(f"{name}_value", taken) for name in sorted(clash)}
    for proto in graph.initializer:
        proto.name = fresh.get(proto.name, proto.name)
    draft.tensors = {fresh.get(name, name): t for name, t in draft.tensors.items()}
    for node in all_nodes(graph):
        node.input[:] = [fresh.get(name, name) for name in node.input]
    for inner in all_graphs(graph):
        if inner is not graph:
            for value in inner.output:
                value.name = fresh.get(value.name, value.name)
    graph.node.extend(
        onnx.helper.make_node("Identity", [inside], [name]) for name, inside in fresh.items()
    )


def _fold(draft: Draft, operators: Operators, allowed: frozenset[str]) -> None:
    """Fold constants and shapes, inline ``If`` nodes with a constant condition, remove unused nodes."""
    unfoldable = set(draft.tensors)
    unfoldable |= {p.name for p in draft.model.graph.initializer if is_external(p)}
    # Do not fold nodes whose results would be too large to store: they may not even fit into memory.
    types = draft.types()
    for node in draft.model.graph.node:
        sizes = [types[name].size for name in node.output if name in types]
        if any(n > _FOLD_BYTES if n is not None else node.op_type in _SIZED for n in sizes):
            unfoldable.update(node.output)
    try:
        require_shapes(draft)
        typed = _typed(draft)
        try:
            done = _run_surgeon(draft, typed, unfoldable, flatten=True)
        except ModelError:
            # Inlining nested branches may lose nodes: keep them.
            done = _run_surgeon(draft, typed, unfoldable, flatten=False)
    except Exception as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        failed = f"onnx-graphsurgeon cannot clean up the model: {message}"
        try:
            lint(draft, operators, allowed, folded=False)
        except ModelError as refused:
            # Operators that TensorRT lacks are worth knowing even if they are not what made the clean-up fail.
            raise ModelError(f"{failed}. Whether or not it is the cause: {refused}") from error
        raise ModelError(failed) from error
    draft.model, draft.tensors = done.model, done.tensors


def _run_surgeon(draft: Draft, typed: ModelProto, unfoldable: set[str], flatten: bool) -> Draft:
    """Return the draft after graphsurgeon, checked by onnx."""
    gs = require()
    from onnx_graphsurgeon.logger import G_LOGGER

    def excluded(node: Any) -> bool:
        return any(tensor.name in unfoldable for tensor in (*node.inputs, *node.outputs))

    level, G_LOGGER.severity = G_LOGGER.severity, G_LOGGER.CRITICAL
    try:
        surgeon = gs.import_onnx(typed)
        surgeon.toposort()
        surgeon.fold_constants(
            size_threshold=_FOLD_BYTES,
            should_exclude_node=excluded,
            flatten_subgraphs=flatten,
        )
        surgeon.cleanup(remove_unused_graph_inputs=False).toposort()
        graph = gs.export_onnx(surgeon, do_type_check=False).graph
    finally:
        G_LOGGER.severity = level
    wanted, found = [v.name for v in typed.graph.output], [v.name for v in graph.output]
    if found != wanted:
        # Inlining a branch renames what it reads; a constant that is also an output is renamed with it.
        raise ModelError(f"it renamed outputs: {', '.join(found)} instead of {', '.join(wanted)}")
    # The stated types of inner values may be wrong now; they are inferred again.
    del graph.value_info[:]
    model = ModelProto()
    model.CopyFrom(draft.model)
    model.graph.CopyFrom(graph)
    live = {p.name for p in graph.initializer}
    tensors = {name: t for name, t in draft.tensors.items() if name in live}
    done = Draft(model, tensors, draft.readers, draft.base_dir, draft.external, draft.notes)
    done.checked()
    return done


def _dequantize_biases(draft: Draft) -> None:
    """Replace biases stored as int32 with a scale by float constants: TensorRT cannot dequantize int32."""
    graph, constants = draft.model.graph, draft.constants()
    kept = []
    for node in graph.node:
        read = [constants.get(name) for name in node.input]
        ready = node.op_type == "DequantizeLinear" and all(t is not None for t in read)
        if not ready or read[0] is None or read[0].dtype is not DType.I32:
            kept.append(node)
            continue
        made = dequantized([t for t in read if t is not None], attributes(node).get("axis", 1))
        draft.set_constant(node.output[0], made)
    if len(kept) < len(graph.node):
        nodes = [NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(nodes)
        read_names = {name for node in all_nodes(graph) for name in node.input}
        read_names |= {v.name for v in graph.output}
        live = [p for p in graph.initializer if p.name in read_names]
        del graph.initializer[:]
        graph.initializer.extend(live)
        draft.tensors = {n: t for n, t in draft.tensors.items() if n in read_names}


def dequantized(tensors: Sequence[Tensor], axis: object) -> Tensor:
    """Return the result of DequantizeLinear for an int32 tensor and a scale; ONNX allows no zero point but 0 for int32."""
    numbers, scale = tensors[0], tensors[1]
    shape = [1] * len(numbers.shape)
    if scale.size > 1:
        assert isinstance(axis, int)
        shape[axis] = scale.size

    def compute() -> Any:
        return numbers.float64() * scale.float64().reshape(shape)

    return DerivedTensor(numbers.shape, scale.dtype, compute)


def _typed(draft: Draft) -> ModelProto:
    """Return a copy of the model with inferred types as value infos, which shape folding needs."""
    from ...hosts.onnx.types import proto_of_type

    typed = ModelProto()
    typed.CopyFrom(draft.model)
    graph = typed.graph
    stated = {v.name for v in (*graph.value_info, *graph.output, *graph.input)}
    made = {name for node in graph.node for name in node.output} - stated
    for name, type_ in draft.types().items():
        if name in made and type_.dtype is not None and type_.shape is not None:
            graph.value_info.add(name=name, type=proto_of_type(type_))
    return typed


def _rename_branch_results(draft: Draft) -> None:
    """Rename results of the second branch of an ``If`` that have the same name as one of the first: NVIDIA's parser needs that."""
    graph = draft.model.graph
    taken = {name for node in all_nodes(graph) for name in (*node.input, *node.output)}
    for node in all_nodes(graph):
        if node.op_type != "If" or node.domain not in DOMAINS:
            continue
        branches = attributes(node)
        first, second = branches["then_branch"], branches["else_branch"]
        clash = {v.name for v in first.output} & {v.name for v in second.output}  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.name == "else_branch":
                _rename_results(attribute.g, clash, taken)


def _rename_results(body: Any, names: set[str], taken: set[str]) -> None:
    """Give results of a body new names, by an Identity node after each."""
    for value in body.output:
        if value.name not in names:
            continue
        fresh = unique_name(f"{value.name}_2", taken)
        body.node.append(onnx.helper.make_node("Identity", [value.name], [fresh]))
        value.name = fresh
