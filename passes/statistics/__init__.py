"""What passes may ask of calibration data, and how it is computed from streamed batches."""
