"""Test of several hypotheses with P(any false rejection) <= delta, under any dependence between their p-values.

A rejected hypothesis "the risk at this setting exceeds its level" certifies the setting. The order of the tests must
come from constants or from rows that the p-values have not seen. Learnt on the same rows, it controls nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ctd_guardrail._typing import BoolArray, FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["fixed_sequence"]


def fixed_sequence(p_values: ArrayLike, delta: float, order: Sequence[int] | None = None) -> BoolArray:
    """Reject in a given order while p <= delta, and stop at the first that is not (Maurer et al. 1995).

    Each hypothesis is tested at the full delta, because the test stops at the first failure.

    Args:
        p_values: Shape [m].
        delta: Family-wise error in (0, 1).
        order: Indices in the order of testing, fixed without the rows behind the p-values. None: as they stand.

    Returns:
        A mask of the rejected hypotheses, shape [m].

    Raises:
        DataError: A p-value is NaN or outside [0, 1], or ``order`` names one twice.
    """
    p = _checked(p_values, delta)
    index = np.arange(p.size) if order is None else np.asarray(order, dtype=np.intp)
    if np.unique(index).size != index.size:
        raise DataError("the order of a fixed-sequence test names a hypothesis twice")
    rejected = np.zeros(p.size, dtype=np.bool_)
    rejected[index] = np.logical_and.accumulate(p[index] <= delta)
    return rejected


def _checked(p_values: ArrayLike, delta: float) -> FloatArray:
    check_share("delta", delta)
    p = np.asarray(p_values, dtype=np.float64)
    # A NaN compares false with everything and would silently stop the test.
    bad = np.flatnonzero(~((p >= 0.0) & (p <= 1.0)))
    if bad.size:
        raise DataError(f"p-value is {p[bad[0]]}, not in [0, 1]", row=int(bad[0]) + 1)
    return p
