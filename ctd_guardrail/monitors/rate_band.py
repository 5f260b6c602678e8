"""The delegated share of the traffic, with a confidence band that is valid at every look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["DelegationCount", "rate_band"]


def rate_band(hits: int, total: int, *, delta: float = 0.05) -> tuple[float, float]:
    """Return bounds on the rate of independent events that hold at all times together with probability 1 - delta.

    For the true rate q the mixture of likelihood ratios over a Beta(1/2, 1/2) law,

        M_t = B(S + 1/2, t - S + 1/2) / (B(1/2, 1/2) q^S (1 - q)^(t - S)),

    is a martingale that starts at 1, so P(M_t >= 1 / delta for any t ever) <= delta (Ville 1939; the mixture is that
    of Robbins 1970). The band is every q with M_t < 1 / delta, an interval around S / t because ln M_t is convex in q.
    A binomial interval that is computed at each look would almost certainly be wrong at some look.

    Args:
        hits: S, number of events, at least 0.
        total: t, number of trials, at least S.
        delta: Probability in (0, 1) that the band is ever wrong.

    Raises:
        ConfigError: delta lies outside (0, 1).
    """
    check_share("delta", delta)
    if not total:
        return 0.0, 1.0
    misses = total - hits
    evidence = float(betaln(hits + 0.5, misses + 0.5) - betaln(0.5, 0.5)) + math.log(delta)

    def excess(rate: float) -> float:
        return evidence - float(xlogy(hits, rate) + xlog1py(misses, -rate))

    rate = hits / total
    low = brentq(excess, 1e-300, rate, xtol=1e-18) if hits else 0.0
    high = brentq(excess, rate, 1.0 - 1e-16, xtol=1e-18) if misses else 1.0
    return float(low), float(high)


class DelegationCount:
    """Counts of the inputs under the configured budget, and of those that went to the expert.

    Attributes:
        inputs: Number of inputs.
        delegated: Number of inputs that went to the expert, by the rule or by an audit's coin.
    """

    def __init__(self) -> None:
        self.inputs = 0
        self.delegated = 0

    def update(self, *, delegated: bool) -> None:
        """Take one input."""
        self.inputs += 1
        self.delegated += delegated

    @property
    def rate(self) -> float:
        """Realised share; 0 before the first input."""
        return self.delegated / self.inputs if self.inputs else 0.0

    def band(self, delta: float) -> tuple[float, float]:
        """Return the band of :func:`rate_band`."""
        return rate_band(self.delegated, self.inputs, delta=delta)

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {"inputs": self.inputs, "delegated": self.delegated}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the count that ``state`` was taken from.

        Raises:
            DataError: The state is not one of a count.
        """
        saved = SavedState(state, "delegation count", ("inputs", "delegated"))
        count = cls()
        count.delegated = saved.integer("delegated")
        count.inputs = saved.integer("inputs", minimum=count.delegated)
        return count
