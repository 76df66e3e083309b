"""Networks with binary weights and activations."""
