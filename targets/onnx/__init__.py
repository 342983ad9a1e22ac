"""IR graphs to ONNX."""
