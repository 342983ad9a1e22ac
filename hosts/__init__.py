"""What is known of a host (ONNX, torch) by all who deal with it; imports nothing of ours but the IR."""
