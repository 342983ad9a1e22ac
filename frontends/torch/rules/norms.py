"""torch's normalisations.

An evaluated batch norm is a Scale. The constants of one that was a module remember it: where only the order of its channels
changes, the target can write a batch norm again, which still trains as one; a call in evaluation mode never did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .... import ir
from ....ir import Value
from ....ir.batch_norm import BatchNorm
from ...lowering import Lowered, Path, Steps
from ...lowering.base import first_of_several
from ...lowering.norms import batch_norm_scale
from ...support import LeftAlone
from ..call import Call
from ..registry import reads, reads_module, reads_pieces

_EVALUATED = "in evaluation mode, with constant statistics"


@reads("batch_norm", makes=ir.Scale, note=_EVALUATED)
def _batch_norm(call: Call) -> Lowered | None:
    """``(x, mean, var, weight, bias, training, momentum, eps)``."""
    if call.get(5, "training", False):
        return None
    x, found = call.value(0), [call.get(i, name) for i, name in enumerate(_VECTORS, 1)]
    mean, var, gamma, beta = (v.data if v is not None else None for v in found)
    if found[0] is None or found[1] is None:
        raise LeftAlone("it has no running statistics: it computes those of each batch")
    if mean is None or var is None or (found[2] is not None and gamma is None):
        return None
    if found[3] is not None and beta is None:
        return None
    layer = x.producer if x.type.rank is None else None
    linear = layer is not None and isinstance(layer.op, ir.Linear)
    if layer is not None and linear and layer.required(1).type.dim(0) == mean.shape[0]:
        raise LeftAlone(
            "the number of axes of its input is not known, and it norms the features of the layer in front only if there are two"
        )
    epsilon = call.get(7, "eps", 1e-5)
    norm = BatchNorm(gamma, beta, mean, var, epsilon, call.module)
    parts = batch_norm_scale(norm, x.type.dtype or mean.dtype)
    if call.module is None:
        for part in parts:
            part.host = None
    return ir.Scale(1), [x, *parts]


_VECTORS = ("running_mean", "running_var", "weight", "bias")
_OF_BATCHES = "running_mean running_var weight bias eps"
reads_module(nn.BatchNorm1d, call="batch_norm", fields=_OF_BATCHES)
reads_module(nn.BatchNorm2d, call="batch_norm", fields=_OF_BATCHES)
reads_module(nn.BatchNorm3d, call="batch_norm", fields=_OF_BATCHES)
reads_module(nn.SyncBatchNorm, call="batch_norm", fields=_OF_BATCHES)


@reads("aten.batch_norm", makes=ir.Scale, note=_EVALUATED)
def _aten_batch_norm(call: Call) -> Lowered | None:
    """ATen's order: ``(x, weight, bias, mean, var, training, momentum, eps, cudnn)``."""
    x, weight, bias, mean, var, training, momentum, eps, *_ = call.args
    return _batch_norm(call.again(x, mean, var, weight, bias, training, momentum, eps))


@reads_pieces(
    "_native_batch_norm_legit_no_training", "native_batch_norm", makes=ir.Scale, note=_EVALUATED
)
def _native_batch_norm(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, weight, bias, mean, var, momentum, eps)``, the second with ``training`` in front of the last two."""
    x, weight, bias, mean, var, *training, momentum, eps = call.args
    again = call.again(x, mean, var, weight, bias, any(training), momentum, eps)
    return first_of_several(_batch_norm(again))


@reads("layer_norm", makes=ir.LayerNorm)
def _layer_norm(call: Call) -> Lowered | None:
    """``(x, normalized_shape, weight, bias, eps)``."""
    x, shape = call.value(0), call.get(1, "normalized_shape")
    if x.type.rank is None or not isinstance(shape, (list, tuple)):
        return None
    operands = [x, call.get(2, "weight"), call.get(3, "bias")]
    while operands[-1] is None:
        operands.pop()
    return ir.LayerNorm(x.type.rank - len(shape), call.get(4, "eps", 1e-5)), operands


reads_module(nn.LayerNorm, call="layer_norm", fields="normalized_shape weight bias eps")


@reads_pieces("native_layer_norm", makes=ir.LayerNorm, note="without statistics")
def _native_layer_norm(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, normalized_shape, weight, bias, eps)`` gives ``(y, mean, deviation)``."""
    return first_of_several(_layer_norm(call))


