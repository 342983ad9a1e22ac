"""IR graphs to torch modules."""
