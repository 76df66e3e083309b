"""Style transfer: losses, optimizer and networks."""
