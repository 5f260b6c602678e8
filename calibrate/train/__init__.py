"""Training of the two probes on pooled activations."""

from calibrate.train.probes import SafetyRows, TrainedProbes, train_probes

__all__ = ["SafetyRows", "TrainedProbes", "train_probes"]
