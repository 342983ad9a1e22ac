"""What each torch call is in the IR, by family."""
