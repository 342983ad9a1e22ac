"""Passes that make networks shallower: gates, removal of activations, padding in front, expansion."""
