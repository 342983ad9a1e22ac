"""Structural analyses of graphs."""
