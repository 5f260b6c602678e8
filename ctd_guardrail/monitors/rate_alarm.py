"""An alarm on the rate of expert calls, valid at every moment and for turns that depend on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.e_detector import RATIOS, Alarm, compound, idle
from ctd_guardrail.monitors.state import SavedState, State

__all__ = ["RateAlarm", "rate_bets"]

# A bet never risks more than this share of its capital, so that one conversation cannot end it.
_BOLDEST: Final = 0.9


def rate_bets(limit: float, max_units: int) -> FloatArray:
    """Return the stakes nu of the five bets against a rate of calls.

    A stake of (r - 1) / (1 - limit) is the likelihood ratio of the rate r times limit for single requests. A limit on
    calls per conversation may exceed 1; its stakes are those of a Poisson law, r - 1.

    Args:
        limit: Largest allowed rate: calls per unit.
        max_units: Largest number of units of a conversation.
    """
    spread = 1.0 - limit if limit < 1.0 else 1.0
    return np.minimum((np.array(RATIOS) - 1.0) / spread, _BOLDEST / (limit * max_units))


class RateAlarm(Alarm):
    """Detects a rate of calls above a limit, from whole conversations.

    Conversation i has T_i units (its requests, or 1 if the budget is per conversation) and D_i calls. The e-detector of
    :mod:`ctd_guardrail.monitors.e_detector` multiplies five bets by

        1 + nu (D_i - limit T_i),    nu = (r - 1) / (1 - limit), at most .9 / (limit max_units),

    for r = 1.1, 1.25, 1.5, 2 and 3. The factor is positive, because D_i - limit T_i >= -limit max_units, and so

        P(any alarm, ever) <= delta    while E[D_i - limit T_i | all conversations before i] <= 0 for every i.

    Turns of one conversation may depend on each other, and the rate may change along it. For conversations of one
    request the factors are the likelihood ratios of single events.

    Args:
        limit: Largest allowed rate: calls per unit, above 0. Below 1 for calls per request.
        delta: Probability in (0, 1) of any false alarm, ever.
        max_units: Largest number of units of a conversation, at least 1.

    Attributes:
        limit: The argument of the same name.
        max_units: The argument of the same name.

    Raises:
        ConfigError: A value lies outside its range.
    """

    def __init__(self, limit: float, *, delta: float = 0.05, max_units: int = 1) -> None:
        super().__init__(delta)
        if not 0.0 < limit < math.inf:
            raise ConfigError(f"{limit!r} is no rate above 0", key="limit", hint="Set a rate such as 0.1")
        self.limit = limit
        self.max_units = max_units
        self._bets = rate_bets(limit, max_units)
        self._capital = np.zeros(len(RATIOS))

    def update(self, calls: int, units: int = 1) -> bool:
        """Take one conversation that has ended and return whether the alarm is raised.

        Args:
            calls: D, its units of text that went to the expert by the rule, by an audit's coin, or because the base
                model cannot read them. A call that failed or was denied counts.
            units: T, at most ``max_units``.

        Raises:
            DataError: The conversation has more units than ``max_units``.
        """
        if units > self.max_units:
            raise DataError(
                f"a conversation has {units} units, not {self.max_units} at most",
                hint="Close a conversation at max_units",
            )
        if self.alarmed_at is not None:
            return True
        self.steps += 1
        self._capital = compound(self._capital, 1.0 + self._bets * (calls - self.limit * units), self.steps)
        return self._judge(float(self._capital.sum()) / self._capital.size + idle(self.steps))

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return self._alarm_state() | {
            "limit": self.limit,
            "max_units": self.max_units,
            "capital": self._capital.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the monitor that ``state`` was taken from.

        Raises:
            DataError: The state is not one of this monitor.
        """
        saved = SavedState(state, "rate alarm", (*cls.FIELDS, "limit", "max_units", "capital"))
        limit = saved.number("limit")
        if not limit:
            raise DataError("saved state of the rate alarm has 0 for 'limit'", hint="Start a new monitor")
        alarm = cls(limit, delta=saved.share("delta"), max_units=saved.integer("max_units", minimum=1))
        cls._resume(alarm, saved)
        return alarm

    def _resume(self, saved: SavedState) -> None:
        super()._resume(saved)
        self._capital = saved.numbers("capital", self._capital.shape)
