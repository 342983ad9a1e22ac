"""The pass contract, pipelines and their text, the runner and what observes it."""
