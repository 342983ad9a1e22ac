"""``merge-linear``, its algebra and its cost model."""
