"""torch.fx graphs and torch.export programs to IR graphs."""
