"""What each ONNX operator is in the IR, by family."""
