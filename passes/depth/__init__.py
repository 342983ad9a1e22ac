"""Passes that make networks shallower: gates, removal of activations, hoisted padding, expansion."""
