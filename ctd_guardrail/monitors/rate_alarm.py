"""An alarm on the share of delegated inputs, valid at every moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ctd_guardrail.monitors.e_detector import RATIOS, Alarm, advance, factors, idle
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["RateAlarm"]


class RateAlarm(Alarm):
    """Detects a delegation rate above alpha.

    With D_t = 1 where input t is delegated, it is the e-detector of :mod:`ctd_guardrail.monitors.e_detector` (arXiv
    2203.03532) on D_t with five bets q = 1.1, 1.25, 1.5, 2 and 3 times alpha:

        P(any alarm, ever) <= delta    while P(D_t = 1 | everything before t) <= alpha at every t.

    There is no other assumption: inputs may depend on each other, and the rate may move freely below alpha. A
    certificate bounds the rate by alpha with probability 1 - delta'. So a false alarm has probability at most
    delta + delta' over calibration and stream together.

    Args:
        alpha: The budget, in (0, 1).
        delta: Probability in (0, 1) of any false alarm, ever.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
    """

    def __init__(self, alpha: float, *, delta: float = 0.05) -> None:
        super().__init__(delta)
        check_share("alpha", alpha)
        self.alpha = alpha
        self._bets = factors(alpha)
        self._capital = np.zeros(len(RATIOS))

    def update(self, *, delegated: bool) -> bool:
        """Take one input and return whether the alarm is raised.

        Args:
            delegated: Whether the budget rule gave the input to the expert, d > lambda, even if the call then failed
                or was denied.
        """
        if self.alarmed_at is not None:
            return True
        self.steps += 1
        self._capital = advance(self._capital, delegated, self._bets, self.steps)
        return self._judge(float(self._capital.sum()) / self._capital.size + idle(self.steps))

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return self._alarm_state() | {"alpha": self.alpha, "capital": self._capital.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the monitor that ``state`` was taken from.

        Raises:
            DataError: The state is not one of this monitor.
        """
        saved = SavedState(state, "rate alarm", (*cls.FIELDS, "alpha", "capital"))
        alarm = cls(saved.share("alpha"), delta=saved.share("delta"))
        cls._resume(alarm, saved)
        return alarm

    def _resume(self, saved: SavedState) -> None:
        super()._resume(saved)
        self._capital = saved.numbers("capital", self._capital.shape)
