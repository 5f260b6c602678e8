"""A label-free alarm on the scores: bets that the conformal p-values are not uniform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np

from ctd_guardrail._typing import BoolArray, FloatArray
from ctd_guardrail.monitors.conformal import ConformalPValues, finite_score
from ctd_guardrail.monitors.e_detector import RATIOS, Alarm, advance, factors, idle, started
from ctd_guardrail.monitors.state import SavedState, State

__all__ = ["JUMP", "SLOPES", "TAILS", "ConformalAlarm", "jump", "tail_events"]


SLOPES: Final = np.array([-1.0, 0.0, 1.0])
JUMP: Final = 0.01
TAILS: Final = np.array([0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
_TAIL_BETS: Final = factors(TAILS)


def jump(capital: FloatArray, p: float | FloatArray, t: int) -> FloatArray:
    """Return the capital of the jumper after step t, with a new jumper started at every step.

    The capital is spread over three bets, e in {-1, 0, 1}. Each step spreads a share of .01 of it again, and multiplies
    each part by 1 + e (p - 1/2), which has mean 1 for uniform p. This is the Simple Jumper (Vovk, Petej, Nouretdinov,
    Ahlberg, Carlsson and Gammerman, arXiv 2102.10439, algorithm 1). The recursion is linear, so one state holds the
    jumpers of all starting steps, each with its weight w_t.

    Args:
        capital: The three parts before the step, shape [..., 3].
        p: The p-values of this step, shape [...].
        t: Its number, from 1.
    """
    bets = SLOPES.size
    capital = capital + started(t) / bets
    capital = (1.0 - JUMP) * capital + JUMP / bets * capital.sum(axis=-1, keepdims=True)
    return capital * (1.0 + SLOPES * (np.asarray(p)[..., None] - 0.5))


def tail_events(p: float | FloatArray) -> BoolArray:
    """Return whether each score lies in each of the upper and the lower tails, shape [2, ..., 11].

    Args:
        p: The p-values of the scores, shape [...].
    """
    return np.array([p, 1.0 - p])[..., None] < TAILS


class ConformalAlarm(Alarm):
    """Detects a change of the distribution of the scores. It needs no labels.

    Two martingales against uniform :class:`ConformalPValues` hold half of the capital each:

    - the simple jumper, which finds shifts of the whole distribution;
    - the e-detector of arXiv 2203.03532 on the 22 events p < a and p > 1 - a, a = .01 to .5, each of probability a. It
      finds spread, floods and holes, which the jumper can hardly detect.

        P(any alarm, ever) <= delta    while calibration and stream are exchangeable.

    The rate of delegation may differ from alpha by chance of the calibration draw; this alarm allows for that exactly.
    It compares with all earlier scores. A change that goes undetected becomes part of this reference.

    Args:
        scores: Delegation values of the calibration inputs, shape [n].
        delta: Probability in (0, 1) of any false alarm, ever.
        seed: Seed of the random numbers that break ties, a whole number of at least 0.

    Attributes:
        p_values: The p-values that the alarm bets against.

    Raises:
        ConfigError: delta lies outside (0, 1).
        DataError: There are no scores, or one is NaN or infinite; its row is named.
    """

    def __init__(self, scores: FloatArray, *, delta: float = 0.05, seed: int) -> None:
        super().__init__(delta)
        self.p_values = ConformalPValues(scores, seed=seed)
        self._jumper = np.zeros(SLOPES.size)
        self._tails = np.zeros((2, TAILS.size, len(RATIOS)))

    def update(self, d: float) -> bool:
        """Take the delegation value of one input and return whether the alarm is raised.

        Raises:
            DataError: It is NaN or infinite.
        """
        finite_score(d)
        if self.alarmed_at is not None:
            return True
        p = self.p_values.update(d)
        self.steps += 1
        self._jumper = jump(self._jumper, p, self.steps)
        self._tails = advance(self._tails, tail_events(p), _TAIL_BETS, self.steps)
        in_play = 0.5 * self._jumper.sum() + 0.5 * self._tails.sum() / self._tails.size
        return self._judge(float(in_play) + idle(self.steps))

    def state(self) -> State:
        """Return everything that the next update depends on but the calibration scores, as plain JSON values."""
        return self._alarm_state() | {
            "p_values": self.p_values.state(),
            "jumper": self._jumper.tolist(),
            "tails": self._tails.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], scores: FloatArray) -> Self:
        """Return the monitor that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            scores: The calibration scores that it was made with.

        Raises:
            DataError: The state is not one of this monitor on these scores.
        """
        saved = SavedState(state, "conformal alarm", (*cls.FIELDS, "p_values", "jumper", "tails"))
        p_values = ConformalPValues.from_state(saved.nested("p_values"), scores)
        alarm = cls(scores, delta=saved.share("delta"), seed=p_values.seed)
        cls._resume(alarm, saved)
        alarm.p_values = p_values
        return alarm

    def _resume(self, saved: SavedState) -> None:
        super()._resume(saved)
        self._jumper = saved.numbers("jumper", self._jumper.shape)
        self._tails = saved.numbers("tails", self._tails.shape)
