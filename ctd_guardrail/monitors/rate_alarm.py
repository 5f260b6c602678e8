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
from ctd_guardrail.policy.turns import BudgetUnit

__all__ = ["RateAlarm", "rate_bets"]

# A bet never risks more than this share of its capital, so that one conversation cannot end it.
_BOLDEST: Final = 0.9
_SMALLEST: Final = 1e-9


def rate_bets(limit: float, *, unit: BudgetUnit = BudgetUnit.TURN, max_turns: int = 1) -> FloatArray:
    """Return the stakes nu of the five bets against a rate of calls.

    Against calls per request, a stake of (r - 1) / (1 - limit) is the likelihood ratio of the rate r times limit for
    single requests. Calls per conversation have a variance that is not known beforehand, so their stakes are halved
    from bold to timid.

    Args:
        limit: Largest allowed rate.
        unit: What the limit is a share or a number of.
        max_turns: Largest number of requests of a conversation.
    """
    if unit is BudgetUnit.CONVERSATION:
        stakes = _BOLDEST / limit * np.exp2(-np.arange(1.0, 1.0 + len(RATIOS)))
    else:
        stakes = np.minimum((np.array(RATIOS) - 1.0) / max(1.0 - limit, _SMALLEST), _BOLDEST / (limit * max_turns))
    return np.asarray(stakes)


class RateAlarm(Alarm):
    """Detects a rate of calls above a limit, from whole conversations.

    Conversation i has D_i calls and an allowance a_i: limit T_i for its T_i requests, or the limit itself if the budget
    is per conversation. The e-detector of :mod:`ctd_guardrail.monitors.e_detector` multiplies five bets by

        1 + nu (D_i - a_i),    nu = (r - 1) / (1 - limit), at most .9 / (limit max_turns),

    for r = 1.1, 1.25, 1.5, 2 and 3. If the budget is per conversation, nu = .9 / limit, halved one to five times. The
    factors are positive, because D_i >= 0, and so

        P(any alarm, ever) <= delta    while E[D_i - a_i | all conversations before i] <= 0 for every i.

    Turns of one conversation may depend on each other, and the rate may change along it. For conversations of one
    request the factors are the likelihood ratios of single events. A certificate bounds the rate with probability
    1 - delta'. So a false alarm has probability at most delta + delta' over calibration and stream together.

    Args:
        limit: Largest allowed rate, above 0: calls per request, or calls per conversation.
        delta: Probability in (0, 1) of any false alarm, ever.
        unit: What the limit is a share or a number of.
        max_turns: Largest number of requests of a conversation, at least 1.

    Attributes:
        limit: The argument of the same name.
        unit: The argument of the same name.
        max_turns: The argument of the same name.

    Raises:
        ConfigError: A value lies outside its range.
    """

    def __init__(
        self, limit: float, *, delta: float = 0.05, unit: BudgetUnit = BudgetUnit.TURN, max_turns: int = 1
    ) -> None:
        super().__init__(delta)
        if not 0.0 < limit < math.inf:
            raise ConfigError(f"{limit!r} is no rate above 0", key="limit", hint="Set a rate such as 0.1")
        self.limit = limit
        self.unit = unit
        self.max_turns = max_turns
        self._bets = rate_bets(limit, unit=unit, max_turns=max_turns)
        self._capital = np.zeros(len(RATIOS))

    def update(self, calls: int, requests: int = 1) -> bool:
        """Take one conversation that has ended and return whether the alarm is raised.

        Args:
            calls: D, its units of text that went to the expert by the rule, by an audit's coin, or because the base
                model cannot read them. A call that failed or was denied counts.
            requests: T, at most ``max_turns``.

        Raises:
            DataError: The conversation has more requests than ``max_turns``.
        """
        if requests > self.max_turns:
            raise DataError(
                f"a conversation has {requests} requests, not {self.max_turns} at most",
                hint="Close a conversation at max_turns",
            )
        if self.alarmed_at is not None:
            return True
        self.steps += 1
        allowance = self.limit if self.unit is BudgetUnit.CONVERSATION else self.limit * requests
        self._capital = compound(self._capital, 1.0 + self._bets * (calls - allowance), self.steps)
        return self._judge(float(self._capital.sum()) / self._capital.size + idle(self.steps))

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return self._alarm_state() | {
            "limit": self.limit,
            "unit": self.unit,
            "max_turns": self.max_turns,
            "capital": self._capital.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the monitor that ``state`` was taken from.

        Raises:
            DataError: The state is not one of this monitor.
        """
        saved = SavedState(state, "rate alarm", (*cls.FIELDS, "limit", "unit", "max_turns", "capital"))
        limit, unit = saved.number("limit"), saved.text("unit")
        if not limit or unit not in set(BudgetUnit):
            raise DataError(
                f"saved state of the rate alarm has limit {limit!r} and unit {unit!r}", hint="Start a new monitor"
            )
        alarm = cls(
            limit,
            delta=saved.share("delta"),
            unit=BudgetUnit(unit),
            max_turns=saved.integer("max_turns", minimum=1),
        )
        cls._resume(alarm, saved)
        return alarm

    def _resume(self, saved: SavedState) -> None:
        super()._resume(saved)
        self._capital = saved.numbers("capital", self._capital.shape)
