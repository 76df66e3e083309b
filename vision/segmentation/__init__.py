"""Semantic segmentation: networks, losses, scoring and pictures."""
