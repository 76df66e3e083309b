"""Classifiers, loading of weights, model files and ONNX export."""
