"""``reconstruct``: pieces of an approximately rewritten network are trained to give what the original's gave."""
