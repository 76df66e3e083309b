"""Benchmarks: runs over environments, presets and seeds, their statistics and tables."""
