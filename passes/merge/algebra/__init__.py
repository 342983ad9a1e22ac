"""The algebra of affine maps."""
