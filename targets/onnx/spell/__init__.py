"""How each op is spelled in ONNX, by family."""
