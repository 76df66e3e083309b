"""Runs of many games, presets and seeds, and the tables made of them."""
