"""The section ``on_failure``: the failure policy, cause by cause."""

from __future__ import annotations

from ctd_guardrail.config.types import Section
from ctd_guardrail.decision import ALWAYS_BLOCKED, OnFailure, Reason

__all__ = ["OnFailureByCause", "on_failure_for"]


class OnFailureByCause(Section):
    """The failure policy by cause. A cause that is not named has the default."""

    default: OnFailure = OnFailure.BLOCK
    """Policy of every cause that is not named."""
    expert_timeout: OnFailure | None = None
    """The expert did not answer within its ``timeout_s``."""
    expert_unavailable: OnFailure | None = None
    """The expert is unreachable, closed, rate-limited or failing, or refuses every request."""
    expert_bad_verdict: OnFailure | None = None
    """The expert answered without a verdict. The sender of the input may provoke it."""
    expert_overloaded: OnFailure | None = None
    """Too many inputs wait for the expert: more than four times its ``max_concurrency``."""
    expert_disabled: OnFailure | None = None
    """The expert is switched off by ``expert_enabled: false``."""
    breaker_open: OnFailure | None = None
    """The expert failed ``breaker`` times in a row less than 10 seconds ago."""
    cap_exhausted: OnFailure | None = None
    """Nothing is left under a cap, or the request has made ``max_expert_calls``. A sender may provoke it."""
    cap_unavailable: OnFailure | None = None
    """The server of ``store`` does not answer."""
    deadline: OnFailure | None = None
    """The guard's own ``deadline_s`` has passed."""
    overloaded: OnFailure | None = None
    """The queue in front of the base model is full."""
    engine_unavailable: OnFailure | None = None
    """The serving engine of the base model (``source``) is unreachable, failing, or refuses."""
    internal_error: OnFailure | None = None
    """Any other error."""


def on_failure_for(on_failure: OnFailure | OnFailureByCause, reason: Reason) -> OnFailure | None:
    """Return the failure policy of a cause; None if the input is blocked under every policy.

    Args:
        on_failure: The operator's setting: one policy for all causes, or one for each.
        reason: The cause.
    """
    if reason in ALWAYS_BLOCKED:
        return None
    if isinstance(on_failure, OnFailure):
        return on_failure
    stated: OnFailure | None = getattr(on_failure, reason.value)
    return on_failure.default if stated is None else stated
