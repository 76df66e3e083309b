"""Image classification, segmentation, detection and captioning: training, prediction and analysis."""
