"""Training: gates, the latency that removals save, blocks of weights, processes, recovery."""
