"""Experiments on finished classifiers: what they look at, and grids of runs."""
