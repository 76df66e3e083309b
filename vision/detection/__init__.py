"""Object detection: proposals, R-CNN and Fast R-CNN, and their scoring."""
