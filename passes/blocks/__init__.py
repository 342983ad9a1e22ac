"""Passes that bring weights into dense blocks."""
