"""Where two sets of outputs differ: the output, the position, both numbers, and how many numbers differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tolerance import Outputs, relative_error


@dataclass(frozen=True)
class Difference:
    """The output that differs most, and where.

    Attributes:
        output: The name of the output.
        index: The position of the largest difference; ``None`` if shapes or types differ.
        expected: The number of the reference there, or its type.
        found: The other number, or the other type.
        count: How many numbers of this output differ by more than is allowed.
        size: How many numbers this output has.
    """

    output: str
    index: tuple[int, ...] | None
    expected: str
    found: str
    count: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain data for JSON."""
        index = None if self.index is None else list(self.index)
        return {**vars(self), "index": index}

    def __str__(self) -> str:
        if self.index is None:
            return f"output {self.output} is {self.found} instead of {self.expected}"
        place = f"[{', '.join(map(str, self.index))}]" if self.index else "its number"
        return (
            f"output {self.output} at {place} is {self.found} instead of {self.expected}; "
            f"{self.count:,} of its {self.size:,} numbers differ by more than is allowed"
        )


def largest_difference(
    reference: Outputs, outputs: Outputs, names: Sequence[str], allowed: float
) -> Difference | None:
    """The output with the largest error relative to its largest number.

    Args:
        reference: The outputs to compare with.
        outputs: The other outputs.
        names: Their names; numbers are used where there are not as many.
        allowed: The error that is allowed, relative to the largest number of an output.

    Returns:
        The difference; ``None`` if there is none, or if the two have different numbers of outputs.
    """
    if len(reference) != len(outputs):
        return None
    errors = [relative_error([a], [b]) for a, b in zip(reference, outputs, strict=True)]
    worst = int(np.argmax(errors)) if errors else 0
    if not errors or errors[worst] == 0.0:
        return None
    name = names[worst] if len(names) == len(errors) else f"number {worst}"
    want, got = reference[worst], outputs[worst]
    if isinstance(want, list) or isinstance(got, list):  # Sequences of tensors.
        return Difference(name, None, _type_text(want), _type_text(got), 0, 0)
    return _of_arrays(name, np.asarray(want), np.asarray(got), allowed)


def _of_arrays(name: str, want: Any, got: Any, allowed: float) -> Difference:
    if want.shape != got.shape or want.dtype != got.dtype:
        return Difference(name, None, _type_text(want), _type_text(got), 0, want.size)
    if want.dtype.kind not in "fcV" or (want.dtype.kind == "V" and not want.dtype.isnative):
        gaps = (want != got).astype(np.float64)
        limit = 0.0
    else:
        wide = np.complex128 if want.dtype.kind == "c" else np.float64
        a, b = want.astype(wide), got.astype(wide)
        finite = np.isfinite(a)
        limit = allowed * float(np.abs(a[finite]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gaps = np.where(same, 0.0, np.where(np.isnan(gaps), np.inf, gaps))
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(gaps)), gaps.shape))
    count = int((gaps > limit).sum())
    return Difference(name, index, _text(want[index]), _text(got[index]), count, want.size)


def _text(number: Any) -> str:
    if isinstance(number, np.inexact) or number.dtype.kind == "V":
        return f"{complex(number) if number.dtype.kind == 'c' else float(number):.6g}"
    return str(number)


def _type_text(array: Any) -> str:
    if isinstance(array, list):
        return f"a list of {len(array)} tensors"
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


__all__ = ["Difference", "largest_difference"]
