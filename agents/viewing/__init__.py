"""Finished runs: loading, learning curves, saliency and drawing."""
