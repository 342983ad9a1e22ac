"""Recovery: training that restores the accuracy of a shrunk network."""
