"""How calls of torch without an op in the IR are written in ONNX: :mod:`.call` has the table, the other files its rules by family."""

from . import arithmetic, images, indexing, makers, numbers, reductions, sequences, shapes  # noqa: F401
from .call import CALLS, Call, NotWritten, Number, Writer

__all__ = ["CALLS", "Call", "NotWritten", "Number", "Writer"]
