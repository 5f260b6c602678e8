"""The cascade against its baselines on rows that nothing was fitted to: figures, their errors and their tests."""

from calibrate.evaluate.cascade import ALPHAS, Cell, Evaluation, evaluate
from calibrate.evaluate.combine import combine_studies
from calibrate.evaluate.methods import METHODS
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import Study, study
from calibrate.evaluate.table import Table

__all__ = [
    "ALPHAS",
    "METHODS",
    "Cell",
    "Evaluation",
    "ScoredRows",
    "Study",
    "Table",
    "combine_studies",
    "evaluate",
    "study",
]
