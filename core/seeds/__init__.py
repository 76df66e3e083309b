"""Several seeds of one training program."""
