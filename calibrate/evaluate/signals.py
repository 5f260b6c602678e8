"""What can rank the rows for delegation: the larger the signal, the sooner a row goes to the expert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["uncertainty", "uncertainty_rank"]

FloatArray = NDArray[np.float64]


def uncertainty(p: FloatArray) -> FloatArray:
    """Return -|p - 1/2|: the larger, the less the probe is sure. Shape [n]."""
    return -np.abs(p - 0.5)


def uncertainty_rank(p: FloatArray, reference: FloatArray) -> FloatArray:
    """Return minus the distance of p's rank from the median rank, the uncertainty of arXiv 2604.14251.

    Unlike |p - 1/2| it finds the undecided middle of a probe whose scores all lie on one side of 1/2.

    Args:
        p: Scores, shape [n].
        reference: Scores that ranks are taken among, shape [m]; the calibration rows', so that a row's signal does
            not depend on the other rows that are evaluated.

    Returns:
        -|F(p) - 1/2|, F the share of reference scores below p, ties counted half; shape [n].
    """
    ordered = np.sort(reference)
    below, up_to = (np.searchsorted(ordered, p, side=side) for side in ("left", "right"))
    return -np.abs((below + up_to) / (2.0 * ordered.size) - 0.5)
