"""Running models: inputs, sessions, values inside, comparisons, latency, accuracy."""
