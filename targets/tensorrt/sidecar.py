"""The side-car: a JSON file with everything that a build needs in addition to the model; the same model gives the same JSON.

It contains the TensorRT version, the opset, the inputs and profiles, the precision, the ``trtexec`` command line, and for each
weight whether it has the 2:4 pattern, whether TensorRT could use the pattern, and whether that is likely.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...hosts.onnx.types import type_of
from ...ir import Graph
from ...ir.analysis.weights import NO_RECURRENT_KERNELS, NmWeight, nm_weights
from ...ir.masks.nm_pattern import Pattern, Reduction
from .draft import Draft
from .operators import Operators, type_name
from .precision import Lowered
from .profiles import Profile, format_sizes, input_shapes

SCHEMA = 1
PATTERN = Pattern(2, 4)


def sidecar(
    draft: Draft,
    operators: Operators,
    profiles: Sequence[Profile],
    lowered: Lowered,
    path: Path,
    written: Graph,
) -> dict[str, Any]:
    """Return the content of the side-car.

    Args:
        draft: The finished model.
        operators: The TensorRT version.
        profiles: The profiles of its inputs.
        lowered: The result of the precision step.
        path: The file that was written.
        written: The graph of that file.
    """
    layers = sparse_layers(written)
    sparse = any(layer["eligible"] for layer in layers)
    return {
        "schema": SCHEMA,
        "model": path.name,
        "tensorrt": {
            "version": operators.version,
            "operators": {"table": operators.table, "source": operators.source},
        },
        "opset": draft.opset,
        "inputs": _values(draft, draft.model.graph.input, input_shapes(draft)),
        "outputs": _values(draft, draft.model.graph.output),
        "profiles": [
            {p.name: {"min": list(p.min), "opt": list(p.opt), "max": list(p.max)} for p in profiles}
        ]
        if profiles
        else [],
        "precision": lowered.to_dict(),
        "trtexec": trtexec(path, operators, profiles, sparse),
        "sparsity": {"pattern": str(PATTERN), "layers": layers},
        "notes": list(draft.notes),
    }


def _values(draft: Draft, values: Iterable[Any], only: Any = None) -> list[dict[str, Any]]:
    found = []
    for value in values:
        type_ = type_of(value.type)
        if only is not None and value.name not in only:
            continue
        dtype = None if type_.dtype is None else type_name(type_.dtype) or type_.dtype.value
        shape = None if type_.shape is None else list(type_.shape)
        found.append({"name": value.name, "type": dtype, "shape": shape})
    return found


def trtexec(path: Path, operators: Operators, profiles: Sequence[Profile], sparse: bool) -> str:
    """Return the command line that builds the engine, times it and logs which layers got sparse kernels.

    The flags are those of trtexec of 10.x and 11.x. In 11.x, networks are always strongly typed and there are no flags for
    precision; 10.x needs a flag for that.
    """
    stem = path.stem
    arguments = [
        "trtexec",
        f"--onnx={path.name}",
        f"--saveEngine={stem}.engine",
        *([] if operators.strongly_typed_only else ["--stronglyTyped"]),
        *(["--sparsity=enable"] if sparse else []),
    ]
    for bound in ("min", "opt", "max"):
        shapes = ",".join(f"{_quoted(p.name)}:{format_sizes(getattr(p, bound))}" for p in profiles)
        if shapes:
            arguments.append(f"--{bound}Shapes={shapes}")
    arguments += [
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={stem}.layers.json",
        "--verbose",
    ]
    return shlex.join(arguments)


def _quoted(name: str) -> str:
    # trtexec removes single quotes around names; a name with a colon needs them.
    return f"'{name}'" if ":" in name else name


def sparse_layers(graph: Graph) -> list[dict[str, Any]]:
    """Return for each weight of a product its shape, whether it has the 2:4 pattern, and whether TensorRT could use it.

    Args:
        graph: The graph of the written file, read again.
    """
    return [
        _layer(weight, weight.reduction)
        for weight in nm_weights(graph)
        if weight.reduction is not None
    ]


def _layer(weight: NmWeight, reduction: Reduction) -> dict[str, Any]:
    data = None if weight.value is None else weight.value.data
    valid = data is not None and reduction.holds(data.numpy(), PATTERN)
    if valid and _is_quantized(weight):
        # That problem is one of sparsifying the weight; its integers have the pattern already.
        weight = replace(weight, problem=None)
    reason = NO_RECURRENT_KERNELS if weight.is_recurrent else weight.reason(PATTERN)
    eligible = valid and reason is None
    return {
        "nodes": [node.name for node in weight.readers],
        "op": weight.node.op.name,
        "shape": list(reduction.shape),
        "groups": weight.groups,
        "valid": valid,
        "eligible": eligible,
        "likely": eligible and weight.likely(),
        "reason": None if eligible else reason or "the pattern does not hold",
    }


def _is_quantized(weight: NmWeight) -> bool:
    return weight.problem is not None and weight.problem.endswith("before it is quantized")
