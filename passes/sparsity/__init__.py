"""Passes that make weights sparse."""
