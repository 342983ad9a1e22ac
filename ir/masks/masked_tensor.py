"""Masks in the graph: weights whose zeros are meant to stay.

A mask is a property of a constant, not a node: :class:`MaskedTensor` is a weight and the places where it is zero. To all
passes it is a constant like any other. Those that scale or reorder it carry the mask along (:func:`remasked`);
one that makes something else of it (a composed kernel) makes a constant without a mask. So no pass can make a pruned
weight come back, and a target can say of every masked weight whether its pattern still holds (:func:`check_masks`).
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
        weight: The weight; what it is outside the mask does not matter.
        mask: Where it is kept, in its shape. One bit a number is stored.
        pattern: The pattern that the mask has; ``None`` for an unstructured mask.
        reduction: How the weight is summed over; needed for a pattern.
        lasting: Whether the mask must outlast training: the FX target then writes it as a parametrization.

    Raises:
        ValueError: If shapes differ, or a pattern comes without a reduction.
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
                f"a mask is an array of booleans {weight.shape}, not {mask.dtype} {mask.shape}"
            )
        if (pattern is None) != (reduction is None):
            raise ValueError("a pattern goes along a reduction, and a reduction has a pattern")
        if reduction is not None and reduction.shape != weight.shape:
            raise ValueError(f"a reduction of {reduction.shape} for a weight of {weight.shape}")
        super().__init__(weight.shape, weight.dtype, self._masked, self._fill, (weight,))
        self.weight = weight
        self.pattern, self.reduction, self.lasting = pattern, reduction, lasting
        self._bits = np.packbits(mask)

    @property
    def mask(self) -> Mask:
        """Where the weight is kept, in its shape."""
        return np.unpackbits(self._bits, count=self.size).astype(bool).reshape(self.shape)

    def _masked(self) -> Array64:
        return np.where(self.mask, self.weight.float64(), 0.0)

    def _fill(self, out: Array) -> None:
        out[...] = 0
        np.copyto(out, self.weight.numpy(), where=self.mask)

    def problem(self) -> str | None:
        """What is wrong with the mask: it may have been reordered along its reduction axis."""
        if self.pattern is None or self.reduction is None:
            return None
        if self.reduction.holds(self.mask, self.pattern):
            return None
        return f"its mask is not {self.pattern} along axis {self.reduction.axis} (any more)"

    def plain(self, lasting: bool = False) -> MaskedTensor:
        """The same tensor, whose mask need not outlast training."""
        return MaskedTensor(self.weight, self.mask, self.pattern, self.reduction, lasting)


def remasked(source: Tensor, weight: Tensor, move: Callable[[Mask], Mask] | None = None) -> Tensor:
    """``weight``, with the mask of the tensor that it was made from, if that has one.

    Args:
        source: What ``weight`` was made from.
        weight: A scaled or reordered ``source``, in its shape.
        move: Reorders the mask as the weight was.
    """
    if not isinstance(source, MaskedTensor):
        return weight
    mask = source.mask if move is None else move(source.mask)
    return MaskedTensor(weight, mask, source.pattern, source.reduction, source.lasting)


def check_masks(graph: Graph) -> None:
    """Refuse to write masked weights whose pattern was lost.

    Raises:
        ModelError: If one was; the message names it.
    """
    for value in graph.values():
        problem = value.data.problem() if isinstance(value.data, MaskedTensor) else None
        if problem is not None and value.use_count:
            raise ModelError(
                f"%{value.name}: {problem}: reorder channels before weights are made sparse"
            )


__all__ = ["MaskedTensor", "check_masks", "remasked"]
