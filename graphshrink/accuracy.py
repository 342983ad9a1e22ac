"""The accuracy of an ONNX file, in onnxruntime."""

from .running.accuracy import onnx_accuracy

__all__ = ["onnx_accuracy"]
