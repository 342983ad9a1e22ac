"""Masked weights: pruned weights that know which of their numbers are zero.

A mask is a property of a constant, not a node: a :class:`MaskedTensor` holds a weight and its mask, and is a constant like
any other to all passes. A pass that scales or reorders a weight gives the result the mask of the source
(:func:`remasked`); a pass that computes another weight from it (a composed kernel) makes a constant without a mask.
Targets check that each masked weight still has its pattern (:func:`check_masks`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import ModelError
from ..graph import Graph
from ..tensor import Array, Array64, DerivedTensor, Tensor
from .nm_pattern import Mask, Pattern, Reduction


class MaskedTensor(DerivedTensor):
    """A weight that is zero where its mask is false.

    Args:
        weight: The weight; its numbers where the mask is false are ignored.
        mask: True where numbers are kept, in the weight's shape. It is stored with one bit for each number.
        pattern: The N:M pattern of the mask; ``None`` for an unstructured mask.
        reduction: The axis that the weight is summed over; given if and only if there is a pattern.
        lasting: Whether the mask must stay during training: the torch target then writes it as a parametrization.

    Raises:
        ValueError: If shapes differ, or if only one of pattern and reduction is given.
    """

    __slots__ = ("_bits", "lasting", "pattern", "reduction", "weight")

    def __init__(
        self,
        weight: Tensor,
        mask: Mask,
        pattern: Pattern | None = None,
        reduction: Reduction | None = None,
        lasting: bool = False,
    ) -> None:
        if tuple(mask.shape) != weight.shape or mask.dtype != np.bool_:
            raise ValueError(
                f"the mask must be bool with shape {weight.shape}, not {mask.dtype} with {mask.shape}"
            )
        if (pattern is None) != (reduction is None):
            raise ValueError("give both a pattern and a reduction, or neither")
        if reduction is not None and reduction.shape != weight.shape:
            raise ValueError(
                f"the reduction has shape {reduction.shape}, the weight has {weight.shape}"
            )
        super().__init__(weight.shape, weight.dtype, self._masked, self._fill, (weight,))
        self.weight = weight
        self.pattern, self.reduction, self.lasting = pattern, reduction, lasting
        self._bits = np.packbits(mask)

    @property
    def mask(self) -> Mask:
        """True where numbers are kept, in the weight's shape."""
        return np.unpackbits(self._bits, count=self.size).astype(bool).reshape(self.shape)

    def _masked(self) -> Array64:
        return np.where(self.mask, self.weight.float64(), 0.0)

    def _fill(self, out: Array) -> None:
        out[...] = 0
        np.copyto(out, self.weight.numpy(), where=self.mask)

    def problem(self) -> str | None:
        """The reason why the mask lost its pattern (a pass reordered its reduction axis); ``None`` if it has it."""
        if self.pattern is None or self.reduction is None:
            return None
        if self.reduction.holds(self.mask, self.pattern):
            return None
        return f"its mask is no longer {self.pattern} along axis {self.reduction.axis}"

    def plain(self, lasting: bool = False) -> MaskedTensor:
        """The same tensor with another ``lasting``."""
        return MaskedTensor(self.weight, self.mask, self.pattern, self.reduction, lasting)


def remasked(source: Tensor, weight: Tensor, move: Callable[[Mask], Mask] | None = None) -> Tensor:
    """``weight`` with the mask of the tensor that it was made from; ``weight`` itself if that has none.

    Args:
        source: The tensor that ``weight`` was made from.
        weight: The scaled or reordered ``source``, in the same shape.
        move: Reorders the mask in the same way as the weight; not given if only scaled.
    """
    if not isinstance(source, MaskedTensor):
        return weight
    mask = source.mask if move is None else move(source.mask)
    return MaskedTensor(weight, mask, source.pattern, source.reduction, source.lasting)


def check_masks(graph: Graph) -> None:
    """Check that all masked weights in use still have their patterns.

    Raises:
        ModelError: If one has lost it; the message names the weight.
    """
    for value in graph.values():
        problem = value.data.problem() if isinstance(value.data, MaskedTensor) else None
        if problem is not None and value.use_count:
            raise ModelError(
                f"%{value.name}: {problem}: reorder channels before weights are made sparse"
            )


__all__ = ["MaskedTensor", "check_masks", "remasked"]
