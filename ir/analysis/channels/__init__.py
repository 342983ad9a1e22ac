"""Channels: which may change places, followed through ops and reshapes."""
