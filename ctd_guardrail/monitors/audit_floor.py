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
    """Estimates the share of inputs that the cascade got wrong without noticing, such as harm that it let pass.

    Every input is audited with probability eps by a fresh coin that depends on nothing: its verdict is formed without
    the audit, the expert is asked anyway, and the answer says whether it was a miss, M = 1. Of N_t misses among t
    inputs S_t are found, and S_t / (eps t) is an unbiased estimate of N_t / t (Horvitz and Thompson 1952).

    Confidence sequence: for each z > -1, (1 + z)^S_t (1 + eps z)^(-N_t) is a martingale that starts at 1, because a
    miss is found with probability eps whatever came before. So is a mean over several z (method of mixtures: Robbins
    1970; Howard, Ramdas, McAuliffe and Sekhon, arXiv 1810.08240; such bets: Waudby-Smith and Ramdas, arXiv
    2010.09686). By Ville's inequality, for z = 2^3..2^-8 and apart for z = -1..-2^-8,

        P(mean_z (1 + z)^S_t (1 + eps z)^(-N_t) >= 2 / delta for any t ever) <= delta / 2,

    and the interval holds every N_t that neither excludes: P(N_t / t in interval, at all t) >= 1 - delta. Nothing is
    assumed of the traffic, which may react to verdicts; only the coin is random. It must be fresh: a hash of the input
    would audit a repeated attack always or never.

    Args:
        share: eps, the probability of an audit, in (0, 1).
        delta: Probability in (0, 1) that the interval is ever wrong.

    Attributes:
        share: As given.
        delta: As given.
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
            missed: None where it was not audited; where it was, whether the expert calls the verdict wrong. An audit
                whose expert gave no answer counts as a miss if the upper end of the interval is to stay valid.
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
        # Misses found are misses; audited inputs that were none are none. The evidence of the rises falls in N_t,
        # that of the falls rises. Where the coin was not fair they may refute all: the nearest possible N_t is left.
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
