"""Experiments and analyses of trained classifiers: visual explanations, timing, grids of runs."""
