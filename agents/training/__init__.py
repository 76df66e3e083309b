"""The bookkeeping of a training run: session, evaluation and pictures."""
