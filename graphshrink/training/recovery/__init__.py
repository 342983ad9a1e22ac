"""Recovery: training that gives a shrunk network back what it lost."""
