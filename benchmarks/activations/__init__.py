"""Cost of reading activations from the base model."""
