"""Quantisation to 8-bit integers: ranges from data, placement, weights, equalisation, bias correction."""
