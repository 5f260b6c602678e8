"""Names of the array types that the code uses. Each name means one dtype."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoolArray", "DigestArray", "Float32Array", "FloatArray", "IndexArray", "IntArray"]

FloatArray: TypeAlias = NDArray[np.float64]
"""Scores, thresholds, risks and everything else that is computed."""

Float32Array: TypeAlias = NDArray[np.float32]
"""Activations, and the weights that are multiplied with them."""

IntArray: TypeAlias = NDArray[np.int64]
"""Row numbers, labels and counts."""

IndexArray: TypeAlias = NDArray[np.intp]
"""Positions that NumPy returns, as from `argsort`."""

BoolArray: TypeAlias = NDArray[np.bool_]
"""Masks and decisions."""

DigestArray: TypeAlias = NDArray[np.uint64]
"""Hashes of texts."""
