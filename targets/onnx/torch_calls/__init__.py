"""How calls of torch without an op in the IR are written in ONNX: :mod:`.call` has the table, the other files its rules by family."""

from . import (  # noqa: F401 - their rules register themselves
    arithmetic,
    images,
    indexing,
    makers,
    numbers,
    ordering,
    reductions,
    sequences,
    shapes,
    statistics,
)
from .call import CALLS, Call, NotWritten, Number, Writer
from .shapes import squeezed_axes

__all__ = ["CALLS", "Call", "NotWritten", "Number", "Writer", "squeezed_axes"]
