"""Activations of the base model: their place, their computation, and batches of requests on one device. Internal."""
