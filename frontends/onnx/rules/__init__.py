"""What each ONNX operator is in the IR, by family; the rules register themselves with ``@reads``."""
