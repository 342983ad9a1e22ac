"""Raising: patterns that hosts spell with several nodes become one op."""
