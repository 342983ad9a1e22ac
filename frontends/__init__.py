"""Frontends: host models to IR graphs."""
