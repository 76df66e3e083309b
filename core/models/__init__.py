"""Classifiers, their weights and model files, and ONNX export."""
