"""ONNX as a host: tensors, types, names across scopes, and where IR nodes came from."""
