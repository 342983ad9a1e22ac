"""ONNX models to IR graphs."""

from .importer import from_onnx

__all__ = ["from_onnx"]
