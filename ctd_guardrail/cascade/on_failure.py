"""From an exception to a verdict: the one place where a failure of the guard is decided."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final

from ctd_guardrail.cascade.outcome import Outcome
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.config.on_failure import on_failure_for
from ctd_guardrail.decision import OnFailure, Reason, Verdict
from ctd_guardrail.errors import (
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertVerdictError,
    InputError,
    OverloadedError,
    OverlongError,
)
from ctd_guardrail.runtime.cancellation import watch_cancellation

__all__ = ["conclude", "fail", "reason_of"]

log = logging.getLogger(__name__)

# The first match counts: subclasses stand before their bases.
_REASONS: Final[tuple[tuple[type[BaseException], Reason], ...]] = (
    (BreakerOpenError, Reason.BREAKER_OPEN),
    (CapStoreError, Reason.CAP_UNAVAILABLE),
    (ExpertCapError, Reason.CAP_EXHAUSTED),
    (ExpertDisabledError, Reason.EXPERT_DISABLED),
    (ExpertOverloadedError, Reason.EXPERT_OVERLOADED),
    (ExpertTimeoutError, Reason.EXPERT_TIMEOUT),
    (ExpertVerdictError, Reason.EXPERT_BAD_VERDICT),
    (ExpertError, Reason.EXPERT_UNAVAILABLE),
    (OverlongError, Reason.OVERLONG),
    (InputError, Reason.NON_TEXT),
    (OverloadedError, Reason.OVERLOADED),
    (ActivationUnavailableError, Reason.ENGINE_UNAVAILABLE),
)


def reason_of(error: BaseException) -> Reason:
    """Return the reason that a decision states for an exception."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.INTERNAL_ERROR)


async def conclude(
    judging: Awaitable[None], outcome: Outcome, settings: CascadeSettings, *, deadline: float | None
) -> None:
    """Await a judgement, and turn any exception into the verdict that ``on_failure`` states.

    Args:
        judging: Writes the judgement into the outcome. It is cancelled at the deadline.
        outcome: The outcome. It has a verdict afterwards.
        settings: The settings of the cascade.
        deadline: Time of the running event loop; None: no deadline.

    Raises:
        asyncio.CancelledError: The calling task was cancelled.
    """
    is_cancelled = watch_cancellation()
    timeout = asyncio.timeout_at(deadline)
    try:
        async with timeout:
            await judging
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        # A part of the guard was cancelled, and not the caller.
        fail(outcome, Reason.INTERNAL_ERROR, "a part of the guard was cancelled", settings)
    except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
        is_late = timeout.expired() and isinstance(error, TimeoutError)
        if not (is_late and outcome.is_judged):
            fail(outcome, Reason.DEADLINE if is_late else reason_of(error), type(error).__name__, settings)


def fail(outcome: Outcome, reason: Reason, cause: str, settings: CascadeSettings) -> None:
    """Give an outcome the verdict that ``on_failure`` states for a reason.

    Args:
        outcome: The outcome.
        reason: Why the guard could not do its work.
        cause: Name of an exception's type, or a fixed phrase. An exception's message might quote the conversation.
        settings: The settings of the cascade.
    """
    on_failure = on_failure_for(settings.on_failure, reason)
    verdict = Verdict.BLOCK
    if on_failure is OnFailure.ALLOW:
        verdict = Verdict.ALLOW
    elif on_failure is OnFailure.PROBE and outcome.p is not None:
        verdict, _ = settings.judge(outcome.p, reason, reason)
    log.warning("guard failure %s (%s): %s", reason, cause, verdict)
    outcome.fail(verdict, reason, on_failure)
