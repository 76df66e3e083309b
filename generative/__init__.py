"""Paint: generators taught by the eye, and scores of what they paint."""
