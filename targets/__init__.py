"""Targets: IR graphs to host models."""
