"""Exact passes that remove what is not needed: constants, dead nodes, reshapes that cancel."""
