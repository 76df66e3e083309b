"""Hyperparameter search: search space, trials and their report."""
