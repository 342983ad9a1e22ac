"""Statistics of calibration data that passes can request, computed from streamed batches."""
