"""Exact passes that remove unneeded nodes: constant subgraphs, dead nodes, reshapes that cancel."""
