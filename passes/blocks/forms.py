"""Choose the form of a layer in blocks, by what it is expected to cost.

The times are those of a fit to onnxruntime 1.32 on an x86 server core (one thread): a product with one row is bound by
the memory that the weight is read from (a cache up to four million numbers), one with more rows by arithmetic; a batched
MatMul packs its weight anew on every run for more than one row, which a dense layer with a constant weight does once;
each node costs a fixed time. Only their ratios matter. The forms themselves are those of :mod:`.lower`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_NODE_US = {"onnx": 2.0, "fx": 6.0, "tflite": 1.0, "tensorrt": 3.0}
"""What a node costs besides its arithmetic, in microseconds."""

_THIN = 8
"""Groups of fewer channels keep no vector unit busy."""


@dataclass(frozen=True)
class Work:
    """The size of a layer.

    Attributes:
        is_conv: Whether it is a convolution.
        rows: Its outputs.
        columns: Its inputs.
        batch: How often its weight is used: rows of the input, or places of the output; ``None`` when not known.
        taps: The taps of its kernel.
        rank: The rank of its input.
    """

    is_conv: bool
    rows: int
    columns: int
    batch: int | None
    taps: int = 1
    rank: int = 2

    def dense(self, target: str, batch: int) -> float:
        """Microseconds as it is."""
        return self._product(1, batch) + _node(target)

    def _product(self, count: int, batch: int) -> float:
        weights = self.rows * self.columns * self.taps
        read = 12e3 if weights <= 2**22 else 5e3
        return max(weights / count / read, batch * weights / count / 35e3)

    def blocked(self, form: str, count: int, target: str, batch: int, moves: int = 0) -> float:
        """Microseconds in blocks, with ``moves`` shuffles of channels around them."""
        moving = moves * (3 * _node(target) + 4e-4 * batch * (self.rows + self.columns))
        return moving + self._blocked(form, count, target, batch)

    def _blocked(self, form: str, count: int, target: str, batch: int) -> float:
        work, moved = self._product(count, batch), self.rows + self.columns
        if form == "grouped" and self.is_conv:
            # Groups are small products: the last of their speed is lost on their edges.
            return 1.15 * work + _node(target)
        if form == "grouped":
            # Two Reshapes, and at both ends of what it runs in blocks of channels, onnxruntime's own.
            return work + 4 * _node(target)
        if form == "split":
            return work + (count + 2) * _node(target) + 4e-4 * batch * moved
        if batch == 1:
            return 1.3 * work + 3 * _node(target)
        # Not in torch, whose batched product is as good as its single one.
        packing = 0.0 if target == "fx" else 8 * self.rows * self.columns / count / 35e3
        return work + packing + 6 * _node(target) + 8e-4 * batch * moved


def _node(target: str) -> float:
    return _NODE_US.get(target, _NODE_US["onnx"])


def _dense_forms(work: Work, target: str) -> tuple[str, ...]:
    """The forms of a dense layer in even blocks that a target runs well."""
    if target == "fx":
        # Of more axes, torch copies the weight of a batched product for each of them.
        return ("batched",) if work.rank == 2 else ("split",)
    if work.batch == 1 and target in ("onnx", "tflite"):
        return ("grouped",)
    return ("split",) if target == "tflite" else ("batched", "split")


def choose_form(
    work: Work, count: int, target: str, *, even: bool, moves: int = 0, force: bool = False
) -> str | None:
    """The fastest form; ``None`` when the dense layer is not slower.

    Args:
        work: The layer.
        count: The number of blocks.
        target: What it will be written for.
        even: Whether all blocks have one size.
        moves: How many shuffles or gathers of channels they take.
        force: Give a form even so.
    """
    if work.is_conv:
        forms: tuple[str, ...] = ("grouped",) if even else ("split",)
        thin = min(work.rows, work.columns) // count < _THIN
    else:
        forms, thin = _dense_forms(work, target) if even else ("split",), False
    # What is not known may be one row, or many.
    batches = (1, 128) if work.batch is None else (work.batch,)

    def relative(form: str) -> float:
        return math.fsum(
            work.blocked(form, count, target, b, moves) / work.dense(target, b) for b in batches
        ) / len(batches)

    best = min(forms, key=relative)
    if not force and (thin or relative(best) > 0.95):
        return None
    return best


__all__ = ["Work", "choose_form"]
