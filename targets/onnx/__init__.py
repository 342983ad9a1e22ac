"""IR graphs to ONNX."""

from ..options import OnnxOptions
from .emitter import save, save_onnx, to_onnx

Options = OnnxOptions

__all__ = ["Options", "save", "save_onnx", "to_onnx"]
