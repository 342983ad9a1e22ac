"""Masked weights and their N:M patterns."""
