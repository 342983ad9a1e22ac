"""IR graphs to ONNX."""

from .emitter import Options, save, save_onnx, to_onnx

__all__ = ["Options", "save", "save_onnx", "to_onnx"]
