"""Semantic segmentation: config, networks, losses, augmentation, evaluation, logged images and model files."""
