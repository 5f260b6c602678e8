"""Training of the safety probe and the delegation value. Read :mod:`calibrate.train.recipe` first."""

from calibrate.config.recipe import Recipe
from calibrate.train.rows import SafetyRows
from calibrate.train.selection import PaddedRows
from calibrate.train.train import TokenRows, TrainedProbes, train_probes

__all__ = ["PaddedRows", "Recipe", "SafetyRows", "TokenRows", "TrainedProbes", "train_probes"]
