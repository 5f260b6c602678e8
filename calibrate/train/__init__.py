"""Training of the two probes: what they learn, in which kinds, and the choice between candidates."""

from calibrate.config.training import TrainOptions
from calibrate.train.probes import TokenRows, TrainedProbes, train_probes
from calibrate.train.rows import SafetyRows
from calibrate.train.selection import PaddedRows

__all__ = ["PaddedRows", "SafetyRows", "TokenRows", "TrainOptions", "TrainedProbes", "train_probes"]
