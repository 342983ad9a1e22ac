"""What each torch call is in the IR, by family; the rules register themselves with ``@reads``."""
