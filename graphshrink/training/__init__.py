"""Training: gates in a loop, what they save, blocks, processes, recovery."""
