"""Image classification: config, training, evaluation, preprocessing and figures."""
