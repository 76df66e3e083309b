"""See: classifiers on the eye, what they predict, and what looks inside them."""
