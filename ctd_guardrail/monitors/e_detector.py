"""E-detectors: sums of bets, one begun at every step, against a statement about a stream.

A bet is a factor on its capital whose mean is at most 1 while the statement holds. Step t puts a share w_t of the
initial capital of 1 into play. It then multiplies all capital in play by the factor of that step:

    S_t = LR_t (S_{t-1} + w_t),    E_t = mean S_t + r_t,    r_t = 1 - w_1 - ... - w_t.

While the statement holds, E_t is a nonnegative supermartingale with E_0 = 1, so P(E_t >= 1/delta for any t ever) <=
delta (Ville 1939). New capital comes into play at every step, so a late change is still detected. This is the
Shiryaev-Roberts procedure with a summable weight per starting time. The weights of the original e-detectors sum to
infinity and bound the mean time between false alarms instead (Shin, Ramdas and Rinaldo, arXiv 2203.03532).

The weights are those of r_t = 1 / (1 + ln(1 + t)). They cost ln t + 2 ln ln t in log capital, whereas
r_t = 1 / (t + 1) costs 2 ln t. After 5,000 quiet steps alarms come a quarter sooner; on the first steps, at most 8%
later.

The factor on an event of rate at most alpha is its likelihood ratio at a larger rate q,

    LR = (q / alpha)^D ((1 - q) / (1 - alpha))^(1 - D),    q / alpha in {1.1, 1.25, 1.5, 2, 3},

whose mean is at most 1 for every rate up to alpha. Capital is shared evenly among the q. The arithmetic needs no
logarithms: an alarm stops it, so no capital exceeds (number of bets) / delta, and w_t keeps each above zero.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["RATIOS", "Alarm", "Factors", "advance", "compound", "factors", "idle", "started"]


RATIOS: Final = (1.1, 1.25, 1.5, 2.0, 3.0)


class Factors(NamedTuple):
    """The factor of each bet's capital, arrays of shape [..., 5].

    Attributes:
        hit: If the event happens, q / alpha.
        miss: If it does not, (1 - q) / (1 - alpha).
    """

    hit: FloatArray
    miss: FloatArray


def factors(alpha: ArrayLike) -> Factors:
    """Return the factors of the five bets against each event rate.

    Args:
        alpha: Rates in (0, 1), shape [...]. A ratio that would lead above 0.9 + 0.1 alpha stops there, so that q
            stays a rate.
    """
    rate = np.asarray(alpha, dtype=np.float64)[..., None]
    q = np.minimum(np.array(RATIOS) * rate, 0.9 + 0.1 * rate)
    return Factors(hit=q / rate, miss=(1.0 - q) / (1.0 - rate))


def idle(t: int) -> float:
    """Return r_t, the share of the initial capital not yet in play after t steps."""
    return 1.0 / (1.0 + math.log1p(t))


def started(t: int) -> float:
    """Return w_t = r_{t-1} - r_t, the share put into play at step t >= 1."""
    return idle(t - 1) - idle(t)


def compound(capital: FloatArray, factor: FloatArray, t: int) -> FloatArray:
    """Return S_t from S_{t-1}.

    Args:
        capital: S_{t-1}, shape [..., 5].
        factor: The factor of each bet, shape [..., 5].
        t: The number of this step, from 1.
    """
    return (capital + started(t)) * factor


def advance(capital: FloatArray, event: ArrayLike, bets: Factors, t: int) -> FloatArray:
    """Return S_t from S_{t-1} for bets on events.

    Args:
        capital: S_{t-1}, shape [..., 5].
        event: Whether each event has happened, shape [...].
        bets: Their factors.
        t: The number of this step, from 1.
    """
    return compound(capital, np.where(np.asarray(event)[..., None], bets.hit, bets.miss), t)


class Alarm:
    """An alarm that is raised once the evidence reaches 1 / delta, and that stays raised.

    After an alarm the monitor ignores updates. Find the cause, then start a new monitor.

    Args:
        delta: Probability in (0, 1) of any false alarm, ever.

    Attributes:
        delta: The argument of the same name.
        steps: Updates so far, up to the alarm.
        evidence: E_t, 1 at the start. Its reciprocal bounds the probability of having seen that much by chance.
        alarmed_at: The step of the alarm, None without one.

    Raises:
        ConfigError: delta lies outside (0, 1).
    """

    FIELDS: Final = ("delta", "steps", "evidence", "alarmed_at")

    def __init__(self, delta: float) -> None:
        check_share("delta", delta)
        self.delta = delta
        self.steps = 0
        self.evidence = 1.0
        self.alarmed_at: int | None = None

    def _judge(self, evidence: float) -> bool:
        """Take the evidence after the current step and return whether the alarm is raised."""
        self.evidence = evidence
        if evidence * self.delta >= 1.0:
            self.alarmed_at = self.steps
        return self.alarmed_at is not None

    def _alarm_state(self) -> State:
        return {name: getattr(self, name) for name in self.FIELDS}

    def _resume(self, saved: SavedState) -> None:
        self.steps = saved.integer("steps")
        self.evidence = saved.number("evidence")
        self.alarmed_at = saved.optional_integer("alarmed_at")
