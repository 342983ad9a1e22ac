"""torch as a host: element types, where IR nodes came from, and the modules of gated and masked networks."""
