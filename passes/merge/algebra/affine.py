"""The algebra of affine maps: composition and addition of convolution-shaped maps, and how exact the result is.

An :class:`Affine` is a convolution or transposed convolution of any spatial rank (rank 0 is a dense layer over the last
axis), plus a constant: nothing, a vector, or a *bias map* ``(1, O, *spatial)``. Batch norms, identities,
average pools and constant pads are convolutions too (see :mod:`.nodes`).

Composition, for each axis, with ``k`` taps, stride ``s``, dilation ``d`` and begin padding ``p``::

    K = K1 * spread(K2, s1*d2)    k_eff = 1 + (k1-1)*d1 + s1*(k2-1)*d2    s = s1*s2    p = p1 + s1*p2

The output size is always right. The values are right at every position where the second convolution reads only
outputs of the first one. Where it reads its own padding, it must see zeros, but the composed kernel sees the first
convolution evaluated beyond its border. Both agree if no tap of the first one reaches back into the input from there.
With input size N, where the first stride leaves r input positions over, the conditions are:

* at the begin: ``(k1-1)*d1 < s1 + p1``;
* at the end:   ``(k1-1)*d1 < s1 + p1_end - r``, where r = s1 - 1 must be assumed if N is unknown.

A 1x1 convolution always fulfils both. The constant of the first map is handled separately: it is not zero beyond the
border, so a padded second convolution turns it into a bias map. This is exact, but needs a static spatial size.

Addition places both kernels on a common grid of taps at the offsets ``t*d - p``; an identity is a dirac at
tap ``t = p``. It is always exact.

Numbers are computed in float64 and rounded once, when the result is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ....ir import DType, Exactness, Tensor
from .bias_map import bias_map_after, sum_of_constants, vector_after
from .kernels import add_kernels, compose_kernels, transpose_pointwise
from .tensors import (
    Array64,
    Derived,
    is_ones,
    materialized_if_deep,
    materialized_if_small,
    scale_kernel,
)

Sizes = tuple[int | None, ...]
"""The size of each spatial axis; ``None`` for an unknown size."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The result of an operation on maps that is not possible.

    Attributes:
        reason: Why not; a text that can follow "not merged: ".
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of composition.

    Attributes:
        allow_border: Accept results that differ along the spatial border.
        bias_maps: Accept results whose constant is a bias map.
    """

    allow_border: bool = False
    bias_maps: bool = True


STRICT = Rules()


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """A convolution-shaped affine map.

    Attributes:
        weight: ``(O, I/groups, *taps)``; for a transposed convolution ``(I, O/groups, *taps)``.
        const: The constant that is added: ``None``, a vector ``(O,)``, or a bias map ``(1, O, *spatial)``.
        strides: The stride along each spatial axis.
        pads: The padding with zeros: all begins, then all ends; a negative number crops.
        dilations: The dilation along each spatial axis.
        groups: The number of groups of channels.
        transposed: True for a transposed convolution.
        output_padding: The output padding of a transposed convolution.
        size: The spatial size of the input, as far as it is known.
        exactness: How exact the map is, compared to the maps it was composed of.
    """

    weight: Tensor
    const: Tensor | None
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    size: Sizes = ()
    exactness: Exactness = Exactness.EXACT

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.strides)

    @property
    def taps(self) -> tuple[int, ...]:
        """The kernel size, without dilation."""
        return self.weight.shape[2:]

    @property
    def dtype(self) -> DType:
        """The element type of the results."""
        return self.weight.dtype

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def is_pointwise(self) -> bool:
        """True if every output position depends only on the input at the same position."""
        return (
            not self.transposed
            and all(k == 1 for k in self.taps)
            and all(s == 1 for s in self.strides)
            and not any(self.pads)
        )

    @property
    def is_diagonal(self) -> bool:
        """True if the kernel is one number for each channel (with any strides and pads)."""
        return (
            not self.transposed
            and self.weight.shape[:2] == (self.groups, 1)
            and all(k == 1 for k in self.taps)
        )

    @property
    def has_bias_map(self) -> bool:
        """True if the constant is a bias map."""
        return self.const is not None and len(self.const.shape) > 1

    @property
    def span(self) -> tuple[int, ...]:
        """The kernel size with dilation."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.taps, self.dilations, strict=True))

    @property
    def output_size(self) -> Sizes:
        """The spatial size of the result, as far as it is known."""
        n = self.rank
        found: list[int | None] = []
        for a in range(n):
            size, pad = (self.size[a] if self.size else None), self.pads[a] + self.pads[n + a]
            if size is None:
                found.append(None)
            elif self.transposed:
                extra = self.output_padding[a] if self.output_padding else 0
                found.append((size - 1) * self.strides[a] + self.span[a] + extra - pad)
            else:
                found.append((size + pad - self.span[a]) // self.strides[a] + 1)
        return tuple(found)

    @property
    def kernel_text(self) -> str:
        """The kernel size as text, such as ``"3x3"``."""
        return "x".join(map(str, self.taps)) or "dense"

    # Composition.

    def then(self, other: Affine, rules: Rules = STRICT) -> Affine | Refused:
        """The map that applies this one and then ``other``; :class:`Refused` if there is none.

        The decision depends on shapes only; no weight is read.
        """
        if self.rank != other.rank or self.outputs != other.inputs:
            return Refused("the shapes of the two maps do not fit")
        if self.dtype is not other.dtype:
            return Refused(f"the element types differ ({self.dtype.value} and {other.dtype.value})")
        if self.transposed or other.transposed:
            return self._then_transposed(other)
        # A size that the first map does not know may be known to the second one.
        between = tuple(
            mine if mine is not None else theirs
            for mine, theirs in zip(self.output_size, other.size or self.output_size, strict=True)
        )
        reads_padding, differs = self._border(other, between)
        exactness = max(self.exactness, other.exactness)
        if differs:
            if not rules.allow_border:
                return Refused(
                    f"the padding of the second map ({other.kernel_text}) reaches beyond the "
                    f"border of the first ({self.kernel_text}), where the composed kernel would "
                    "read inputs instead of zeros"
                )
            exactness = Exactness.BORDER
        const, exactness_ = self._const_then(other, between, reads_padding, rules)
        if isinstance(const, Refused):
            return const
        n = self.rank
        grid = [
            _composed_grid(k1, d1, k2, s1 * d2)
            for k1, d1, s1, k2, d2 in zip(
                self.taps, self.dilations, self.strides, other.taps, other.dilations, strict=True
            )
        ]
        strides = tuple(s1 * s2 for s1, s2 in zip(self.strides, other.strides, strict=True))
        pads = tuple(
            p1 + self.strides[i % n] * p2
            for i, (p1, p2) in enumerate(zip(self.pads, other.pads, strict=True))
        )
        return Affine(
            _composed(self, other, grid),
            const,
            strides,
            pads,
            tuple(unit for _, unit, _, _ in grid),
            math.gcd(self.groups, other.groups),
            size=self.size,
            exactness=max(exactness, exactness_),
        )

    def _border(self, other: Affine, between: Sizes) -> tuple[bool, bool]:
        """Whether ``other`` reads its own padding, and whether the composed kernel differs from zeros there."""
        n, reads_padding, differs = self.rank, False, False
        for a in range(n):
            reach = self.span[a] - 1
            s1, begin, end = self.strides[a], other.pads[a], other.pads[n + a]
            if begin > 0:
                reads_padding = True
                differs |= reach >= s1 + self.pads[a]
            inner, size = between[a], (self.size[a] if self.size else None)
            if inner is not None:
                # Padding after the end of the last window is not read.
                count = (inner + begin + end - other.span[a]) // other.strides[a] + 1
                end = (count - 1) * other.strides[a] + other.span[a] - begin - inner
            if end > 0:
                reads_padding = True
                left_over = s1 - 1
                if size is not None:
                    left_over = (size + self.pads[a] + self.pads[n + a] - self.span[a]) % s1
                differs |= reach >= s1 + self.pads[n + a] - left_over
        return reads_padding, differs

    def _const_then(
        self, other: Affine, between: Sizes, reads_padding: bool, rules: Rules
    ) -> tuple[Tensor | Refused | None, Exactness]:
        """The constant of the composition, and how exact it is."""
        exact = Exactness.EXACT
        mine = self.const
        if mine is None:
            return other.const, exact
        if not self.has_bias_map and not reads_padding and not other.has_bias_map:
            return vector_after(mine, other), exact
        sizes = tuple(s for s in between if s is not None)
        static = len(sizes) == self.rank
        if static and rules.bias_maps:
            return bias_map_after(mine, other, sizes), exact
        if rules.allow_border and not self.has_bias_map and not other.has_bias_map:
            return vector_after(mine, other), Exactness.BORDER
        if not rules.bias_maps:
            return Refused("the constant of the first map needs a bias map (turned off)"), exact
        return (
            Refused(
                "the first map has a bias and the second one pads with zeros: that needs a bias "
                "map, and the spatial size is not static"
            ),
            exact,
        )

    def _then_transposed(self, other: Affine) -> Affine | Refused:
        """Composition if at least one of the two maps is a transposed convolution.

        The adjoint of "``T``, then ``A``" is "the adjoint of ``A``, then the adjoint of ``T``", and the adjoint of a
        transposed convolution is the convolution with the same stored weight.
        """
        exactness = max(self.exactness, other.exactness)
        if self.transposed and not other.transposed and other.is_pointwise:
            if self.has_bias_map or other.has_bias_map:
                return Refused("a bias map next to a transposed convolution is not supported")
            const = other.const if self.const is None else vector_after(self.const, other)
            if other.is_diagonal:
                weight = scale_kernel(
                    self.weight, self.groups, self.dtype, columns=_diagonal(other.weight)
                )
                return replace(self, weight=weight, const=const, exactness=exactness)
            conv = replace(self, transposed=False, output_padding=())
            merged = _pointwise_kernel(_adjoint(other), conv)
        elif other.transposed and not self.transposed and self.is_pointwise:
            if self.const is not None:
                return Refused(
                    "a bias before a transposed convolution affects its outputs unevenly"
                )
            const = other.const
            if self.is_diagonal:
                weight = scale_kernel(
                    other.weight, other.groups, self.dtype, rows=_diagonal(self.weight)
                )
                return replace(
                    other, weight=weight, const=const, size=self.size, exactness=exactness
                )
            conv = replace(other, transposed=False, output_padding=())
            merged = _pointwise_kernel(conv, _adjoint(self))
        else:
            return Refused("only a pointwise map merges with a transposed convolution")
        host = self if self.transposed else other
        return replace(
            host,
            weight=merged,
            const=const,
            groups=math.gcd(self.groups, other.groups),
            size=self.size,
            exactness=exactness,
        )

    # Addition.

    def __add__(self, other: Affine) -> Affine | Refused:
        """The map whose result is the sum of the results of both maps; :class:`Refused` if there is none."""
        if self.transposed or other.transposed:
            return Refused("transposed convolutions are not added")
        if (self.rank, self.inputs, self.outputs) != (other.rank, other.inputs, other.outputs):
            return Refused("the shapes of the branches do not fit")
        if self.dtype is not other.dtype:
            return Refused(f"the element types differ ({self.dtype.value} and {other.dtype.value})")
        if self.strides != other.strides:
            return Refused(f"the strides of the branches differ: {self.strides}, {other.strides}")
        n = self.rank
        mine = [self.pads[a] + self.pads[n + a] - self.span[a] for a in range(n)]
        theirs = [other.pads[a] + other.pads[n + a] - other.span[a] for a in range(n)]
        sizes = self.output_size
        if mine != theirs and (None in sizes or sizes != other.output_size):
            return Refused("the output sizes of the branches are not known to agree")
        grid = [
            _sum_grid(
                (self.taps[a], self.dilations[a], self.pads[a]),
                (other.taps[a], other.dilations[a], other.pads[a]),
            )
            for a in range(n)
        ]
        begins = tuple(max(self.pads[a], other.pads[a]) for a in range(n))
        ends = tuple(mine[a] + (grid[a].taps - 1) * grid[a].unit + 1 - begins[a] for a in range(n))
        groups = math.gcd(self.groups, other.groups)
        return Affine(
            _summed(self, other, grid, groups),
            sum_of_constants(self, other),
            self.strides,
            (*begins, *ends),
            tuple(axis.unit for axis in grid),
            groups,
            size=tuple(
                a if a is not None else b
                for a, b in zip(self.size, other.size or self.size, strict=True)
            ),
            exactness=max(self.exactness, other.exactness),
        )

    def negated(self) -> Affine:
        """The map with the negative result."""
        minus = Derived((), self.dtype, lambda: np.array(-1.0))
        const = None if self.const is None else _multiplied(self.const, minus)
        return replace(self, weight=_multiplied(self.weight, minus), const=const)


@dataclass(frozen=True, slots=True)
class _SumGrid:
    """The common grid of two added kernels along one axis.

    Attributes:
        taps: The number of taps.
        unit: The dilation.
        starts: The grid position of the first tap of each kernel.
        steps: The distance on the grid between two taps of each kernel.
    """

    taps: int
    unit: int
    starts: tuple[int, int]
    steps: tuple[int, int]


def _composed_grid(k1: int, d1: int, k2: int, d2: int) -> tuple[int, int, int, int]:
    """Along one axis: the taps and the dilation of a composed kernel, and the steps of both kernels on its grid."""
    reach1, reach2 = (k1 - 1) * d1, (k2 - 1) * d2
    unit = math.gcd(d1 if k1 > 1 else 0, d2 if k2 > 1 else 0) or 1
    step1, step2 = (d1 // unit if k1 > 1 else 1), (d2 // unit if k2 > 1 else 1)
    return 1 + (reach1 + reach2) // unit, unit, step1, step2


def _sum_grid(first: tuple[int, int, int], second: tuple[int, int, int]) -> _SumGrid:
    """The common grid along one axis of two kernels, each given as (taps, dilation, begin padding)."""
    (k1, d1, p1), (k2, d2, p2) = first, second
    unit = math.gcd(d1 if k1 > 1 else 0, d2 if k2 > 1 else 0, p1 - p2) or 1
    begin = max(p1, p2)
    starts = ((begin - p1) // unit, (begin - p2) // unit)
    steps = (d1 // unit if k1 > 1 else 1, d2 // unit if k2 > 1 else 1)
    last = max(starts[0] + (k1 - 1) * steps[0], starts[1] + (k2 - 1) * steps[1])
    return _SumGrid(last + 1, unit, starts, steps)


def _composed(first: Affine, second: Affine, grid: list[tuple[int, int, int, int]]) -> Tensor:
    """The composed kernel, as the lazy tensor that is cheapest to compute."""
    if second.is_diagonal:
        if is_ones(second.weight):
            return first.weight
        rows = _diagonal(second.weight)
        scaled = scale_kernel(first.weight, first.groups, first.dtype, rows=rows)
        return materialized_if_small(scaled) if first.is_diagonal else scaled
    if first.is_diagonal:
        if is_ones(first.weight):
            return second.weight
        columns = _diagonal(first.weight)
        return scale_kernel(second.weight, second.groups, first.dtype, columns=columns)
    groups = (first.groups, second.groups)
    size = tuple(taps for taps, _, _, _ in grid)
    steps = [s for _, _, s, _ in grid], [s for _, _, _, s in grid]
    one, two = materialized_if_deep(first.weight), materialized_if_deep(second.weight)

    def compute() -> Array64:
        return compose_kernels(one.float64(), two.float64(), groups, steps, size)

    fan_in = first.weight.shape[1] * (first.groups // math.gcd(*groups))
    return Derived((second.outputs, fan_in, *size), first.dtype, compute, (one, two))


def _summed(first: Affine, second: Affine, grid: list[_SumGrid], groups: int) -> Tensor:
    """The sum of two kernels on a common grid, with ``groups`` groups."""
    one, two = materialized_if_deep(first.weight), materialized_if_deep(second.weight)
    size = tuple(axis.taps for axis in grid)
    starts = [[axis.starts[i] for axis in grid] for i in (0, 1)]
    steps = [[axis.steps[i] for axis in grid] for i in (0, 1)]
    own = first.groups, second.groups

    def compute() -> Array64:
        terms = [
            (one.float64(), own[0], starts[0], steps[0]),
            (two.float64(), own[1], starts[1], steps[1]),
        ]
        return add_kernels(terms, groups, size)

    shape = (first.outputs, first.inputs // groups, *size)
    made = Derived(shape, first.dtype, compute, (one, two))
    # The sum of scales is a small vector, which is computed at once.
    return materialized_if_small(made) if math.prod(shape) == first.outputs else made


def _diagonal(weight: Tensor) -> Tensor:
    """A diagonal kernel as a vector."""
    if len(weight.shape) == 1:
        return weight
    size = weight.shape[:1]
    return Derived(size, weight.dtype, lambda: weight.float64().reshape(size), (weight,))


def _adjoint(pointwise: Affine) -> Affine:
    """The adjoint of a one-tap convolution, without its constant."""
    weight, groups = pointwise.weight, pointwise.groups
    shape = (pointwise.inputs, pointwise.outputs // groups, *pointwise.taps)
    turned = Derived(
        shape, weight.dtype, lambda: transpose_pointwise(weight.float64(), groups), (weight,)
    )
    return replace(pointwise, weight=turned, const=None)


def _pointwise_kernel(first: Affine, second: Affine) -> Tensor:
    """The kernel of ``second`` after ``first``, if one of them has a single tap."""
    taps = tuple(max(a, b) for a, b in zip(first.taps, second.taps, strict=True))
    return _composed(first, second, [(k, 1, 1, 1) for k in taps])


def _multiplied(tensor: Tensor, factor: Tensor) -> Tensor:
    made = Derived(
        tensor.shape, tensor.dtype, lambda: tensor.float64() * factor.float64(), (tensor, factor)
    )
    return materialized_if_small(made) if len(tensor.shape) == 1 else made
