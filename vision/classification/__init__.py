"""Image classification: settings, learner, scoring and pictures."""
