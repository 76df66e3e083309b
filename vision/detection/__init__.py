"""Object detection: selective search, R-CNN, Fast R-CNN, and average precision."""
