"""Probes: from token activations to the safety score p and the delegation value d. Internal."""
