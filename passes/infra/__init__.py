"""The pass contract, pipelines and their text form, the runner and its observers."""
