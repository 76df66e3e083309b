"""Scores of generated images: features, distances and classifiers."""
