"""Activations of the base model: where they are read, how they are computed, and how requests share the device."""
