"""Planning what to do to each region of a network under a measured budget."""
