"""Epoch loop and supervised training step, shared by the vision programs."""
