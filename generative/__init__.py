"""Generative models: GANs and style transfer, and metrics of generated images."""
