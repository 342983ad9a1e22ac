"""Passes that reorder channels."""
