"""An estimate of the misses of the cascade, from inputs that a coin sends to the expert."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
from scipy.special import logsumexp, xlog1py

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["AuditFloor"]

# One bet per scale: 1 + z multiplies the capital at each miss found. Halving from bold to timid covers a handful of
# misses as well as 1e5 of them. z = -1 is the bet that no miss is ever found.
_RISES: Final = np.exp2(np.arange(3.0, -9.0, -1.0))
_FALLS: Final = -np.exp2(np.arange(0.0, -9.0, -1.0))


class AuditFloor:
    """Estimates the share of undetected errors of the cascade, such as harm that it let pass.

    A fresh, independent coin selects each input for an audit with probability eps. The verdict does not depend on the
    audit. The expert's answer shows whether the verdict was a miss. An audit finds S_t of the N_t misses among t
    inputs, and S_t / (eps t) is an unbiased estimate of N_t / t (Horvitz and Thompson 1952).

    Confidence sequence: for each z > -1, (1 + z)^S_t (1 + eps z)^(-N_t) is a martingale that starts at 1, because an
    audit finds each miss with probability eps, given the past. A mean over several z is a martingale too (method of
    mixtures: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, arXiv 1810.08240). Waudby-Smith and Ramdas, arXiv
    2010.09686, use such bets. By Ville's inequality, for z = 2^3..2^-8, and separately for z = -1..-2^-8,

        P(mean_z (1 + z)^S_t (1 + eps z)^(-N_t) >= 2 / delta for any t ever) <= delta / 2,

    The interval holds every N_t that neither bound excludes: P(N_t / t in interval, at all t) >= 1 - delta. The method
    assumes nothing about the traffic, which may react to verdicts. Only the coin is random. The coin must be fresh: a
    hash of the input would audit a repeated attack always or never.

    Args:
        share: eps, the probability of an audit, in (0, 1).
        delta: Probability in (0, 1) that the interval is ever wrong.

    Attributes:
        share: The argument of the same name.
        delta: The argument of the same name.
        inputs: t.
        audits: Inputs audited.
        misses: S_t, misses found among them.

    Raises:
        ConfigError: A value lies outside (0, 1).
    """

    def __init__(self, share: float, *, delta: float = 0.05) -> None:
        check_share("share", share)
        check_share("delta", delta)
        self.share = share
        self.delta = delta
        self.inputs = 0
        self.audits = 0
        self.misses = 0

    def update(self, *, missed: bool | None) -> None:
        """Take one input.

        Args:
            missed: None if the input was not audited; else whether the expert calls the verdict wrong. Count an audit
                without an answer of the expert as a miss to keep the upper end of the interval valid.
        """
        self.inputs += 1
        if missed is not None:
            self.audits += 1
            self.misses += missed

    @property
    def estimate(self) -> float:
        """Unbiased estimate of the share of misses, at least 0 and possibly above 1; 0 before the first input."""
        return self.misses / (self.share * self.inputs) if self.inputs else 0.0

    def interval(self) -> tuple[float, float]:
        """Return bounds on N_t / t that hold at all t together with probability 1 - delta."""
        if not self.inputs:
            return 0.0, 1.0
        # N_t is at least the number of misses found, and at most t minus the audited inputs without a miss. The
        # evidence of the rises decreases in N_t; that of the falls increases. With an unfair coin they may refute
        # every N_t; then the interval is the nearest possible N_t.
        least, most = self.misses, self.inputs - (self.audits - self.misses)
        possible = range(least, most + 1)
        low = least + bisect_left(possible, 1, key=lambda n: not self._excludes(n, _RISES))
        high = least - 1 + bisect_left(possible, 1, key=lambda n: self._excludes(n, _FALLS))
        return min(low, most) / self.inputs, max(high, least) / self.inputs

    def _excludes(self, misses: int, z: FloatArray) -> bool:
        """Whether the bets z refute that there were this many misses, found and unfound."""
        capital = logsumexp(xlog1py(self.misses, z) - misses * np.log1p(self.share * z), b=1.0 / z.size)
        return bool(capital >= math.log(2.0 / self.delta))

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return {
            "share": self.share,
            "delta": self.delta,
            "inputs": self.inputs,
            "audits": self.audits,
            "misses": self.misses,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the estimator that ``state`` was taken from.

        Raises:
            DataError: The state is not one of this estimator.
        """
        saved = SavedState(state, "audit floor", ("share", "delta", "inputs", "audits", "misses"))
        floor = cls(saved.share("share"), delta=saved.share("delta"))
        floor.misses = saved.integer("misses")
        floor.audits = saved.integer("audits", minimum=floor.misses)
        floor.inputs = saved.integer("inputs", minimum=floor.audits)
        return floor
