"""graphshrink."""
