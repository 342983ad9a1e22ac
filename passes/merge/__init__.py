"""``merge-linear`` and what it is made of."""
