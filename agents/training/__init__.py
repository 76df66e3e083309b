"""Parts of the training loop: session state, evaluation and logged images."""
