"""Generative adversarial networks: networks, losses, learner, data and sampling."""
