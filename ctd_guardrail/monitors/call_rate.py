"""The rates of expert calls of the traffic, with a confidence band that is valid at every look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import numpy as np
from scipy.special import logsumexp

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.monitors.conversations import ClosedConversation, Request
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["CallRates", "RateBets"]

# One bet per scale. Halving from bold to timid covers a handful of conversations as well as 1e6 of them.
_SCALES: Final = 0.9 * np.exp2(-np.arange(16.0))
_PRECISION: Final = 1e-6


class RateBets:
    """Bounds on a rate of calls, from whole conversations.

    Conversation i has T_i units and D_i calls; the rate is q = E[D_i] / E[T_i]. For each stake nu,

        prod (1 + nu (D_i - q T_i))    and    prod (1 + nu (q T_i - D_i))

    are nonnegative martingales with mean 1, if nu <= 1 / (q max_units) for the first and nu <= 1 / max_calls for the
    second. So is a mean over several stakes. By Ville's inequality each exceeds 1 / delta with probability at most
    delta, at any time ever. A rate is excluded if one of them exceeds it (Waudby-Smith and Ramdas, arXiv 2010.09686).
    Turns of one conversation may depend on each other.

    Args:
        counts: Number of conversations for each (T, D).
        max_units: Largest T that a conversation can have.
        max_calls: Largest D that a conversation can have.
    """

    def __init__(self, counts: Mapping[tuple[int, int], int], *, max_units: int, max_calls: int) -> None:
        table = np.array([(*key, number) for key, number in counts.items()], dtype=np.float64).reshape(-1, 3)
        self._units, self._calls, self._number = table.T
        self._max_units = max_units
        self._max_calls = max_calls
        total = float(self._units @ self._number)
        self._rate = float(self._calls @ self._number) / total if total else 0.0

    def lower(self, delta: float) -> float:
        """Return the lower bound, which is ever wrong with probability at most delta."""
        if not self._rate:
            return 0.0
        return _first(lambda q: self._against_less(q) < -math.log(delta), 0.0, self._rate)

    def upper(self, delta: float) -> float:
        """Return the upper bound, which is ever wrong with probability at most delta."""
        return _first(
            lambda q: self._against_more(q) >= -math.log(delta), self._rate, self._max_calls / self._max_units
        )

    def _against_less(self, rate: float) -> float:
        """Return the log capital against a rate of at most this one. It falls with the rate."""
        return self._capital(_SCALES / (rate * self._max_units), self._calls - rate * self._units)

    def _against_more(self, rate: float) -> float:
        """Return the log capital against a rate of at least this one. It rises with the rate."""
        return self._capital(_SCALES / self._max_calls, rate * self._units - self._calls)

    def _capital(self, stakes: FloatArray, gains: FloatArray) -> float:
        return float(logsumexp(np.log1p(np.multiply.outer(stakes, gains)) @ self._number, b=1.0 / stakes.size))


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition begins to hold between two rates, to six digits; the upper one if it never holds."""
    if not holds(high):
        return high
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


class CallRates:
    """Counts requests and their calls: calls per request, per judged turn and per conversation.

    Attributes:
        requests: Requests under the configured budget.
        calls: Units of text of these requests that went to the expert, by the rule, by an audit's coin, or because the
            base model could not read them.
        turns: Turns of the user that these requests judged. A recalled turn is not judged again.
        conversations: Conversations that have ended.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.calls = 0
        self.turns = 0
        self._counts: Counter[tuple[int, int]] = Counter()

    def update(self, request: Request) -> None:
        """Take one request. A request under another budget does not count."""
        if request.is_configured:
            self.requests += 1
            self.calls += request.calls
            self.turns += len(request.scores)

    def close(self, conversation: ClosedConversation) -> None:
        """Take one conversation. It counts if it has ended and has requests under the configured budget."""
        if conversation.requests and conversation.is_whole:
            self._counts[conversation.requests, conversation.calls] += 1

    @property
    def conversations(self) -> int:
        """Number of conversations that have ended."""
        return self._counts.total()

    @property
    def per_request(self) -> float:
        """Calls per request; 0 before the first."""
        return self.calls / self.requests if self.requests else 0.0

    @property
    def per_turn(self) -> float:
        """Calls per judged turn; 0 before the first."""
        return self.calls / self.turns if self.turns else 0.0

    @property
    def per_conversation(self) -> float:
        """Calls per conversation that has ended; 0 before the first."""
        ended = self.conversations
        return sum(calls * number for (_, calls), number in self._counts.items()) / ended if ended else 0.0

    def band(
        self, delta: float, *, max_turns: int, max_calls: int | None, is_per_conversation: bool = False
    ) -> tuple[float, float]:
        """Return bounds on a rate that are right at all times together with probability 1 - delta.

        They are those of :class:`RateBets` on the conversations that have ended.

        Args:
            delta: Probability in (0, 1) that a bound is ever wrong.
            max_turns: Largest number of requests of a conversation.
            max_calls: Largest number of calls of a request; None: there is no limit, and no upper bound.
            is_per_conversation: Whether the rate is calls per conversation; else calls per request.

        Raises:
            ConfigError: delta lies outside (0, 1).
        """
        check_share("delta", delta)
        counts: Counter[tuple[int, int]] = Counter()
        for (requests, calls), number in self._counts.items():
            counts[1 if is_per_conversation else requests, calls] += number
        # A conversation may have been counted under a higher limit on the calls.
        most = max([max_turns * (max_calls or 1), *(calls for _, calls in counts)])
        bets = RateBets(counts, max_units=1 if is_per_conversation else max_turns, max_calls=most)
        return bets.lower(delta / 2), math.inf if max_calls is None else bets.upper(delta / 2)

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {
            "requests": self.requests,
            "calls": self.calls,
            "turns": self.turns,
            "conversations": [[*key, number] for key, number in sorted(self._counts.items())],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the counts that ``state`` was taken from.

        Raises:
            DataError: The state is not one of counts.
        """
        saved = SavedState(state, "call rates", ("requests", "calls", "turns", "conversations"))
        rates = cls()
        rates.requests = saved.integer("requests")
        rates.calls = saved.integer("calls")
        rates.turns = saved.integer("turns")
        for requests, calls, number in saved.counts("conversations", 3):
            rates._counts[requests, calls] = number
        return rates