@reads("group_norm", makes=ir.GroupNorm)
def _group_norm(call: Call) -> Lowered | None:
    """``(x, num_groups, weight, bias, eps)``."""
    vectors = [call.get(2, "weight"), call.get(3, "bias")]
    return _grouped(call.value(0), call.get(1, "num_groups"), vectors, call.get(4, "eps", 1e-5))


@reads_pieces("native_group_norm", makes=ir.GroupNorm, note="without statistics")
def _native_group_norm(call: Call, taken: Sequence[Path]) -> Steps | None:
    """``(x, weight, bias, N, C, positions, num_groups, eps)`` gives ``(y, mean, deviation)``."""
    x, weight, bias, _, _, _, groups, eps = call.args
    return first_of_several(_group_norm(call.again(x, groups, weight, bias, eps)))


reads_module(nn.GroupNorm, call="group_norm", fields="num_groups weight bias eps")


@reads("instance_norm", makes=ir.GroupNorm, note="without running statistics")
def _instance_norm(call: Call) -> Lowered | None:
    """``(x, mean, var, weight, bias, use_input_stats, momentum, eps)``."""
    stats = (call.get(1, "running_mean"), call.get(2, "running_var"))
    if stats != (None, None) or not call.get(5, "use_input_stats", True):
        raise LeftAlone("it has running statistics")
    x, vectors = call.value(0), [call.get(3, "weight"), call.get(4, "bias")]
    if call.module is not None and x.type.rank != _RANKS[type(call.module)]:
        raise LeftAlone("its input has no batch axis")
    return _grouped(x, 0, vectors, call.get(7, "eps", 1e-5))


_RANKS: dict[Any, int] = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
for _module in _RANKS:
    reads_module(_module, call="instance_norm", fields=_OF_BATCHES)


@reads("aten.instance_norm", makes=ir.GroupNorm, note="without running statistics")
def _aten_instance_norm(call: Call) -> Lowered | None:
    """ATen's order: ``(x, weight, bias, mean, var, use_input_stats, momentum, eps, cudnn)``."""
    x, weight, bias, mean, var, own, _, eps, *_ = call.args
    return _instance_norm(call.again(x, mean, var, weight, bias, own, 0.1, eps))


def _grouped(x: Value, groups: Any, vectors: list[Any], epsilon: float) -> Lowered | None:
    """Normalisation within groups of channels (0: within each)."""
    if x.type.rank in (None, 0, 1) or (groups == 0 and x.type.rank == 2):
        return None  # Without a batch axis, torch counts otherwise.
    while vectors and vectors[-1] is None:
        vectors = vectors[:-1]
    return ir.GroupNorm(groups, epsilon), [x, *vectors]


@reads("local_response_norm", makes=ir.LocalResponseNorm, note="over an odd number of channels")
def _local_response_norm(call: Call) -> Lowered | None:
    """``(x, size, alpha, beta, k)``."""
    x, size = call.value(0), call.get(1, "size")
    numbers = [
        call.get(i, n, d) for i, n, d in ((2, "alpha", 1e-4), (3, "beta", 0.75), (4, "k", 1.0))
    ]
    if x.type.rank in (None, 0, 1, 2) or type(size) is not int:
        return None
    if size % 2 == 0:
        raise LeftAlone("its even number of channels has no middle")
    return ir.LocalResponseNorm(size, *map(float, numbers)), [x]


reads_module(nn.LocalResponseNorm, call="local_response_norm", fields="size alpha beta k")
