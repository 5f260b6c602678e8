"""The label-free drift alarm on the delegation values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.monitors.conformal_alarm import ConformalAlarm
from ctd_guardrail.monitors.exceedance_alarm import ExceedanceAlarm
from ctd_guardrail.monitors.state import SavedState, State

__all__ = ["ScoreDriftAlarm"]


class ScoreDriftAlarm:
    """A :class:`ConformalAlarm` and an :class:`ExceedanceAlarm` side by side, at delta / 2 each.

    By the union bound P(any alarm, ever) <= delta while calibration and stream are exchangeable. After an
    alarm the certificate of the budget no longer holds for this traffic. Recalibrate; unlabelled scores suffice.

    Args:
        scores: Delegation values of the calibration inputs, shape [n].
        delta: Probability in (0, 1) of any false alarm, ever, over calibration and stream together.
        seed: Seed of the random numbers that break ties, a whole number of at least 0.

    Attributes:
        conformal: The alarm that compares with calibration and all of the stream so far.
        exceedance: The alarm that compares with calibration alone.

    Raises:
        ConfigError: delta lies outside (0, 1).
        DataError: There are no scores, or one is NaN or infinite; its row is named.
    """

    def __init__(self, scores: FloatArray, *, delta: float = 0.05, seed: int) -> None:
        self.conformal = ConformalAlarm(scores, delta=delta / 2, seed=seed)
        self.exceedance = ExceedanceAlarm(scores, delta=delta / 2)

    @property
    def alarmed_at(self) -> int | None:
        """The step of the first alarm, None without one."""
        return min((at for at in (self.conformal.alarmed_at, self.exceedance.alarmed_at) if at), default=None)

    def update(self, d: float) -> bool:
        """Take the delegation value of one input and return whether either alarm is raised.

        Raises:
            DataError: It is NaN or infinite.
        """
        # Update both, even if the first is raised: the kind of alarm shows the kind of change.
        conformal = self.conformal.update(d)
        exceedance = self.exceedance.update(d)
        return conformal or exceedance

    def state(self) -> State:
        """Return everything that the next update depends on but the calibration scores, as plain JSON values."""
        return {"conformal": self.conformal.state(), "exceedance": self.exceedance.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], scores: FloatArray) -> Self:
        """Return the monitor that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            scores: The calibration scores that it was made with.

        Raises:
            DataError: The state is not one of this monitor on these scores.
        """
        saved = SavedState(state, "score drift alarm", ("conformal", "exceedance"))
        alarm = cls.__new__(cls)
        alarm.conformal = ConformalAlarm.from_state(saved.nested("conformal"), scores)
        alarm.exceedance = ExceedanceAlarm.from_state(saved.nested("exceedance"), scores)
        return alarm
