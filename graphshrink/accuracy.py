"""The accuracy of an ONNX file, measured in onnxruntime."""

from .running.accuracy import onnx_accuracy

__all__ = ["onnx_accuracy"]
