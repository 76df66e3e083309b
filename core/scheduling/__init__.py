"""Processes of many independent runs: on this machine, or on a Ray cluster."""
