"""What the base model says about one conversation, and how long that took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One conversation, read.

    Attributes:
        rows: What the head made of each window, shape [windows, K].
        queue_ms: From handing the conversation to the device thread until its batch started there, milliseconds.
        forward_ms: Time of its batch on the device thread, milliseconds; conversations of one batch share it.
    """

    rows: NDArray[np.float32]
    queue_ms: float
    forward_ms: float
