"""Program that starts the training programs with the fastest number of processes."""
