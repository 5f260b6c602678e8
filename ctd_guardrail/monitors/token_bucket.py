"""A cap on the number of expert calls in any window of requests, whatever the traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Self

from scipy.optimize import brentq

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["TokenBucket", "bucket_capacity", "exact_share"]


def exact_share(name: str, value: float) -> Fraction:
    """Return the decimal number that the value was written as, so that sums of it do not round: 0.1 is 1 / 10.

    Raises:
        ConfigError: It lies outside (0, 1).
    """
    check_share(name, value)
    return Fraction(str(float(value)))


def bucket_capacity(alpha: float, rate: float, epsilon: float = 1e-3) -> int:
    """Return the smallest capacity b at which calls are hardly ever denied while the traffic is as expected.

    The deficit of a bucket that is refilled by alpha and asked with probability p is a random walk reflected at 0,
    with increments 1 - alpha and -alpha. In its steady state it reaches b with probability at most e^(-theta b)
    (Lundberg's inequality; Kingman 1970), theta > 0 being the root of

        p e^(theta (1 - alpha)) + (1 - p) e^(-theta alpha) = 1,

    so b = ceil(ln(1 / epsilon) / theta). Independent requests are assumed; only the share of denials depends on it.

    Args:
        alpha: Refill per request, the budget, in (0, 1).
        rate: Expected share p of delegated inputs, in (0, alpha); a certificate's ``mean_rate``.
        epsilon: Largest admissible share of denials, in (0, 1).

    Raises:
        ConfigError: A value lies outside its range.
    """
    for name, value in (("alpha", alpha), ("rate", rate), ("epsilon", epsilon)):
        check_share(name, value)
    if rate >= alpha:
        raise ConfigError(
            f"{rate!r} is not below alpha = {alpha!r}: no capacity would do in the long run",
            key="rate",
            hint="Raise alpha, or calibrate a threshold whose mean rate is below it",
        )

    def log_moment(theta: float) -> float:
        return math.log1p(rate * math.expm1(theta)) - theta * alpha

    # Convex in theta, 0 and falling at 0, lowest at ln(alpha (1 - rate) / (rate (1 - alpha))).
    low = math.log(alpha * (1.0 - rate) / (rate * (1.0 - alpha)))
    high = 2.0 * low
    while log_moment(high) <= 0.0:
        high *= 2.0
    theta = float(brentq(log_moment, low, high, xtol=1e-12))
    return max(1, math.ceil(math.log(1.0 / epsilon) / theta))


class TokenBucket:
    """Lets at most alpha T + b calls through in any T consecutive requests.

    Each request adds alpha to the level, up to b, and each call takes 1 from it; a call that finds less than 1 is
    denied. The bound needs no assumption: calls = refill - rise of the level <= alpha T + b in every window (leaky
    bucket as a meter: Turner 1986; Cruz 1991, IEEE Trans. Inf. Theory 37(1), eq. 1). Whole-number arithmetic keeps it
    exact. A denied call falls to the rail's failure policy.

    Args:
        alpha: Refill per request, in (0, 1).
        capacity: b, at least 1; :func:`bucket_capacity` chooses it.

    Attributes:
        alpha: As given.
        capacity: As given.

    Raises:
        ConfigError: A value lies outside its range.
    """

    def __init__(self, alpha: float, capacity: int) -> None:
        share = exact_share("alpha", alpha)
        if capacity < 1:
            raise ConfigError(f"{capacity!r} is below 1: no call would ever pass", key="capacity")
        self.alpha = alpha
        self.capacity = capacity
        # One call in units of 1 / denominator, and the refill in the same units.
        self._call = share.denominator
        self._refill = share.numerator
        self._level = capacity * self._call

    @property
    def level(self) -> float:
        """Calls that could be made right now, in [0, capacity]."""
        return self._level / self._call

    def update(self, *, delegated: bool) -> bool:
        """Take one request and return whether its expert call may be made.

        Args:
            delegated: Whether the budget rule wants to ask the expert.
        """
        self.refill(1)
        return delegated and self.take()

    def refill(self, steps: int) -> None:
        """Let so many refills pass in which nothing was asked for."""
        self._level = min(self._level + steps * self._refill, self.capacity * self._call)

    def take(self) -> bool:
        """Return whether one more call may be made for the current request, such as a retry, and count it."""
        if self._level < self._call:
            return False
        self._level -= self._call
        return True

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return {"alpha": self.alpha, "capacity": self.capacity, "level": self._level}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the bucket that ``state`` was taken from.

        Raises:
            DataError: The state is not one of a bucket.
        """
        saved = SavedState(state, "token bucket", ("alpha", "capacity", "level"))
        bucket = cls(saved.share("alpha"), saved.integer("capacity", minimum=1))
        cls._resume(bucket, saved)
        return bucket

    def _resume(self, saved: SavedState) -> None:
        self._level = min(saved.integer("level"), self._level)
