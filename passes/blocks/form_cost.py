"""Choose the form of a layer in blocks by its expected time; :mod:`.lower` describes the forms.

The times are a fit to onnxruntime 1.32 on an x86 server core (one thread). A product with one row is bound by reading
the weight (from the cache up to four million numbers), a product with more rows by arithmetic. A batched MatMul with
more than one row packs its weight on every run; a dense layer with a constant weight packs it once. Each node costs a
fixed time. Only the ratios of times matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_NODE_US = {"onnx": 2.0, "fx": 6.0, "tflite": 1.0, "tensorrt": 3.0}
"""The fixed time of a node in microseconds, by target."""

_STEP_US = {"onnx": 2.0, "fx": 10.0, "tflite": 8.0, "tensorrt": 4.0}
"""The fixed time of one step of a recurrent layer in microseconds, by target: estimates. LiteRT runs about ten nodes a step."""

_STEPS, _BATCH = 32, 1
"""The number of steps and the batch size that a recurrent layer is judged by if they are not known."""

_THIN = 8
"""Groups with fewer channels than this do not fill a vector unit."""


@dataclass(frozen=True)
class LayerSize:
    """The size of a layer.

    Attributes:
        is_conv: Whether it is a convolution.
        rows: The number of outputs.
        columns: The number of inputs.
        batch: How often the weight is used: the rows of the input, or the positions of the output; ``None`` if not
            known.
        taps: The number of taps of the kernel.
        rank: The rank of the input.
    """

    is_conv: bool
    rows: int
    columns: int
    batch: int | None
    taps: int = 1
    rank: int = 2

    def dense(self, target: str, batch: int) -> float:
        """The expected microseconds of the dense layer."""
        return self._product(1, batch) + _node(target)

    def _product(self, count: int, batch: int) -> float:
        weights = self.rows * self.columns * self.taps
        read = 12e3 if weights <= 2**22 else 5e3
        return max(weights / count / read, batch * weights / count / 35e3)

    def blocked(self, form: str, count: int, target: str, batch: int, moves: int = 0) -> float:
        """The expected microseconds in ``count`` blocks, with ``moves`` shuffles of channels around them."""
        moving = moves * (3 * _node(target) + 4e-4 * batch * (self.rows + self.columns))
        return moving + self._blocked(form, count, target, batch)

    def _blocked(self, form: str, count: int, target: str, batch: int) -> float:
        work, moved = self._product(count, batch), self.rows + self.columns
        if form == "grouped" and self.is_conv:
            # Groups are small products, which are a little slower.
            return 1.15 * work + _node(target)
        if form == "grouped":
            # Two Reshapes, and two layout conversions that onnxruntime inserts around the convolution.
            return work + 4 * _node(target)
        if form == "split":
            return work + (count + 2) * _node(target) + 4e-4 * batch * moved
        if batch == 1:
            return 1.3 * work + 3 * _node(target)
        # torch runs a batched product as fast as a single one.
        packing = 0.0 if target == "fx" else 8 * self.rows * self.columns / count / 35e3
        return work + packing + 6 * _node(target) + 8e-4 * batch * moved


@dataclass(frozen=True)
class RecurrentSize:
    """The size of a recurrent layer.

    Attributes:
        gates: The number of gates.
        hidden: The number of hidden units.
        inputs: The number of inputs.
        directions: 1 or 2.
        steps: The number of steps; ``None`` if not known.
        batch: The batch size; ``None`` if not known.
    """

    gates: int
    hidden: int
    inputs: int
    directions: int
    steps: int | None = None
    batch: int | None = None

    def expected(
        self, target: str, count: int = 1, *, divided: bool = False, moves: int = 0
    ) -> float:
        """The expected microseconds as ``count`` smaller layers.

        The product with the inputs is one for all steps; that with the state is made step by step.

        Args:
            target: The target that it will be written for.
            count: The number of layers.
            divided: Whether each of them reads its own part of the inputs only.
            moves: The number of shuffles of inputs.
        """
        steps, batch = self.steps or _STEPS, self.batch or _BATCH
        rows = self.gates * self.hidden * self.directions
        outer = rows * self.inputs // (count if divided else 1)
        inner = rows * self.hidden // count
        products = _product(outer, steps * batch) + steps * _product(inner, batch)
        step = _STEP_US.get(target, _STEP_US["onnx"])
        fixed = count * (self.directions * steps * step + _node(target))
        around = ((2 if divided else 1) + 3 * moves) * _node(target) if count > 1 else 0.0
        return products + fixed + around


def _product(weights: int, batch: int) -> float:
    """The microseconds of a product: bound by reading the weights, or by arithmetic."""
    read = 12e3 if weights <= 2**22 else 5e3
    return max(weights / read, batch * weights / 35e3)


def _node(target: str) -> float:
    """The fixed time of a node in microseconds."""
    return _NODE_US.get(target, _NODE_US["onnx"])


def _dense_forms(work: LayerSize, target: str) -> tuple[str, ...]:
    """The forms of a dense layer in equal blocks that a target runs fast."""
    if target == "fx":
        # With more axes, torch copies the weight of a batched product for each index of them.
        return ("batched",) if work.rank == 2 else ("split",)
    if work.batch == 1 and target in ("onnx", "tflite"):
        return ("grouped",)
    return ("split",) if target == "tflite" else ("batched", "split")


def choose_form(
    work: LayerSize, count: int, target: str, *, even: bool, moves: int = 0, force: bool = False
) -> str | None:
    """The fastest form: ``split``, ``batched`` or ``grouped``; ``None`` if no form is faster than the dense layer.

    Args:
        work: The size of the layer.
        count: The number of blocks.
        target: The target that it will be written for.
        even: Whether all blocks have the same size.
        moves: The number of shuffles or gathers of channels.
        force: Return the fastest form even if the dense layer is faster.
    """
    if work.is_conv:
        forms: tuple[str, ...] = ("grouped",) if even else ("split",)
        thin = min(work.rows, work.columns) // count < _THIN
    else:
        forms, thin = _dense_forms(work, target) if even else ("split",), False
    # An unknown batch is judged as the mean of one row and many rows.
    batches = (1, 128) if work.batch is None else (work.batch,)

    def relative(form: str) -> float:
        return math.fsum(
            work.blocked(form, count, target, b, moves) / work.dense(target, b) for b in batches
        ) / len(batches)

    best = min(forms, key=relative)
    if not force and (thin or relative(best) > 0.95):
        return None
    return best


__all__ = ["LayerSize", "RecurrentSize", "choose_form"]
