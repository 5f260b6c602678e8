"""The section ``override_bounds``: how far a single request may move a setting.

By default, a request may only ask for a smaller budget, for enforcement, and for a stricter failure policy. The sender
of a request must not relax the operator's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.config.types import Section, Share
from ctd_guardrail.decision import Mode, OnFailure
from ctd_guardrail.errors import OverrideError

__all__ = ["Bounds", "OverrideBoundsConfig"]

# From closed to open.
_MODES: Final = (Mode.ENFORCE, Mode.SHADOW)
_POLICIES: Final = (OnFailure.BLOCK, OnFailure.PROBE, OnFailure.ALLOW)


class OverrideBoundsConfig(Section):
    """The most open value that a single request may ask for; by default the configured one."""

    alpha: Share | None = None
    """Largest budget. It also bounds how much ``guarantee`` and ``horizon`` may delegate."""
    delta: Share | None = None
    """Largest probability that the calibration misses the budget."""
    mode: Mode | None = None
    """Most open mode. With ``shadow``, a request may ask that its verdict does not count."""
    on_failure: OnFailure | None = None
    """Most open failure policy: ``block``, ``probe`` or ``allow``."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most open value of each setting, named or configured.

    Attributes:
        alpha: The largest budget.
        delta: The largest admissible probability that calibration misses the budget.
        mode: The most open mode.
        on_failure: The most open failure policy.
    """

    alpha: float
    delta: float
    mode: Mode
    on_failure: OnFailure

    @classmethod
    def of(
        cls,
        named: OverrideBoundsConfig,
        *,
        alpha: float,
        delta: float,
        mode: Mode,
        on_failure: OnFailure | OnFailureByCause,
    ) -> Self:
        """Return the bounds.

        Args:
            named: The section ``override_bounds``.
            alpha: The configured budget, or the policy's.
            delta: The configured delta, or the policy's.
            mode: The configured mode.
            on_failure: The configured failure policy, for all causes or by cause.
        """
        return cls(
            alpha=alpha if named.alpha is None else named.alpha,
            delta=delta if named.delta is None else named.delta,
            mode=mode if named.mode is None else named.mode,
            on_failure=_most_closed(on_failure) if named.on_failure is None else named.on_failure,
        )

    def check(
        self, *, alpha: float | None, delta: float | None, mode: Mode | None, on_failure: OnFailure | None
    ) -> None:
        """Refuse what goes beyond; None asks for nothing.

        Raises:
            OverrideError: A setting is more open than it may be.
        """
        for name, asked, most in (("alpha", alpha, self.alpha), ("delta", delta, self.delta)):
            if asked is not None and asked > most:
                raise OverrideError(f"{name} is above {most:g}", hint=_hint(name))
        if mode is not None and _MODES.index(mode) > _MODES.index(self.mode):
            raise OverrideError(f"mode may be {self.mode} only", hint=_hint("mode"))
        if on_failure is not None and _POLICIES.index(on_failure) > _POLICIES.index(self.on_failure):
            raise OverrideError(f"on_failure may be {self.on_failure} at most", hint=_hint("on_failure"))


def _hint(name: str) -> str:
    return f"Ask for less, or name a wider bound in override_bounds.{name}"


def _most_closed(on_failure: OnFailure | OnFailureByCause) -> OnFailure:
    """Return the most open policy that opens no cause further: a request names one for all causes."""
    if isinstance(on_failure, OnFailure):
        return on_failure
    stated = on_failure.model_dump(exclude_none=True).values()
    return min(map(OnFailure, stated), key=_POLICIES.index)
