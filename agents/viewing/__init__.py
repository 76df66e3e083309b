"""Tools for finished runs: loading, learning curves, saliency maps and video frames."""
