"""Scores of a conversation from those of its windows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["over_windows"]

Float = TypeVar("Float", np.float32, np.float64)


def over_windows(scores: NDArray[Float]) -> NDArray[Float]:
    """Return p and d of a conversation: the maxima over its windows.

    A conversation is as unsafe as its worst window, and worth a call if one of its windows is. NaN stays NaN.

    Args:
        scores: (p, d) of each window, shape [windows, 2].

    Returns:
        Shape [2].
    """
    # Most conversations have one window. A view of it takes a tenth of the time of a reduction.
    maxima: NDArray[Float] = scores[0] if len(scores) == 1 else scores.max(axis=0)
    return maxima
